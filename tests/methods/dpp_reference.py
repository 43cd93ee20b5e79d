"""Greedy MAP of a determinantal point process in float64, as the papers define it."""

from __future__ import annotations

import torch

from vllm_prune.methods.dpp import normalize_relevance


def kernel_of(features: torch.Tensor, relevance: torch.Tensor | None) -> torch.Tensor:
    """relevance x cosine x relevance in float64."""
    units = torch.nn.functional.normalize(features.double(), dim=1)
    weight = normalize_relevance(relevance, len(features), features.double()).sqrt()
    return weight[:, None] * (units @ units.T) * weight


def textbook(kernel: torch.Tensor, allowed: torch.Tensor, budgets: torch.Tensor) -> list[int]:
    """Greedy MAP by determinants: no update formulas, one group at a time. The first of equals is nearest the mean."""
    cosines = kernel / kernel.diagonal().sqrt().outer(kernel.diagonal().sqrt())
    picked: list[int] = []
    for group, budget in enumerate(budgets.tolist()):
        mine: list[int] = []
        members = (allowed == group).nonzero().squeeze(1).tolist()
        for _ in range(budget):
            rest = [i for i in members if i not in mine]
            near = cosines[:, members].sum(1) if not mine else torch.zeros(len(kernel))
            mine.append(max(rest, key=lambda i: (round(log_det(kernel, [*mine, i]), 9), round(float(near[i]), 9), -i)))
        picked += mine
    return sorted(picked)


def log_det(kernel: torch.Tensor, picked: list[int]) -> float:
    return float(torch.linalg.slogdet(kernel[picked][:, picked]).logabsdet)


def cholesky(kernel: torch.Tensor, count: int) -> list[int]:
    """Greedy MAP by the updates of Chen et al. 2018; without a relevance the first pick is nearest the mean."""
    left, columns = kernel.diagonal().clone(), kernel.new_zeros(count, len(kernel))
    picked: list[int] = []
    for step in range(count):
        near = kernel.sum(1).masked_fill(left < left.max() - 1e-12, -torch.inf)
        pick = int((left if step else near).argmax())
        columns[step] = (kernel[pick] - columns[:step, pick] @ columns[:step]) / left[pick].sqrt()
        left -= columns[step].square()
        left[pick] = -torch.inf
        picked.append(pick)
    return picked
