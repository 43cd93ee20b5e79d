"""EVS, efficient video sampling (Bagrov et al., NVIDIA, arXiv:2510.14624): keep what changed since the last frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_unpruned
from vllm_prune.methods._device import working_set
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best

_COPY_BYTES = 4 << 20  # cosine_similarity makes several copies: in pieces they stay in the processor's cache
_FIRST_FRAME = 255.0  # above any dissimilarity: the first frame has nothing before it, so it comes first


@dataclass(frozen=True, kw_only=True)
class EVS:
    """Keep the tokens least similar (cosine) to the token at the same place in the frame before.

    precise: compute in float32 whatever the dtype of the features. False computes in their own dtype as vLLM's EVS
        does, and keeps exactly the tokens it keeps; bfloat16 then ties many of them, which keeps the earlier.

    The budget decides how many stay: vLLM never goes below one frame, this does. NaN or Inf resembles nothing.
    """

    precise: bool = False
    name: ClassVar[str] = "evs"
    needs_every_token: ClassVar[bool] = True
    sees_all_levels: ClassVar[bool] = True
    """Given the features for later layers, too, as vLLM's is."""

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        features = tokens.features.float() if self.precise else tokens.features
        change = measure_change(features.reshape(tokens.grid_thw[0], -1, features.shape[1]))
        return Assignment.from_kept(best(change.flatten(), budget), tokens.num_tokens)


def measure_change(video: Tensor) -> Tensor:
    """[T, H*W]: 1 - cosine similarity of each cell of `video` [T, H*W, C] to the frame before."""
    first = torch.full_like(video[:1, :, 0], _FIRST_FRAME)
    at_once = max(1, working_set(_COPY_BYTES, video.device) // (video[0].numel() * video.element_size()))
    pairs = zip(video[1:].split(at_once), video[:-1].split(at_once), strict=True)
    change = [1 - torch.nn.functional.cosine_similarity(now, before, dim=-1) for now, before in pairs]
    return torch.cat((first, *change)).nan_to_num(1)
