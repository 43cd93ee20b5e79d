"""What every method shares: the tokens of a video, where each one goes, and how that is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_extent
from vllm_prune.methods._device import true_places
from vllm_prune.methods._means import average_runs


@dataclass(frozen=True)
class VideoTokens:
    """The visual tokens of one video.

    features: [N, C], floating point, any memory layout.
    grid: [N, 3] int64, the (t, h, w) of each token; row-major (t, then h, then w) for an unpruned video.
    grid_thw: the extent (T, H, W) of the merged-token grid.
    """

    features: Tensor
    grid: Tensor
    grid_thw: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.is_floating_point():
            shape, dtype = tuple(self.features.shape), self.features.dtype
            raise ValueError(f"features: {dtype} {shape}; use a floating-point tensor of shape [tokens, channels]")
        if len(self.features) == 0 or self.features.shape[1] == 0:
            raise ValueError(f"features: shape {tuple(self.features.shape)}; use at least one token and one channel")
        if tuple(self.grid.shape) != (len(self.features), 3) or self.grid.dtype != torch.int64:
            raise ValueError(
                f"grid: {self.grid.dtype} {tuple(self.grid.shape)}; use int64 of shape [{len(self.features)}, 3]"
            )
        check_extent(self.grid_thw)

    @classmethod
    def from_features(cls, features: Tensor, grid_thw: tuple[int, int, int]) -> VideoTokens:
        """Tokens of an unpruned video: `features` [T*H*W, C] in row-major order.

        >>> VideoTokens.from_features(torch.zeros(4, 8), (2, 1, 2)).grid.tolist()
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
        """
        check_extent(grid_thw)
        frames, height, width = grid_thw
        if features.ndim == 2 and len(features) != frames * height * width:
            raise ValueError(
                f"features: {len(features)} tokens for grid_thw={grid_thw}; use {frames * height * width} tokens"
            )
        return cls(features, full_grid(grid_thw, features.device), (int(frames), int(height), int(width)))

    @property
    def num_tokens(self) -> int:
        """N, how many tokens there are."""
        return len(self.features)


def full_grid(grid_thw: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """[T*H*W, 3] int64: the (t, h, w) of every cell, row-major."""
    return torch.cartesian_prod(*(torch.arange(extent, device=device) for extent in grid_thw))


@dataclass(frozen=True)
class Assignment:
    """Where each of N tokens goes.

    slot: [N] int64, -1 for a dropped token, else its slot 0..K-1.
    anchor: [K] int64, strictly increasing: the token whose position the slot takes, itself a member of the slot.
    """

    slot: Tensor
    anchor: Tensor

    @property
    def num_slots(self) -> int:
        """K, how many tokens come out."""
        return len(self.anchor)

    def validate(self) -> None:
        """Raise ValueError unless slots 0..K-1 all have members and each anchor is a member of its own slot."""
        slot, anchor = self.slot, self.anchor
        if slot.ndim != 1 or anchor.ndim != 1 or slot.dtype != torch.int64 or anchor.dtype != torch.int64:
            raise ValueError("slot and anchor must be one-dimensional int64 tensors")
        if slot.numel() and not -1 <= int(slot.min()) <= int(slot.max()) < self.num_slots:
            last = self.num_slots - 1
            raise ValueError(f"slot: values {int(slot.min())}..{int(slot.max())}; use -1..{last}, one per anchor")
        if self.num_slots == 0:
            return
        if not 0 <= int(anchor.min()) <= int(anchor.max()) < len(slot):
            raise ValueError(f"anchor: values {int(anchor.min())}..{int(anchor.max())}; use 0..{len(slot) - 1}")
        if bool((anchor.diff() <= 0).any()):
            raise ValueError("anchor: not strictly increasing")
        if not torch.equal(slot[anchor], torch.arange(self.num_slots, device=slot.device)):
            raise ValueError("anchor: an anchor is not a member of its own slot")

    @classmethod
    def from_kept(cls, kept: Tensor, num_tokens: int) -> Assignment:
        """Keep the tokens at the distinct indices `kept` [K] (any order), drop the others.

        >>> Assignment.from_kept(torch.tensor([3, 0]), 4).slot.tolist()
        [0, -1, -1, 1]
        """
        anchor = kept.sort().values
        slot = anchor.new_full((num_tokens,), -1)
        slot[anchor] = torch.arange(len(anchor), device=anchor.device)
        return cls(slot, anchor)

    @classmethod
    def from_roots(cls, root: Tensor, count: int | None = None) -> Assignment:
        """Merge tokens that share a root: `root` [N] is -1 (dropped) or the index of the anchor, its own root.

        `count`: the number of anchors, if known; a GPU then need not be waited for.

        >>> Assignment.from_roots(torch.tensor([0, 3, -1, 3])).slot.tolist()
        [0, 1, -1, 1]
        """
        is_anchor = root == torch.arange(len(root), device=root.device)
        slot_of_anchor = is_anchor.cumsum(0) - 1
        slot = torch.where(root < 0, root, slot_of_anchor[root.clamp(min=0)])
        return cls(slot, is_anchor.nonzero().squeeze(1) if count is None else true_places(is_anchor, count))

    @classmethod
    def identity(cls, num_tokens: int, device: torch.device | str = "cpu") -> Assignment:
        """Every token keeps its own slot."""
        index = torch.arange(num_tokens, device=device)
        return cls(index, index)


@runtime_checkable
class Method(Protocol):
    """Decides where the tokens of one video go."""

    @property
    def name(self) -> str:
        """What the registry calls it."""
        ...

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots for the N tokens, 1 <= budget <= N."""
        ...


def compact(tokens: VideoTokens, assignment: Assignment) -> VideoTokens:
    """Apply an assignment: K tokens, each the mean of its members, at the grid cell of its anchor.

    The mean is accumulated in float32 (float64 features: in float64) and returned in the features' dtype; a slot with
    one member is bit-equal to it. The order of summation is fixed, so every rank of a server gets the same bits.
    A NaN or Inf in a member reaches the mean: methods ignore such tokens when they choose, nothing hides them.

    >>> tokens = VideoTokens.from_features(torch.tensor([[1.0], [3.0], [7.0]]), (3, 1, 1))
    >>> compact(tokens, Assignment(torch.tensor([0, 0, 1]), torch.tensor([0, 2]))).features.tolist()
    [[2.0], [7.0]]
    """
    slot, anchor = assignment.slot, assignment.anchor
    if len(slot) != tokens.num_tokens:
        raise ValueError(f"slot: {len(slot)} entries for {tokens.num_tokens} tokens")
    features = tokens.features[anchor]
    kept = slot.clamp(min=0)
    size = torch.zeros_like(anchor).scatter_add_(0, kept, (slot >= 0).long())
    is_shared = size > 1
    is_member = (slot >= 0) & is_shared[kept]
    num_members, num_shared = torch.stack((is_member.sum(), is_shared.sum())).tolist()  # one wait for a GPU
    if num_members:
        members = true_places(is_member, num_members)
        members = members[slot[members].argsort(stable=True)]
        slots = true_places(is_shared, num_shared)
        average_runs(tokens.features, members, size[slots], features, slots)
    return VideoTokens(features, tokens.grid[anchor], tokens.grid_thw)
