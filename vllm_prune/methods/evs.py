"""EVS, efficient video sampling (Bagrov et al., NVIDIA, arXiv:2510.14624): keep what changed since the last frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import find_usable
from vllm_prune.methods._checks import check_budget, check_unpruned
from vllm_prune.methods._device import working_set
from vllm_prune.methods._numerics import invert
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best

_ONE_THREAD_BYTES = 4 << 20  # of copies at a time: they stay in the processor's cache
_THREADS_BYTES = 32 << 20  # threads wait for each other after each piece, long where others use the processors too
_FIRST_FRAME = 255.0  # above any dissimilarity: the first frame has nothing before it, so it comes first


@dataclass(frozen=True, kw_only=True)
class EVS:
    """Keep the tokens least similar (cosine) to the token at the same place in the frame before.

    precise: compute in float32 whatever the dtype of the features. False computes in their own dtype as vLLM's EVS
        does, and keeps exactly the tokens it keeps; bfloat16 then ties many of them, which keeps the earlier frames.

    The budget decides how many stay: vLLM never goes below one frame, this does. Tokens with NaN or Inf, and zero
    vectors, come last (in vLLM many come first); a token that has one before it counts as quite unlike it.
    """

    precise: bool = True
    name: ClassVar[str] = "evs"
    no_images: ClassVar[str] = (
        "it keeps the first frame and then what changes, so of a single picture it would keep the top rows"
    )
    needs_every_token: ClassVar[bool] = True
    sees_all_levels: ClassVar[bool] = True
    """Given the features for later layers, too, as vLLM's is."""

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        video = tokens.features.reshape(tokens.grid_thw[0], -1, tokens.features.shape[1])
        change = measure_change(video) if self.precise else measure_change_as_vllm(video)
        return Assignment.from_kept(best(change.flatten(), budget), tokens.num_tokens)


def measure_change(video: Tensor) -> Tensor:
    """[T, H*W] float: 1 - cosine similarity of each cell of `video` [T, H*W, C] to the frame before.

    In float32 (float64 stays). 255 in the first frame, 1 after a broken token, -1 for one.
    """
    wide = torch.promote_types(video.dtype, torch.float32)
    at_once = _frames_at_once(video)
    change = torch.full(video.shape[:2], _FIRST_FRAME, dtype=wide, device=video.device)
    norm = torch.empty_like(change)
    for start in range(0, len(video), at_once):
        first, stop = max(0, start - 1), min(len(video), start + at_once)
        part = video[first:stop].to(wide)
        norm[first:stop] = torch.linalg.vector_norm(part, dim=2)
        inverse = invert(norm[first:stop])
        change[first + 1 : stop] = 1 - (part[1:] * part[:-1]).sum(2) * inverse[1:] * inverse[:-1]
    return change.nan_to_num_(1).masked_fill_(~((norm > 0) & norm.isfinite()), -1)


def measure_change_as_vllm(video: Tensor) -> Tensor:
    """`measure_change` in the dtype of `video`, with the very roundings of vLLM's EVS."""
    first = torch.full_like(video[:1, :, 0], _FIRST_FRAME)
    at_once = _frames_at_once(video)
    pairs = zip(video[1:].split(at_once), video[:-1].split(at_once), strict=True)
    change = [1 - torch.nn.functional.cosine_similarity(now, before, dim=-1) for now, before in pairs]
    usable = find_usable(video.flatten(0, 1)).view(video.shape[:2])
    return torch.cat((first, *change)).nan_to_num(1).masked_fill_(~usable, -1)


def _frames_at_once(video: Tensor) -> int:
    cpu_bytes = _ONE_THREAD_BYTES if torch.get_num_threads() == 1 else _THREADS_BYTES
    return max(1, working_set(cpu_bytes, video.device) // (4 * video[0].numel()))
