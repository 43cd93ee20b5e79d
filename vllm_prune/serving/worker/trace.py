"""Writes what was decided about every video to files: the basis of pictures, oracles and debugging.

One `.npz` for each request and step in which the question chose tokens, and one for each encoded video whose tokens no
question chooses (then `prompt` is empty). Files are numbered; a request that brings a `trace_key` (`trace_key.py`) has
a file named by that, which the next one with the same key replaces. Every array of video i is called `videoI/...`:

    grid [3]              t, h, w in merged tokens
    config                the configuration, as JSON text
    segment [t]           stage 1's temporal segment of each step of the grid; absent without stage 1
    slot [N], anchor [N1] where stage 1 or a query-free method put every token (-1: dropped), and its slots' anchors
            "counts": np.array(_counts(video.counts)),
            "structure": np.array(video.counts.pinned),
    importance_layerL [n] of the tokens that were left before layer L's choice
    kept [K]              which of the N1 tokens stay, increasing
    positions [3, K]      of the kept tokens, from the prompt's start (without a prompt: from the video's)
    seconds [2]           merging or selecting before the language model; the dense prefix of the step, 0 without
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.budget import TokenCounts
from vllm_prune.methods.base import Assignment
from vllm_prune.serving.worker.trace_folder import TraceFolder
from vllm_prune.trace_key import file_name
from vllm_prune.trace_limits import TraceLimits

FORMAT = 1
BEFORE_LAYERS = -1
"""In place of a pruning layer: a choice before the first one."""


@dataclass(frozen=True)
class VideoTrace:
    """What is known of a video when it has been encoded."""

    grid: tuple[int, int, int]
    counts: TokenCounts
    assignment: Assignment
    seconds: float
    """Time that merging and selecting took before the language model."""
    config_json: str
    segment: torch.Tensor | None = None
    """[t], stage 1's temporal segments."""
    key: str | None = None
    """The identity that the request gave its trace."""


@dataclass(frozen=True)
class VideoOutcome:
    """What became of a video in one request."""

    video: VideoTrace
    kept: torch.Tensor
    """[K]"""
    positions: torch.Tensor
    """[3, K]"""
    importance: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By pruning layer."""


class TraceWriter:
    """Writes to one folder, or counts what could not be written."""

    def __init__(self, folder: str, limits: TraceLimits | None = None) -> None:
        self._folder = TraceFolder(folder, limits or TraceLimits())
        self._files = itertools.count(1)
        self.take_lost = self._folder.take_lost

    def write(self, prompt: Sequence[int], videos: Sequence[VideoOutcome], seconds: float) -> Path | None:
        """Writes the file of one request, and returns where it is; None if it cannot be written.

        Args:
            prompt: Its token ids.
            videos: What became of its videos.
            seconds: Time of the dense prefix, 0 if there was none.
        """
        arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT), "prompt": np.asarray(prompt)}
        with gpu_sync_allowed():
            for index, outcome in enumerate(videos):
                for name, value in self._arrays(outcome, seconds).items():
                    arrays[f"video{index}/{name}"] = value
        # Written to memory first: zipfile raises errors of its own where a file cannot be finished.
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        return self._folder.write(self._name(prompt, videos), content.getvalue())

    def _name(self, prompt: Sequence[int], videos: Sequence[VideoOutcome]) -> str:
        """By the request's own key if it gave one: only who knows that can ask for the file."""
        keys = {outcome.video.key for outcome in videos} - {None}
        if keys:
            return file_name(str(keys.pop()))
        digest = hashlib.sha256(np.asarray(prompt, dtype=np.int64).tobytes()).hexdigest()[:16]
        return f"{next(self._files):06d}-{digest}.npz"

    def _arrays(self, outcome: VideoOutcome, seconds: float) -> dict[str, np.ndarray]:
        video = outcome.video
        arrays = {
            "grid": np.array(video.grid),
            "config": np.array(video.config_json),
            "slot": video.assignment.slot.cpu().numpy(),
            "anchor": video.assignment.anchor.cpu().numpy(),
            "layers": np.array(sorted(outcome.importance), dtype=np.int64),
            "counts": np.array(_counts(video.counts)),
            "structure": np.array(video.counts.pinned),
            "kept": outcome.kept.cpu().numpy(),
            "positions": outcome.positions.cpu().numpy(),
            "seconds": np.array([video.seconds, seconds]),
        }
        if video.segment is not None:
            arrays["segment"] = video.segment.cpu().numpy()
        for layer, importance in outcome.importance.items():
            arrays[f"importance_layer{layer}"] = importance.cpu().numpy()
        return arrays


def _counts(counts: TokenCounts) -> list[int]:
    chosen = [counts.kept] if counts.by_question else counts.layers
    return [counts.total, counts.carried, *chosen]
