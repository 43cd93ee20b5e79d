"""VidCom2, video compression commander (Liu et al., EMNLP 2025, arXiv:2505.14454): keep what is unusual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import find_usable
from vllm_prune.methods._checks import check_budget, check_range, check_unpruned
from vllm_prune.methods._numerics import rank_descending, to_finite
from vllm_prune.methods.base import Assignment, VideoTokens

_BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_CHANNELS_USED = 0.5  # the half that varies least
_TEMPERATURE = 0.01


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
        features = tokens.features.float() if self.precise else tokens.features
        video = select_quiet_channels(features).view(tokens.grid_thw[0], -1, max(1, features.shape[1] // 2))
        to_video, to_frame = measure_likeness(video)
        usable = find_usable(tokens.features).view(video.shape[:2])
        likeness = (to_video + to_frame).masked_fill_(~usable, torch.inf)
        keep_ratio = self.keep_ratio or budget / tokens.num_tokens
        wanted = usable & (rank_descending(-likeness) < share_frames(to_video, keep_ratio)[:, None])
        return Assignment.from_kept(fit(wanted.flatten(), likeness.flatten(), budget), tokens.num_tokens)


def select_quiet_channels(features: Tensor) -> Tensor:
    """[N, C // 2]: the channels of `features` [N, C] that vary least, least first."""
    variance = features.var(dim=0, unbiased=False)
    if not bool(variance.isfinite().all()):
        features = to_finite(features)[0].to(features.dtype)
        variance = features.var(dim=0, unbiased=False)
    used = max(1, int(features.shape[1] * _CHANNELS_USED))
    return features.index_select(1, variance.topk(used, largest=False).indices)


def measure_likeness(video: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness [T, H*W] of each token of `video` [T, H*W, C] to the mean of the video, and to that of its frame."""
    units = torch.nn.functional.normalize(video, dim=-1)
    if units.dtype == torch.float16:  # in which the smallest norm that `normalize` divides by is 0
        units = units.nan_to_num_(0)
    return _gaussian(units, units.mean(dim=(0, 1), keepdim=True)), _gaussian(units, units.mean(dim=1, keepdim=True))


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
