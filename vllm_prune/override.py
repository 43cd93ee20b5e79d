"""What a request may change of the server's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vllm_prune.budget import plan_counts
from vllm_prune.budget_images import config_of_image
from vllm_prune.config import OverridePolicy, PruneConfig, PruneConfigError, Stage1Config, brief
from vllm_prune.config.methods import check_work
from vllm_prune.trace_key import FIELD, split_trace_key
from vllm_prune.trace_limits import TraceLimits

KEPT, CONTIGUOUS = "kept", "contiguous"
POSITIONS = (KEPT, CONTIGUOUS)
"""Of tokens that stay, in a decoder with plain RoPE: those of the unpruned prompt; or one after the other, where no
question chooses."""
_TIGHTEN_KEYS = ("keep_ratio", "target_token_num", "stage1.cluster_ratio", "frames.tokens", "frames.max")
_TIGHTEN_IMAGE_KEYS = ("keep_ratio", "target_token_num", "min_tokens", "total", "same_within")
_FIXED_KEYS = ("method", "layers", "params")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The server's configuration and how far requests may leave it."""

    config: PruneConfig
    override: OverridePolicy = "tighten"
    trace: str | None = None
    """Folder for traces (see `serving/worker/trace.py`)."""
    trace_limits: TraceLimits = dataclasses.field(default_factory=TraceLimits)
    selectors: tuple[str, ...] = ()
    """Files of learned selectors (see `vllm_prune/selector`), which read at different places."""
    positions: str = KEPT
    """One of `POSITIONS`."""
    dense_tokens: int | None = None
    """Most tokens that dense prefixes may have at once; None for twice the step's budget of tokens."""
    log: bool = False
    """Whether every request with videos is described in the log (see `serving/api/log.py`)."""
    feature_layers: tuple[int, ...] = (0, -1)
    """That a server of features hands out (see `serving/wire/features.py`)."""

    @property
    def may_prune(self) -> bool:
        """Whether any request at all can have tokens merged or dropped."""
        return self.override == "any" or not self.config.keeps_everything or self.config.prunes_images

    @property
    def may_query(self) -> bool:
        """Whether the question may choose tokens of any request inside the decoder."""
        return self.override == "any" or any(part.chooses_inside for part in self.config.parts)

    def resolve(self, request: object | None) -> PruneConfig:
        """The configuration of a request that asks for `request` (None: nothing of its own).

        Raises:
            PruneConfigError: The request's value is wrong, or the policy does not allow it.
        """
        request, _ = split_trace_key(request)
        if request is None:
            return self.config
        requested = PruneConfig.parse(request, base=self.config)
        if requested == self.config:
            return requested
        if self.override == "none":
            raise PruneConfigError(
                f"prune={brief(request)}: this server allows no override; leave `prune` out of mm_processor_kwargs, "
                f"or start the server with --prune-override tighten or any"
            )
        if self.override == "tighten":
            self._require_tighter_kind(request, requested)
        return requested

    def trace_key(self, request: object | None) -> str | None:
        """The identity that a request gives its trace (see `trace_key.py`); None if it gives none.

        Raises:
            PruneConfigError: It is of another form, or this server writes no traces.
        """
        _, key = split_trace_key(request)
        if key is not None and self.trace is None:
            raise PruneConfigError(
                f"prune.{FIELD}: this server writes no traces; leave it out, or start the server with --prune-page or "
                f"--prune-trace DIR"
            )
        return key

    def _require_tighter_kind(self, request: object, requested: PruneConfig) -> None:
        """Refuses a change of anything but the amounts; `check_counts` compares these."""
        changed = [key for key in _FIXED_KEYS if getattr(requested, key) != getattr(self.config, key)]
        if (requested.stage1 is None) != (self.config.stage1 is None):
            changed.append("stage1")
        changed += _looser_plan(requested.stage1, self.config.stage1)
        changed += self._changed_of_images(requested) + self._looser_frames(requested)
        if changed:
            raise PruneConfigError(
                f"prune={brief(request)}: changes {', '.join(changed)}, but this server allows only fewer tokens "
                f"({', '.join((*_TIGHTEN_KEYS, *(f'image.{key}' for key in _TIGHTEN_IMAGE_KEYS)))}); start it with "
                f"--prune-override any"
            )

    def _changed_of_images(self, requested: PruneConfig) -> list[str]:
        asked, own = requested.image, self.config.image
        if asked is None or own is None:
            return [] if asked == own else ["image"]
        changed = [key for key in _FIXED_KEYS if getattr(asked, key) != getattr(own, key)]
        # Counts cannot tell, as the server's own plan of the request's image is never made.
        if own.same_within is not None and (asked.same_within is None or asked.same_within < own.same_within):
            changed.append("same_within")
        return [f"image.{key}" for key in changed]

    def _looser_frames(self, requested: PruneConfig) -> list[str]:
        """Where the server says nothing, a request gets no more frames than it would without its own."""
        asked, own = requested.frames, self.config.frames
        if own is None:
            return []
        if asked is None:
            return ["frames"]
        amounts = {"frames.tokens": (asked.tokens, own.tokens), "frames.max": (asked.most, own.most)}
        return [name for name, (more, allowed) in amounts.items() if more > allowed]

    def check_image(
        self,
        asked: PruneConfig,
        num_tokens: int,
        allowed_share: float | None,
        per_frame: Sequence[int] | None = None,
    ) -> None:
        """Refuses more tokens of an image of `num_tokens` than the policy allows, and too much work.

        Args:
            asked: The image's own configuration (`config_of_image`).
            num_tokens: N.
            allowed_share: `total_share` of the server's own configuration.
            per_frame: The number of its cells that are encoded, where its pixels were looked at.
        """
        counts = plan_counts(asked, num_tokens, per_frame)
        check_work(asked.method, asked.params, counts.stage1, counts.entering)
        if self.override != "tighten" or self.config.image is None:
            return
        if self.config.image.same_within is None:
            per_frame = None
        encoded = None if per_frame is None else sum(per_frame)
        own_config = config_of_image(self.config.image, num_tokens, allowed_share, encoded)
        own = plan_counts(own_config, num_tokens, per_frame)
        if any(a > b for a, b in zip((counts.kept, *counts.layers), (own.kept, *own.layers), strict=False)):
            raise PruneConfigError(
                f"prune.image: keeps {counts.kept} of an image's {num_tokens} tokens, above this server's {own.kept}; "
                f"lower image.{', image.'.join(_TIGHTEN_IMAGE_KEYS)}, or start the server with --prune-override any"
            )

    def check_counts(self, requested: PruneConfig, num_tokens: int, per_frame: Sequence[int] | None = None) -> None:
        """Refuses more tokens of a video of `num_tokens` than the policy or the video allows, and too much work.

        `per_frame`: cells of each frame that are encoded, where stage 1 looked at the pixels.
        """
        asked = plan_counts(requested, num_tokens, per_frame)
        check_work(requested.method, requested.params, asked.stage1, asked.entering)
        if requested == self.config:
            return
        target = requested.target_token_num
        targets = target if isinstance(target, tuple) else (target,)
        if target != self.config.target_token_num and any(t is not None and t > num_tokens for t in targets):
            raise PruneConfigError(
                f"target_token_num={brief(target)}: the video has {num_tokens} tokens; ask for fewer"
            )
        if self.override != "tighten":
            return
        allowed = plan_counts(self.config, num_tokens, per_frame if self.config.plans_on_pixels else None)
        if any(
            a > b for a, b in zip((asked.entering, *asked.layers), (allowed.entering, *allowed.layers), strict=True)
        ):
            raise PruneConfigError(
                f"prune={brief(requested.to_dict())}: keeps {asked.kept} of {num_tokens} tokens ({asked.entering} "
                f"entering the model), above this server's {allowed.kept} ({allowed.entering}); lower keep_ratio or "
                f"target_token_num, or start the server with --prune-override any"
            )


def check_dense_tokens(value: object) -> int | None:
    """`value` as `ServerSettings.dense_tokens`.

    Raises:
        PruneConfigError: It is no positive integer.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PruneConfigError(f"dense_tokens={brief(value)}: must be an integer of 1 or more")
    return value


def check_positions_policy(value: object) -> str:
    """`value` as `ServerSettings.positions`.

    Raises:
        PruneConfigError: It is none of `POSITIONS`.
    """
    if value not in POSITIONS:
        raise PruneConfigError(f"positions={brief(value)}: must be one of {', '.join(POSITIONS)}")
    return str(value)


def _looser_plan(requested: Stage1Config | None, server: Stage1Config | None) -> list[str]:
    """Fields by which a plan on pixels may keep more than the server's own would.

    Counts cannot tell, as the server's own plan of the request's video is never made.
    """
    if requested is None or server is None or server.where != "processor":
        return []
    kinds = ("where", "still", "without_pixels")
    looser = [name for name in kinds if getattr(requested, name) != getattr(server, name)]
    if server.still == "segments" and requested.temporal_segment_ratio > server.temporal_segment_ratio:
        looser.append("temporal_segment_ratio")
    if requested.tau > server.tau:
        looser.append("tau")
    if (requested.min_tokens or 1) > (server.min_tokens or 1):
        looser.append("min_tokens")
    return [f"stage1.{name}" for name in looser]
