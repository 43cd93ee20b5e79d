"""VidCom2, video compression commander (Liu et al., EMNLP 2025, arXiv:2505.14454): keep what is unusual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import find_usable
from vllm_prune.methods._checks import check_budget, check_range, check_unpruned
from vllm_prune.methods._device import working_set
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import rank_descending
from vllm_prune.methods.base import Assignment, VideoTokens

_BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_CHANNELS_USED = 0.5  # the half that varies least
_TEMPERATURE = 0.01
_LEAST_NORM = 1e-12  # that a vector is divided by
_COPY_BYTES = 16 << 20  # of float32, which differences are made at a time


@dataclass(frozen=True, kw_only=True)
class VidCom2:
    """Keep the tokens least similar to the mean of the video and of their frame; unusual frames get a larger share.

    keep_ratio: 0 < keep_ratio <= 1 or None, the share of a frame's tokens that its part of the budget starts from. None
        takes budget / tokens. vLLM's VidCom2 starts from 1 - pruning_rate and rounds the count: give that to keep
        exactly the tokens it keeps.
    precise: compute in float32 whatever the dtype of the features; False computes in their own dtype as vLLM does.

    The budget decides how many stay: vLLM never goes below one per frame, this does. Ties keep the earlier token (vLLM:
    unspecified). Tokens with NaN or Inf, and zero vectors, count as the zero vector in means, and come last.
    """

    keep_ratio: float | None = None
    precise: bool = False
    name: ClassVar[str] = "vidcom2"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    needs_every_token: ClassVar[bool] = True
    sees_all_levels: ClassVar[bool] = True
    """Given the features for later layers, too, as vLLM's is."""

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_range("keep_ratio", self.keep_ratio, 0, 1, open_low=True)

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        quiet = select_quiet_channels(tokens.features, torch.float32 if self.precise else tokens.features.dtype)
        video = quiet.unflatten(0, (tokens.grid_thw[0], -1))
        to_video, to_frame = measure_likeness(video)
        usable = find_usable(tokens.features).view(video.shape[:2])
        likeness = (to_video + to_frame).masked_fill_(~usable, torch.inf)
        keep_ratio = self.keep_ratio or budget / tokens.num_tokens
        wanted = usable & (rank_descending(-likeness) < share_frames(to_video, keep_ratio)[:, None])
        return Assignment.from_kept(fit(wanted.flatten(), likeness.flatten(), budget), tokens.num_tokens)


def select_quiet_channels(features: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, C // 2]: the channels of `features` [N, C] that vary least, least first, a copy in `dtype`."""
    zeros = None
    variance = _variance(features, dtype, zeros)
    if not bool(variance.isfinite().all()):
        zeros = FiniteFeatures(features).norm == 0
        variance = _variance(features, dtype, zeros)
    used = max(1, int(features.shape[1] * _CHANNELS_USED))
    chosen = variance.topk(used, largest=False).indices
    quiet = torch.empty(len(features), used, dtype=dtype, device=features.device)
    for rows, into in zip(features.split(_rows(features)), quiet.split(_rows(features)), strict=True):
        into.copy_(rows.index_select(1, chosen))
    return quiet if zeros is None else quiet.masked_fill_(zeros[:, None], 0)


def _variance(features: Tensor, dtype: torch.dtype, zeros: Tensor | None) -> Tensor:
    """[C]: of each channel, computed in `dtype`, with zero vectors where `zeros` [N]."""
    if features.dtype == dtype and zeros is None:
        return features.var(dim=0, unbiased=False)
    found = []
    for part in features.split(_columns(features), dim=1):
        wide = part.to(dtype)
        found.append((wide if zeros is None else wide.masked_fill(zeros[:, None], 0)).var(dim=0, unbiased=False))
    return torch.cat(found)


def measure_likeness(video: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness [T, H*W] of each token of `video` [T, H*W, C] to the mean of the video, and to that of its frame.

    Leaves unit vectors in `video`.
    """
    parts = video.split(max(1, _rows(video) // video.shape[1]))
    for part in parts:
        part.div_(torch.linalg.vector_norm(part, dim=-1, keepdim=True).clamp_min_(_LEAST_NORM))
        if part.dtype == torch.float16:  # in which the least norm is 0
            part.nan_to_num_(0)
    # In half precision on a CPU `mean` makes a float32 copy of what it is given.
    centre = torch.cat([part.mean(dim=(0, 1), keepdim=True) for part in video.split(_columns(video), dim=2)], 2)
    to_video = torch.cat([_gaussian(part, centre) for part in parts])
    return to_video, torch.cat([_gaussian(part, part.mean(dim=1, keepdim=True)) for part in parts])


def _columns(features: Tensor) -> int:
    """How many channels of `features` [..., C] are worked on at a time."""
    return max(1, working_set(_COPY_BYTES, features.device) // (4 * (features.numel() // features.shape[-1])))


def _rows(features: Tensor) -> int:
    """How many rows of `features` [..., C] are worked on at a time."""
    return max(1, working_set(_COPY_BYTES, features.device) // (4 * features.shape[-1]))


def _gaussian(units: Tensor, centre: Tensor) -> Tensor:
    distance = ((units - centre) ** 2).sum(dim=-1)
    total = torch.zeros_like(distance)
    for bandwidth in _BANDWIDTHS:
        total += torch.exp(-distance / (2 * bandwidth))
    return total


def share_frames(likeness: Tensor, keep_ratio: float) -> Tensor:
    """[T] int64, 1 or more: the tokens each frame asks for, given `likeness` [T, H*W] to the mean of the video."""
    unusual = -likeness.mean(dim=-1)
    weight = torch.softmax((unusual - unusual.max()) / _TEMPERATURE, dim=0)
    ratio = (keep_ratio * (1 + weight - weight.mean())).clamp(max=1)
    return (ratio * likeness.shape[1]).round().long().clamp(1, likeness.shape[1])


def fit(wanted: Tensor, likeness: Tensor, budget: int) -> Tensor:
    """[budget] int64: the wanted tokens, less those most like the rest, or more of those least like it.

    >>> fit(torch.tensor([True, True, False]), torch.tensor([0.9, 0.1, 0.0]), 1).tolist()
    [1]
    """
    order = likeness.argsort(stable=True)
    wanted_first = wanted[order].logical_not().to(torch.uint8).argsort(stable=True)
    return order[wanted_first][:budget]
