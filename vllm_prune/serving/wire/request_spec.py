"""What the processor decided about one video, on its way to the engine core and the model: JSON as a tensor of bytes.

Multimodal items cross process boundaries and caches as tensors, so that is what carries it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vllm_prune.budget import TokenCounts, plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.spans import TurnFormat
from vllm_prune.trace_key import checked

FIELD = "prune_spec"
"""Name of the field among a video's multimodal inputs."""
IMAGE_FIELD = "prune_image_spec"
"""Name of the field among an image's: vLLM tells by a field's name whose it is."""
CELLS_FIELD = "prune_cells"
"""Name of the field with the indices [M] of its encoded cells, where stage 1 looked at the pixels; else empty."""
IMAGE_CELLS_FIELD = "prune_image_cells"
"""The same of an image."""


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """One video's, or image's, configuration and what follows from it without looking at its content."""

    config: PruneConfig
    layout: MediumLayout
    """Its tokens before pruning, and where they lie."""
    per_frame: tuple[int, ...] | None = None
    """Cells that are encoded in each frame of the grid, where stage 1 looked at the pixels; None: all."""
    turn: TurnFormat | None
    """How the model's chat template ends a question; None where that could not be found out."""
    trace_key: str | None = None
    """The identity that the request gave its trace (see `trace_key.py`)."""
    selectors: tuple[str, ...] = ()
    """Digests of the learned selectors that score its tokens, in the order of the choices."""
    contiguous: bool = False
    """Whether the rows that stay have positions one after the other, where no question chooses among them."""

    @property
    def num_tokens(self) -> int:
        """N, its tokens before pruning."""
        return self.layout.num_cells

    @functools.cached_property
    def counts(self) -> TokenCounts:
        """How many tokens it keeps."""
        return plan_counts(self.config, self.num_tokens, self.per_frame, self.layout.num_pinned)

    @property
    def renumbered(self) -> bool:
        """Whether what stays of it has positions of its own, and not those of the unpruned prompt."""
        return self.contiguous and self.counts.kept == self.counts.carried and not self.keeps_all

    @property
    def prompt_layout(self) -> MediumLayout:
        """By which the prompt's positions go."""
        return MediumLayout((1, 1, self.counts.rows), rope="sequential") if self.renumbered else self.layout

    @property
    def positions_left_out(self) -> int:
        """Positions that the prompt has beyond its rows, because of this medium."""
        return self.counts.positions_left_out(self.contiguous)

    @property
    def keeps_all(self) -> bool:
        """Whether no token goes; its prompt is the unpruned one then, its rows are the encoder's own."""
        return self.counts.kept == self.counts.total

    def encode(self) -> torch.Tensor:
        """uint8 [L]; `decode` reads it back."""
        turn = None if self.turn is None else asdict(self.turn)
        fields: dict[str, Any] = {"layout": self.layout.to_dict(), "per_frame": self.per_frame, "turn": turn}
        fields |= {"config": self.config.to_dict(), "trace_key": self.trace_key, "selectors": self.selectors}
        fields["contiguous"] = self.contiguous
        return torch.frombuffer(bytearray(json.dumps(fields).encode()), dtype=torch.uint8)

    @classmethod
    def decode(cls, data: torch.Tensor) -> VideoSpec:
        """What `encode` wrote."""
        return _decode(bytes(data.cpu().numpy()))


def read_spec(feature: Any) -> VideoSpec | None:
    """The specification of a medium of a request (vLLM's `MultiModalFeatureSpec`), if it may be pruned."""
    data = feature.data
    field = next((name for name in (FIELD, IMAGE_FIELD) if data is not None and name in data), None)
    return None if field is None else VideoSpec.decode(data[field].data)


def is_renumbered(feature: Any) -> bool:
    """Whether what stays of a medium of a request has positions of its own."""
    spec = read_spec(feature)
    return spec is not None and spec.renumbered


def _read_turn(fields: dict[str, Any]) -> TurnFormat:
    return TurnFormat(
        reply_start=tuple(fields["reply_start"]), num_more=fields["num_more"], special=tuple(fields["special"])
    )


@functools.lru_cache(maxsize=256)
def _decode(data: bytes) -> VideoSpec:
    fields: dict[str, Any] = json.loads(data)
    turn = fields["turn"]
    return VideoSpec(
        config=PruneConfig.parse(fields["config"]),
        layout=MediumLayout.from_dict(fields["layout"]),
        per_frame=None if fields["per_frame"] is None else tuple(fields["per_frame"]),
        turn=turn and _read_turn(turn),
        trace_key=None if fields["trace_key"] is None else checked(fields["trace_key"]),
        selectors=tuple(fields["selectors"]),
        contiguous=fields["contiguous"],
    )
