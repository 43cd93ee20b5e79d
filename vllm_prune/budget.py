"""How many tokens a video keeps after each stage, from its configuration and its number of tokens alone.

The multimodal processor and the model both call `plan_counts`, so placeholders and rows cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_prune.config import ATTENTION, DEFAULT_KEEP_RATIO, NO_METHOD, QUESTION, PruneConfig

KEEP_SMALL = 14
"""Groups of up to this many tokens are not merged (PruneVid)."""


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of one video at each point of the pipeline."""

    total: int
    """N: cells of the video's grid, each one token if nothing is pruned."""
    encoded: int
    """Those that the vision encoder sees; `total` unless stage 1 looks at the pixels before."""
    stage1: int
    """What stage 1 leaves; `total` without stage 1."""
    entering: int
    """N1: what enters the language model's first layer."""
    layers: tuple[int, ...] = ()
    """What is left after each pruning layer of the language model; empty for query-free methods."""
    pinned: int = 0
    """S: rows between the tokens that nobody may drop, such as timestamps; counted nowhere else."""

    by_question: bool = False
    """Whether the question chooses before the first layer, among what stage 1 leaves."""

    @property
    def carried(self) -> int:
        """Tokens that are made ready for the language model: what enters it, or what the question chooses that from."""
        return self.stage1 if self.by_question else self.entering

    @property
    def kept(self) -> int:
        """K: tokens that stay."""
        return self.layers[-1] if self.layers else self.entering

    def positions_left_out(self, contiguous: bool) -> int:
        """Positions that a prompt has beyond its rows; none `contiguous` where no question chooses which stay."""
        return 0 if contiguous and self.kept == self.carried else self.total - self.kept

    @property
    def rows(self) -> int:
        """K + S: placeholders in the prompt, rows in the paged cache."""
        return self.kept + self.pinned

    @property
    def carried_rows(self) -> int:
        """Rows that are made ready for the language model; N1 + S for method "attention"."""
        return self.carried + self.pinned


def count_kept(num_tokens: int, ratio: float) -> int:
    """`ratio` of `num_tokens`, rounded to the nearest (halves up), at least 1.

    >>> [count_kept(n, 0.25) for n in (1, 2, 6, 100)]
    [1, 1, 2, 25]
    """
    return max(1, int(num_tokens * ratio + 0.5))


def plan_counts(
    config: PruneConfig, num_tokens: int, per_frame: Sequence[int] | None = None, pinned: int = 0
) -> TokenCounts:
    """Token counts of a video under `config`.

    Args:
        config: Its configuration.
        num_tokens: N, 1 or more.
        per_frame: Cells that are encoded in each frame of the grid, where somebody looked at the pixels; None: all.
        pinned: S.

    >>> from vllm_prune.config import preset
    >>> plan_counts(preset("default"), 1000)
    TokenCounts(total=1000, encoded=1000, stage1=500, entering=500, layers=(200,), pinned=0, by_question=False)
    """
    encoded = num_tokens if per_frame is None else sum(per_frame)
    if per_frame is None or config.stage1 is None:
        stage1 = _count_stage1(config, encoded)
    else:
        stage1 = _count_planned(config, num_tokens, per_frame)
    entering, layers = stage1, tuple[int, ...]()
    if config.method != NO_METHOD:
        steps = count_steps(config, stage1)
        entering, layers = (stage1, steps) if config.method == ATTENTION else (steps[-1], ())
    return TokenCounts(
        total=num_tokens,
        encoded=encoded,
        stage1=stage1,
        entering=entering,
        layers=layers,
        pinned=pinned,
        by_question=config.method == QUESTION,
    )


def _count_stage1(config: PruneConfig, num_tokens: int) -> int:
    if config.stage1 is None:
        return num_tokens
    if config.method != NO_METHOD or (config.keep_ratio is None and config.target_token_num is None):
        return count_kept(num_tokens, config.stage1.cluster_ratio)
    return count_steps(config, num_tokens)[-1]


def _count_planned(config: PruneConfig, num_tokens: int, per_frame: Sequence[int]) -> int:
    """What merging in space leaves of the encoded cells: a count that follows the content, within limits."""
    assert config.stage1 is not None
    floor, ceiling = stage1_limits(config, num_tokens)
    count = max(merged_count(per_frame, config.stage1.cluster_ratio), min(floor, sum(per_frame)))
    return min(count, ceiling)


def stage1_limits(config: PruneConfig, num_tokens: int) -> tuple[int, int]:
    """(floor, ceiling): the least and the most tokens that stage 1 on pixels leaves of a video of `num_tokens`.

    >>> stage1_limits(PruneConfig.parse({"stage1": {"where": "processor", "min_tokens": 8}, "keep_ratio": 0.25}), 100)
    (8, 25)
    """
    assert config.stage1 is not None
    ceilings = [num_tokens, config.stage1.max_tokens or num_tokens]
    if config.method == NO_METHOD and (config.keep_ratio is not None or config.target_token_num is not None):
        ceilings += count_steps(config, num_tokens)
    return min(config.stage1.min_tokens or 1, *ceilings), min(ceilings)


def count_most(config: PruneConfig, num_tokens: int, num_frames: int) -> TokenCounts:
    """Counts of a video under `config`, no less than those of any video of that many tokens.

    Those of `plan_counts`, but where stage 1 looks at the pixels, and the count follows the content: nothing is still.

    Args:
        config: Its configuration.
        num_tokens: N, 1 or more.
        num_frames: Of the grid, all with as many tokens.

    >>> still_parts = PruneConfig.parse({"stage1": {"where": "processor"}, "method": "dpp", "keep_ratio": 0.5})
    >>> count_most(still_parts, 1000, 10).kept
    250
    """
    if not config.plans_on_pixels:
        return plan_counts(config, num_tokens)
    cells = num_tokens // num_frames
    # Merging leaves 14 of 14 cells, and may leave fewer of more.
    counts = [plan_counts(config, num_tokens, [encoded] * num_frames) for encoded in (cells, min(cells, KEEP_SMALL))]
    return max(counts, key=lambda each: each.stage1)


def merged_count(per_frame: Sequence[int], cluster_ratio: float) -> int:
    """Tokens that merging leaves of groups: int(n * cluster_ratio) of n, groups of up to 14 as they are.

    >>> merged_count([100, 14, 0, 15], 0.5)
    71
    """
    return sum(n if n <= KEEP_SMALL else max(1, int(n * cluster_ratio)) for n in per_frame)


def count_steps(config: PruneConfig, num_tokens: int) -> tuple[int, ...]:
    """What `keep_ratio` or `target_token_num` leave of `num_tokens`, one for each pruning layer (or the only one)."""
    num_steps = len(config.layers) if config.layers else 1
    if config.target_token_num is not None:
        targets = config.target_token_num
        repeated = targets if isinstance(targets, tuple) else (targets,) * num_steps
        return tuple(min(num_tokens, target) for target in repeated)
    ratios = config.keep_ratio if config.keep_ratio is not None else DEFAULT_KEEP_RATIO
    counts = [num_tokens]
    for ratio in ratios if isinstance(ratios, tuple) else (ratios,) * num_steps:
        counts.append(count_kept(counts[-1], ratio))
    return tuple(counts[1:])
