"""What the cheaper modes of the DPP lose: the log-determinant of their choice beside that of the exact one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vllm_prune.bench.methods.runner import Size, make_video
from vllm_prune.methods import VideoTokens
from vllm_prune.methods.dpp import DPP, normalize_relevance

_FRAMES = (1, 4, 16)
_MODES: tuple[Literal["exact", "greedy", "lowrank"], ...] = ("exact", "greedy", "lowrank")


def compare(size: Size, still: float, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of log-determinants (natural logarithm, float64) for segments of 1, 4 and 16 frames of a video of `size`.

    Each is one segment, with a random relevance, kept to the share of `size`; beside the modes stand the most relevant
    tokens, random and evenly spaced ones.
    """
    for frames in _FRAMES:
        video = make_video(replace(size, frames=frames), "cpu", "float32", still, seed)
        relevance = torch.rand(video.num_tokens, generator=torch.Generator().manual_seed(seed))
        count = frames * size.keep_per_frame
        values = {name: log_determinant(video, relevance, kept) for name, kept in _choices(video, relevance, count)}
        yield {"tokens": video.num_tokens, "kept": count, **values}


def _choices(video: VideoTokens, relevance: Tensor, count: int) -> Iterator[tuple[str, Tensor]]:
    for mode in _MODES:
        method = DPP(mode=mode)
        yield mode, method.assign(video, count, relevance).anchor
    yield "top relevance", relevance.topk(count).indices
    yield "random", torch.randperm(video.num_tokens, generator=torch.Generator().manual_seed(0))[:count]
    yield "uniform", torch.arange(count) * video.num_tokens // count


def log_determinant(video: VideoTokens, relevance: Tensor, kept: Tensor) -> float:
    """Log-determinant of the kernel relevance x cosine x relevance of the tokens `kept`, in float64."""
    units = torch.nn.functional.normalize(video.features[kept].double(), dim=1)
    weight = normalize_relevance(relevance, video.num_tokens, relevance.double())[kept].sqrt()
    return float(torch.linalg.slogdet(weight[:, None] * (units @ units.mT) * weight).logabsdet)
