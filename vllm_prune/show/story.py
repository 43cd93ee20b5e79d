"""What a picture tells: the frames of a video, and for each configuration what became of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_prune.config import ATTENTION, NO_METHOD, PRESETS, QUESTION, PruneConfig
from vllm_prune.serving.worker.trace import BEFORE_LAYERS
from vllm_prune.show.cells import Cells, map_cells
from vllm_prune.show.errors import ShowError
from vllm_prune.show.trace_file import TracedVideo

_UNPRUNED, _ENCODED = "unpruned", "encoded"


@dataclass(frozen=True)
class Frames:
    """The frames that the model saw.

    images: [F, height, width, 3] uint8 RGB, before the model's own resizing.
    seconds: [F], where each is in the video.
    name: of the video.
    is_picture: there is one, and it came as an image.
    """

    images: np.ndarray
    seconds: np.ndarray
    name: str
    is_picture: bool = False


@dataclass(frozen=True)
class Panel:
    """One configuration."""

    label: str
    config: PruneConfig
    cells: Cells
    counts: tuple[tuple[str, int], ...]
    """(what, tokens) at each point of the pipeline."""
    structure: int = 0
    """Rows of the prompt between these tokens, such as timestamps, which nothing drops."""
    answer: str | None = None
    seconds: float | None = None
    """From request to answer."""

    @property
    def summary(self) -> str:
        """The counts in one line."""
        told = " -> ".join(f"{count:,} {what}" for what, count in self.counts) + f" ({self.kept_share:.0%})"
        return told + (f"; {self.structure:,} of structure between them" if self.structure else "")

    @property
    def kept_share(self) -> float:
        """Tokens in the prompt, as a share of the video's."""
        return self.counts[-1][1] / self.counts[0][1]


@dataclass(frozen=True)
class Story:
    """Frames, question, and the configurations side by side."""

    frames: Frames
    question: str | None
    panels: list[Panel]
    frames_per_step: int = 2
    """Frames that one step of the grid covers (`temporal_patch_size`)."""
    token_pixels: int = 28
    """Side of the square of a (resized) frame that a token covers (`patch_size` times `spatial_merge_size`)."""

    def __post_init__(self) -> None:
        steps = self.panels[0].cells.grid[0]
        least, most = (steps - 1) * self.frames_per_step + 1, steps * self.frames_per_step
        if not least <= len(self.frames.images) <= most:
            raise ShowError(
                f"video={self.frames.name!r}: {len(self.frames.images)} frames where the trace has {steps} steps of "
                f"{self.frames_per_step}; give the video the trace is of, and the server's --media-io-kwargs"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W), the same for every configuration."""
        return self.panels[0].cells.grid

    def image_of(self, step: int, part: int = 0) -> np.ndarray:
        """The frame number `part` of a step of the grid; the last frame where the video ends within the step."""
        return self.frames.images[min(step * self.frames_per_step + part, len(self.frames.images) - 1)]

    def second_of(self, step: int) -> float:
        """When a step begins."""
        return float(self.frames.seconds[min(step * self.frames_per_step, len(self.frames.seconds) - 1)])


def make_panel(label: str, video: TracedVideo, answer: str | None = None, seconds: float | None = None) -> Panel:
    """The panel of a traced video."""
    return Panel(label, video.config, map_cells(video), _name_counts(video), video.structure, answer, seconds)


def _name_counts(video: TracedVideo) -> tuple[tuple[str, int], ...]:
    total, entering, *left = video.counts
    named = [("tokens", total)]
    stages = ["stage 1"] if video.config.stage1 is not None else []
    if video.config.method not in (NO_METHOD, ATTENTION, QUESTION):
        stages.append(video.config.method)
    if stages:
        named.append((f"after {' and '.join(stages)}", entering))
    elif entering < total:
        named.append((_ENCODED, entering))
    for layer, count in zip(video.layers, left, strict=False):
        named.append(("after the question" if layer == BEFORE_LAYERS else f"after layer {layer}", count))
    return tuple(named)


def label_of_trace(video: TracedVideo) -> str:
    """A short name for what a server did. A trace says nothing of `same_within` but the cells that it left."""
    label = label_of(video.config)
    return "same_within" if label == _UNPRUNED and video.counts[-1] < video.counts[0] else label


def label_of(value: object) -> str:
    """A short name for a `--prune` value.

    >>> label_of("default")
    'default'
    >>> label_of('{"method": "uniform", "keep_ratio": 0.2}')
    'uniform, 20%'
    >>> label_of('{"stage1": {"cluster_ratio": 0.3}}')
    'stage 1, 30%'
    """
    if isinstance(value, str) and value in PRESETS:
        return value
    config = PruneConfig.parse(value)
    parts = []
    if config.stage1 is not None:
        where = " on pixels" if config.stage1.where == "processor" else ""
        parts.append(f"stage 1{where}, {config.stage1.cluster_ratio:.0%}")
    if config.method != NO_METHOD:
        parts.append(config.method + _amount(config))
    return " + ".join(parts) or _UNPRUNED


def _amount(config: PruneConfig) -> str:
    target, ratio = config.target_token_num, config.keep_ratio
    if target is not None:
        return f", {target} tokens"
    if isinstance(ratio, tuple):
        return ", " + "/".join(f"{part:.0%}" for part in ratio)
    return "" if ratio is None else f", {ratio:.0%}"
