"""Why a request was refused, in few words: the label `reason` of `vllm_prune:refusals_total`."""

from __future__ import annotations

import dataclasses
import re

from vllm_prune.config import FramesConfig, ImageConfig, PruneConfig, PruneConfigError, Stage1Config

OVERRIDE = "override"
MISPLACED = "misplaced"
OTHER = "other"
_FIELDS = frozenset(
    {
        *(field.name for field in dataclasses.fields(PruneConfig)),
        *(f"stage1.{field.name}" for field in dataclasses.fields(Stage1Config)),
        *(f"image.{field.name}" for field in dataclasses.fields(ImageConfig)),
        *(f"frames.{field.name}" for field in dataclasses.fields(FramesConfig)),
        *("prune", "preset", "enable_stage1", "enable_pruning", "pruning_layer"),
        *("input_tokens", "max_num_batched_tokens", "dense_tokens", "video_url"),
    }
)


def reason_of(error: PruneConfigError) -> str:
    """The field that the message begins with; "override" for what the server's policy forbids; "misplaced"; or "other".

    >>> reason_of(PruneConfigError("keep_ratio=3: must be above 0 and at most 1"))
    'keep_ratio'
    >>> reason_of(PruneConfigError("prune='baseline': changes stage1; start it with --prune-override any"))
    'override'
    >>> reason_of(PruneConfigError("frames.tokens=3: 2 frames of this video keep 4 tokens"))
    'frames.tokens'
    """
    message = str(error)
    if "--prune-override" in message:
        return OVERRIDE
    if "nothing reads it there" in message:
        return MISPLACED
    found = re.match(r"[\w.]+", message)
    return found.group() if found and found.group() in _FIELDS else OTHER
