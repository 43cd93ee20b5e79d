"""What happens to a video's tokens before the language model: stage 1, then a query-free method."""

from __future__ import annotations

import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.config import ATTENTION, NO_METHOD, QUESTION, PruneConfig, Stage1Config
from vllm_prune.methods import registry
from vllm_prune.methods.base import Assignment, VideoTokens, compact
from vllm_prune.methods.merge_frames import merge_frames
from vllm_prune.methods.prunevid import PruneVid
from vllm_prune.methods.still_cells import stand_ins


def place_tokens(features: torch.Tensor, grid: tuple[int, int, int], cells: torch.Tensor | None) -> VideoTokens:
    """Features [M, C] of a video's `cells` [M] (indices into its grid, increasing; None: all) as tokens."""
    if cells is None:
        return VideoTokens.from_features(features, grid)
    return VideoTokens(features, torch.stack(torch.unravel_index(cells, grid), dim=1), grid)


def first_level(tokens: VideoTokens, width: int | None) -> VideoTokens:
    """The same tokens with the first `width` columns of their features: what enters the first layer."""
    if width is None or width == tokens.features.shape[1]:
        return tokens
    return VideoTokens(tokens.features[:, :width], tokens.grid, tokens.grid_thw)


def merge_and_select(
    tokens: VideoTokens,
    config: PruneConfig,
    counts: TokenCounts,
    width: int | None = None,
    attention: torch.Tensor | None = None,
) -> tuple[VideoTokens, Assignment]:
    """The tokens made ready for the language model, `counts.carried` of them, and where they come from.

    What goes where is decided on the first `width` columns of their features (by methods that vLLM has, too, on all of
    them, as it does), and done to all columns.

    `attention`: [M], what each token receives inside the vision encoder, for methods that look at it.
    """
    assignment = Assignment.identity(tokens.num_tokens, tokens.features.device)
    if config.stage1 is not None:
        assignment = _merge(first_level(tokens, width), config.stage1, counts.stage1)
        tokens = compact(tokens, assignment)
    if config.method not in (NO_METHOD, ATTENTION, QUESTION):
        method = registry.create(config.method, **config.params)
        seen = tokens if getattr(method, "sees_all_levels", False) else first_level(tokens, width)
        given = {}
        if getattr(method, "relevance", "unused") == "encoder" and attention is not None:
            given["relevance"] = _average_members(attention, assignment)
        chosen = method.assign(seen, counts.carried, **given)
        if not registry.is_built_in(config.method):
            _check_foreign(chosen)
        tokens, assignment = compact(tokens, chosen), _chain(assignment, chosen)
    if tokens.num_tokens != counts.carried:
        raise RuntimeError(
            f"method {config.method!r} left {tokens.num_tokens} tokens of {counts.total} where "
            f"{counts.carried} were asked for"
        )
    return tokens, assignment


def _average_members(score: torch.Tensor, assignment: Assignment) -> torch.Tensor:
    """[K] means of `score` [N] over the members of each slot.

    >>> roots = torch.tensor([0, 0, -1, 3])
    >>> _average_members(torch.tensor([1.0, 3.0, 9.0, 5.0]), Assignment.from_roots(roots)).tolist()
    [2.0, 5.0]
    """
    member = assignment.slot >= 0
    slot = assignment.slot.clamp(min=0)
    total = score.new_zeros(assignment.num_slots).index_add_(0, slot, score.masked_fill(~member, 0))
    size = score.new_zeros(assignment.num_slots).index_add_(0, slot, member.to(score.dtype))
    return total / size


def _check_foreign(chosen: object) -> None:
    """Refuses what a third-party method must not return, before it is used as an index on a device."""
    if not isinstance(chosen, Assignment):
        raise TypeError(f"assign returned a {type(chosen).__name__}; it must return an Assignment")
    chosen.validate()


def temporal_segments(tokens: VideoTokens, config: PruneConfig, width: int | None = None) -> torch.Tensor | None:
    """[t], the segment that stage 1 puts each step of the grid of an unpruned video in; None where it cuts none."""
    if config.stage1 is None or not config.finds_segments:
        return None
    return _prunevid(config.stage1).plan(first_level(tokens, width)).segment


def _merge(tokens: VideoTokens, stage1: Stage1Config, count: int) -> Assignment:
    if stage1.where == "processor":
        return merge_frames(tokens, count, stage1.cluster_ratio)
    if stage1.method != "prunevid":
        return registry.create(stage1.method).assign(tokens, count)
    return _prunevid(stage1).assign(tokens, count)


def _prunevid(stage1: Stage1Config) -> PruneVid:
    return PruneVid(**stage1.merging())


def competing_groups(tokens: VideoTokens, config: PruneConfig, assignment: Assignment) -> torch.Tensor:
    """The group of each token that enters the language model, [N1]: all 0, unless parts of it have quotas of their own.

    With quotas per segment, twice the segment of its anchor, plus 1 where stage 1 found the anchor's cell static in it.
    With quotas per frame, of a dynamic cell the frame, of a static one the segment, counted on from the frames.
    """
    anchor = assignment.anchor
    if config.method != ATTENTION or config.attention_param("quota") == "global":
        return torch.zeros_like(anchor)
    assert config.stage1 is not None  # PruneConfig sees to it
    plan = _prunevid(config.stage1).plan(tokens)
    frame, cell = anchor // plan.static.shape[1], anchor % plan.static.shape[1]
    segment = plan.segment[frame]
    static = plan.static[segment, cell]
    if config.attention_param("quota") == "frame":
        return torch.where(static, len(plan.segment) + segment, frame)
    return 2 * segment + static.long()


def _chain(first: Assignment, second: Assignment) -> Assignment:
    """`first`, then `second` on what it left.

    >>> kept = [Assignment.from_kept(torch.tensor(kept), n) for kept, n in (([0, 2, 3], 4), ([1, 2], 3))]
    >>> _chain(*kept).slot.tolist(), _chain(*kept).anchor.tolist()
    ([-1, -1, 0, 1], [2, 3])
    """
    slot = second.slot[first.slot].where(first.slot >= 0, first.slot)
    return Assignment(slot, first.anchor[second.anchor])


def over_all_cells(assignment: Assignment, cells: torch.Tensor, grid: tuple[int, int, int]) -> Assignment:
    """An assignment of the encoded `cells` [M], extended to all cells: those left out go where their stand-in goes.

    A cell without one in the frames before it, as in a picture, is dropped.
    """
    encoded = torch.zeros(grid, dtype=torch.bool, device=cells.device).flatten()
    encoded[cells] = True
    frame = stand_ins(encoded.view(grid[0], -1))
    place = torch.arange(frame.shape[1], device=cells.device)
    stand_in = torch.searchsorted(cells, (frame * frame.shape[1] + place).flatten())
    slot = assignment.slot[stand_in.clamp_max(len(cells) - 1)]
    seen = encoded.view(grid[0], -1).int().cummax(0).values.bool().flatten()
    return Assignment(slot.masked_fill(~seen, -1), cells[assignment.anchor])
