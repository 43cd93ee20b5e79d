"""Straightforward versions to compare with: one frame or segment after the other, as one would first write them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vllm_prune.methods import VideoTokens
from vllm_prune.methods.prunevid import PruneVid


def by_frame(tokens: VideoTokens) -> Tensor:
    """[T, H*W, C], a view."""
    return tokens.features.view(tokens.grid_thw[0], -1, tokens.features.shape[1])


def gram_products(tokens: VideoTokens) -> Tensor:
    """[T, n, n]: the products that every method comparing tokens within frames has to form."""
    frames = by_frame(tokens)
    return frames @ frames.mT


def distance_matrices(tokens: VideoTokens) -> Tensor:
    """[T, n, n]: distances within frames, by torch.cdist."""
    frames = by_frame(tokens)
    return torch.cdist(frames, frames)


def dpp(tokens: VideoTokens, budget: int) -> list[Tensor]:
    """Greedy MAP of Chen et al. 2018 (their published algorithm), segment by segment."""
    frames = by_frame(tokens)
    return [_dpp_of_segment(frame, budget // len(frames)) for frame in frames]


def _dpp_of_segment(features: Tensor, count: int) -> Tensor:
    units = normalize(features.float(), dim=1)
    kernel = units @ units.T
    columns = torch.zeros(count, len(features), device=features.device)
    left = kernel.diagonal().clone()
    picked: list[int] = []
    for step in range(count):
        pick = int(left.argmax())
        picked.append(pick)
        column = (kernel[pick] - columns[:step, pick] @ columns[:step]) / left[pick].sqrt()
        columns[step] = column
        left -= column.square()
        left[pick] = -torch.inf
    return torch.tensor(picked)


def prunevid(tokens: VideoTokens, budget: int) -> list[Tensor]:
    """Stage 1 with loops over segments and frames; segments are those of our own method."""
    plan = PruneVid().plan(tokens)
    frames = by_frame(tokens)
    keep_ratio = budget / int(plan.group_sizes.sum())
    centres = []
    for segment in range(len(plan.static)):
        members = frames[plan.segment == segment]
        units = normalize(members.float(), dim=2)
        count = len(units)
        alike = (units.sum(0).square().sum(1) - count) / max(1, count * (count - 1))
        static = (alike > PruneVid().tau) & (count > 1)
        groups = [members[:, static].float().mean(0), *(frame[~static].float() for frame in members)]
        centres += [_dpc_knn(group, max(1, round(len(group) * keep_ratio))) for group in groups if len(group)]
    return centres


def _dpc_knn(points: Tensor, count: int, k: int = 7) -> Tensor:
    distance = torch.cdist(points, points) / points.shape[1] ** 0.5
    density = (-distance.topk(min(k, len(points)), dim=1, largest=False).values.square().mean(1)).exp()
    nearest = distance.masked_fill(density[None] <= density[:, None], torch.inf).amin(1)
    separation = torch.where(nearest.isinf(), distance.max(), nearest)
    centre = (density * separation).topk(count).indices
    return centre[distance[:, centre].argmin(1)]


def tome(tokens: VideoTokens, budget: int) -> list[Tensor]:
    """Bipartite soft matching, frame by frame, with sums scattered as in the published description."""
    frames = by_frame(tokens)
    return [_tome_of_frame(frame.float(), budget // len(frames)) for frame in frames]


def _tome_of_frame(sums: Tensor, count: int) -> Tensor:
    while len(sums) > count:
        units = normalize(sums, dim=1)
        best, target = (units[0::2] @ units[1::2].T).max(1)
        order = best.argsort(descending=True)
        merges = min(len(sums) - count, len(sums) // 2)
        source, stay = order[:merges], order[merges:]
        odd = sums[1::2].clone().index_add_(0, target[source], sums[0::2][source])
        sums = torch.cat((sums[0::2][stay], odd))
    return sums


def vllm_mask(name: str, tokens: VideoTokens, budget: int) -> Callable[[], Tensor] | None:
    """vLLM's own `compute_retention_mask` of "evs" or "vidcom2" at this budget; None if vLLM is not installed."""
    module = _load_vllm_file(name)
    if module is None:
        return None
    rate = 1 - budget / tokens.num_tokens
    return lambda: module.compute_retention_mask(tokens.features, tokens.grid_thw, 1, rate)


def _load_vllm_file(name: str) -> ModuleType | None:
    """The file alone: importing its package starts half of vLLM."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], "multimodal", "video_prune", f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"vllm_{name}", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
