"""How far a selector's scores are from the teacher's attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_prune.budget import count_kept
from vllm_prune.methods.attention_importance import select_top

TOP_SHARE = 0.12
"""Of the tokens: those that the teacher would keep."""
_TOP_WEIGHT = 2.0


def distillation_loss(scores: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses, means over questions.

    KL divergence of softmax(scores) from the importance, normalised to sum 1; and the binary cross entropy of the
    scores as logits of being among the teacher's top tokens.

    Args:
        scores: [Q, N].
        importance: [Q, N], 0 or more.
    """
    truth = importance / importance.sum(-1, keepdim=True).clamp_min(1e-12)
    divergence = F.kl_div(scores.log_softmax(-1), truth, reduction="none").sum(-1).mean()
    top = torch.zeros_like(scores).scatter(1, importance.topk(_top_count(importance), -1).indices, 1.0)
    return divergence, F.binary_cross_entropy_with_logits(scores, top)


def total(divergence: Tensor, top: Tensor) -> Tensor:
    """What is minimised."""
    return divergence + _TOP_WEIGHT * top


def top_recall(scores: Tensor, importance: Tensor) -> list[float]:
    """Of each question, the share of the teacher's top tokens that are among as many top scores."""
    count = _top_count(importance)
    pairs = zip(scores, importance, strict=True)
    return [
        torch.isin(select_top(wanted, count), select_top(given, count)).float().mean().item() for given, wanted in pairs
    ]


def top_mass(importance: Tensor) -> list[float]:
    """Of each question, the share of the teacher's attention that its top tokens get. `importance`: [Q, N]."""
    top = importance.topk(_top_count(importance), -1).values.sum(-1)
    shares: list[float] = (top / importance.sum(-1).clamp_min(1e-12)).tolist()
    return shares


def _top_count(importance: Tensor) -> int:
    return count_kept(importance.shape[1], TOP_SHARE)
