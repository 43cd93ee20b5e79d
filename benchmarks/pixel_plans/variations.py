"""What is compared at equal counts: ways to leave as many tokens of a video as stage 1 on pixels does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods.still_cells import StillPlan, stand_ins
from vllm_prune.serving.api import pixel_plan, video_pixels

from .planned import NAME as PLANNED

LEVELS: dict[str, dict[str, Any]] = {
    "content": {"stage1": {"where": "processor", "cluster_ratio": 1.0}},
    "25%": {"stage1": {"where": "processor"}, "keep_ratio": 0.25},
    "12%": {"stage1": {"where": "processor"}, "keep_ratio": 0.12},
}
"""How much is kept: all that moves, as it is; or at the most a share, by merging in space too."""

KINDS = {
    "pixels": "still cells never encoded; a ceiling leaves out more cells",
    "pixels, mean": "the same, every encoded cell being the mean over time of those it stands for",
    "pixels, merged only": "the same, but a ceiling encodes as many cells and merges more",
    "pixels, segments": "cells compared with the first version in their segment",
    "dropped after encoding": "the cells of `pixels`, everything encoded",
    "stage 1 on features": "after the encoder, as the presets have it",
    "EVS": "vLLM's EVS as a method of this package, at each video's own count",
    "uniform": "evenly spaced",
    "random": "a draw of its own for every video",
}
ROWS = {
    "pixels, mean": ("content",),
    "pixels, segments": ("content",),
    "pixels, merged only": ("25%", "12%"),  # without a ceiling it is the same
}
"""The levels of those that are not measured at all of them."""

_OWN_KEYS = {"pixels, mean": 1e-9, "pixels, merged only": 2e-9}
"""Added to `tau`, so that vLLM's caches tell variations of the code apart as they do configurations."""


@dataclass(frozen=True)
class Variation:
    """One row of the table; stands in for a configuration where answers are kept and named."""

    kind: str
    level: str

    def to_json(self) -> str:
        """What tells it from the others."""
        base = {} if self.kind == "everything" else LEVELS[self.level]
        return json.dumps({"kind": self.kind, "counts_of": base}, sort_keys=True)

    @property
    def base(self) -> PruneConfig:
        """The configuration of `pixels`, whose counts and cells the others take."""
        return PruneConfig.parse(LEVELS[self.level])

    def request(self, plan: StillPlan, seed: int) -> dict[str, Any]:
        """What a request's `prune` key holds for a video with that `plan`."""
        base = self.base
        stage1 = base.stage1
        assert stage1 is not None
        count = plan_counts(base, plan.encoded.numel(), plan.per_frame).kept
        if self.kind == "pixels" or self.kind in _OWN_KEYS:
            fields = base.to_dict()
            fields["stage1"]["tau"] += _OWN_KEYS.get(self.kind, 0.0)
            return fields
        if self.kind == "pixels, segments":
            fields = {**stage1.to_dict(), "still": "segments", "min_tokens": count, "max_tokens": count}
            return {"stage1": fields}
        if self.kind == "dropped after encoding":
            cells = plan.encoded.flatten().nonzero().squeeze(1).tolist()
            params = {"cells": cells, "cluster_ratio": stage1.cluster_ratio}
            return {"method": PLANNED, "params": params, "target_token_num": count}
        if self.kind == "stage 1 on features":
            return {"stage1": {"cluster_ratio": stage1.cluster_ratio}, "target_token_num": count}
        params = {"seed": seed} if self.kind == "random" else {}
        return {"method": self.kind.lower(), "params": params, "target_token_num": count}

    @contextlib.contextmanager
    def code(self) -> Iterator[None]:
        """The changes to the code that the variation is."""
        with contextlib.ExitStack() as stack:
            if self.kind == "pixels, mean":
                stack.enter_context(patch.object(video_pixels, "keep_encoded", keep_means))
            if self.kind == "pixels, merged only":
                stack.enter_context(patch.object(pixel_plan, "lower_to", lambda plan, *_: plan))
            yield


def keep_means(patches: torch.Tensor, plan: StillPlan, merge: int) -> torch.Tensor:
    """As `keep_encoded`, each cell being the mean over time of all that it stands for."""
    num_cells, per_frame = plan.encoded.numel(), plan.encoded.shape[1]
    source = (stand_ins(plan.encoded) * per_frame + torch.arange(per_frame)).flatten()
    by_cell = patches.view(num_cells, -1).float()
    total = torch.zeros_like(by_cell).index_add_(0, source, by_cell)
    mean = total / torch.bincount(source, minlength=num_cells).clamp(min=1)[:, None]
    return mean[plan.encoded.flatten()].to(patches.dtype).view(-1, patches.shape[1])
