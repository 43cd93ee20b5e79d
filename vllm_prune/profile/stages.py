"""The stages of a request, and the places in the code at which they begin and end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm_prune.profile.timers import Timers

DECODE_VIDEO = "decode the video"
PREPROCESS = "preprocess"
PLAN = "stage 1 on pixels"
ENCODER = "vision encoder"
STAGE1 = "stage 1, selection"
DENSE = "dense prefix"
CHOICE = "importance, choice"
COMPACT = "stage 3: compaction"
PREFILL = "rest of the prefill"
DECODE = "decode"
HEAD = "output head"
OTHER = "other"
"""Scheduling, sampling, tokens to text: what is between the stages."""

STAGES = (*(DECODE_VIDEO, PREPROCESS, PLAN, ENCODER, STAGE1, DENSE, CHOICE, COMPACT, PREFILL, DECODE, HEAD, OTHER),)
"""In the order of a request."""


_PLANNING = ("plan_video", "describe_video", "plan_cells", "keep_cells", "keep_encoded")
"""What `video_pixels` calls for a plan, apart from the preprocessing of the pixels that it is made of."""


@contextlib.contextmanager
def timed_stages(timers: Timers, model: Any) -> Iterator[None]:
    """Times the stages of every request that `model`, a pruning variant in this process, computes."""
    from vllm_prune.serving.api import video_pixels
    from vllm_prune.serving.api.processor import PruningProcessorMixin
    from vllm_prune.serving.worker.dense.dense_layers import DenseLayers
    from vllm_prune.serving.worker.dense.drop import RowDropper
    from vllm_prune.serving.worker.dense.long_prefix import LongPrefix

    seams: list[tuple[Any, str, Any]] = [
        (PruningProcessorMixin, "apply", PREPROCESS),
        *((video_pixels, name, PLAN) for name in _PLANNING),
        (model, "embed_multimodal", ENCODER),
        (model, "prune_video", _if_pruned),
        (model, "pack_videos", _if_any_pruned),
        (DenseLayers, "_run_dense_layer", DENSE),
        (LongPrefix, "add", DENSE),
        (RowDropper, "choose", CHOICE),
        (DenseLayers, "_write_cache", COMPACT),
        (model, "forward", _kind_of_step),
        (model, "compute_logits", HEAD),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, stage in seams:
            own = vars(owner).get(name)
            setattr(owner, name, timers.timed(stage, getattr(owner, name)))
            stack.callback(_put_back, owner, name, own)
        yield


def _put_back(owner: Any, name: str, own: Any) -> None:
    """What `owner` itself had under `name`; None: nothing, it was inherited."""
    if own is None:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


def _if_pruned(features: Any, spec: Any, *args: Any) -> str | None:
    return None if spec.keeps_all else STAGE1


def _if_any_pruned(videos: Any) -> str | None:
    """Of a video that keeps everything there are features here, and nothing is done to them."""
    from vllm_prune.serving.worker.encoder_rows import SelectedVideo

    return STAGE1 if any(isinstance(video, SelectedVideo) for video in videos) else None


def _kind_of_step(input_ids: Any, positions: Any, *args: Any, **kwargs: Any) -> str:
    """One request is computed at a time: a step of one row is a decoding step."""
    return DECODE if positions.shape[-1] == 1 else PREFILL
