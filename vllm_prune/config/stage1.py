"""Stage 1's part of a configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vllm_prune.config.checks import require_choice, require_int, require_ratio
from vllm_prune.config.errors import PruneConfigError

MergingMethod = Literal["prunevid", "framefusion", "dycoke", "fastvid", "flashvid", "tome"]


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """Merging before the method: PruneVid's in space and time (ACL 2025, section 3.2), or another method's."""

    method: MergingMethod = "prunevid"
    """The method that merges; `tau` and `temporal_segment_ratio` are of PruneVid's, `cluster_ratio` of all."""
    tau: float = 0.8
    """Mean pairwise cosine similarity above which a cell of a segment is static; published range 0.7-0.9."""
    cluster_ratio: float = 0.5
    """Fraction of the tokens that merging leaves; published range 0.3-0.8."""
    temporal_segment_ratio: float = 0.25
    """Temporal segments per frame of the token grid; published range 0.1-0.5."""

    where: Literal["encoder", "processor"] = "encoder"
    """After the vision encoder, on its features; or before it, on pixels, so that still cells are never encoded."""
    still: Literal["runs", "segments", "previous"] = "runs"
    """Before the encoder, a cell is compared with its last encoded version; with its first one in the segment; or with
    the frame before (TimeChat-Online's differential token drop)."""
    max_tokens: int | None = None
    """Before the encoder, where the count follows the content: tokens that stage 1 leaves at the most."""
    min_tokens: int | None = None
    """Likewise, at the least (or all of the video's)."""
    without_pixels: Literal["refuse", "encoder"] = "refuse"
    """A video that comes as precomputed embeddings, which no plan on pixels can be made for: the request is refused; or
    the video is merged by its features."""

    def __post_init__(self) -> None:
        for name in ("tau", "cluster_ratio", "temporal_segment_ratio"):
            object.__setattr__(self, name, require_ratio(f"stage1.{name}", getattr(self, name)))
        if self.tau == 1:
            raise PruneConfigError("stage1.tau=1.0: must be below 1; no cell is ever more alike than that")
        require_choice("stage1.where", self.where, ("encoder", "processor"))
        require_choice("stage1.still", self.still, ("runs", "segments", "previous"))
        require_choice("stage1.method", self.method, get_args(MergingMethod))
        require_choice("stage1.without_pixels", self.without_pixels, ("refuse", "encoder"))
        for name in ("max_tokens", "min_tokens"):
            if getattr(self, name) is not None:
                require_int(f"stage1.{name}", getattr(self, name), 1)
        self._check_limits()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping: what is published, and what differs from its default."""
        fields: dict[str, Any] = self.merging()
        for field in dataclasses.fields(self):
            if field.name not in fields and getattr(self, field.name) != field.default:
                fields[field.name] = getattr(self, field.name)
        return fields

    def merging(self) -> dict[str, Any]:
        """What is published: parameters of the method "prunevid", which merges by features."""
        names = ("tau", "cluster_ratio", "temporal_segment_ratio")
        return {name: getattr(self, name) for name in names}

    def after_encoder(self) -> Stage1Config:
        """The same merging on the encoder's features."""
        return dataclasses.replace(self, where="encoder", max_tokens=None, min_tokens=None, without_pixels="refuse")

    def _check_limits(self) -> None:
        if self.where == "encoder":
            for name in ("max_tokens", "min_tokens"):
                if getattr(self, name) is not None:
                    raise PruneConfigError(f'stage1.{name}={getattr(self, name)!r}: needs stage1.where="processor"')
        elif self.method != "prunevid":
            raise PruneConfigError(
                f'stage1.method={self.method!r}: looks at features; give where="encoder", or method="prunevid"'
            )
        self._check_without_pixels()
        if self.max_tokens is not None and self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise PruneConfigError(
                f"stage1.min_tokens={self.min_tokens!r}: must not be above stage1.max_tokens={self.max_tokens!r}"
            )

    def _check_without_pixels(self) -> None:
        if self.without_pixels == "refuse":
            return
        if self.where == "encoder":
            raise PruneConfigError('stage1.without_pixels="encoder": needs stage1.where="processor"')
        if self.max_tokens is not None or self.min_tokens is not None:
            raise PruneConfigError(
                'stage1.without_pixels="encoder": merging by features knows no stage1.max_tokens or stage1.min_tokens; '
                "give target_token_num or keep_ratio"
            )
