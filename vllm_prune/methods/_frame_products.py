"""Products of the tokens of each frame with each other and with those of the frame before, some frames at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._dpc_knn import assign_to_centres, distances_from_products, pick_centres
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert

_PIECE_BYTES = 16 << 20  # of features whose products are made at a time
_KEPT_BYTES = 256 << 20  # of products that are kept for a second look
_LAST = -1e3  # below all distances, and above what is picked


class FrameProducts:
    """The tokens of an unpruned video, and the products of each frame's, which serve to pick and later to cluster.

    features: [T*H*W, C].
    """

    def __init__(self, features: FiniteFeatures, frames: int) -> None:
        self.features = features
        self.norm = features.norm.view(frames, -1)
        cells = self.norm.shape[1]
        at_once = max(1, working_set(_PIECE_BYTES, self.norm.device) // (4 * cells * features.channels))
        self._pieces = [slice(start, min(start + at_once, frames)) for start in range(0, frames, at_once)]
        self._keep = 4 * frames * cells * cells <= _KEPT_BYTES
        self._kept: dict[int, Tensor] = {}

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Some frames, and their products [B, H*W, H*W], which are not to be written to."""
        for piece in self._pieces:
            product = self._kept.get(piece.start)
            if product is None:
                video = self._video(piece)
                product = video @ video.mT
                if self._keep:
                    self._kept[piece.start] = product
            yield piece, product

    def _video(self, piece: slice) -> Tensor:
        """[B, H*W, C]: some frames."""
        cells = self.norm.shape[1]
        return self.features.rows(slice(piece.start * cells, piece.stop * cells)).unflatten(0, (-1, cells))

    def link(self, piece: slice, closed: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar token of the frame before that is not `closed` [T, H*W], for all tokens of some frames.

        Returns cosine similarity and the place in the frame before, each [B, H*W]; -Inf where all there are closed.
        The first of the video's frames has none before it, and is left out. Ties keep the earlier token.
        """
        now, before = slice(max(1, piece.start), piece.stop), slice(max(1, piece.start) - 1, piece.stop - 1)
        video = self._video(slice(before.start, now.stop))
        likeness = video[1:] @ video[:-1].mT
        likeness.mul_(invert(self.norm[before])[:, None, :])
        likeness.add_(torch.zeros_like(self.norm[before]).masked_fill_(closed[before], -torch.inf)[:, None, :])
        value, place = likeness.max(2)
        return value * invert(self.norm[now]), place

    def cluster(self, member: Tensor, quota: Tensor, k: int) -> Tensor:
        """DPC-KNN within frames: the centre [T, H*W] int64 that each `member` [T, H*W] bool belongs to, -1 for others.

        quota: [T] int64, clusters of each frame, at most its members.
        """
        frames, cells = member.shape
        centre = torch.empty_like(member, dtype=torch.int64)
        for piece, product in self.pieces():
            distance = distances_from_products(product, member[piece], self.features.channels)
            is_centre = pick_centres(distance, member[piece], quota[piece], k)
            centre[piece] = assign_to_centres(distance, is_centre)
        centre += (torch.arange(frames, device=centre.device) * cells)[:, None]
        return centre.masked_fill_(~member, -1)


def pick_diverse(
    products: FrameProducts, piece: slice, product: Tensor, quota: Tensor, weight: Tensor | None
) -> Tensor:
    """[B, H*W] bool: `quota` [B] tokens of each of some frames.

    Each is as far (1 - cosine) from those picked before as can be. The first is the heaviest, without weights the one
    most like the sum of all unit vectors of its frame. weight: [B, H*W] in (0, 1], which distances are multiplied by,
    or None. Ties keep the earlier token; zero vectors come last.
    """
    inverse = invert(products.norm[piece])
    frame = torch.arange(len(product), device=product.device)
    most = int(quota.max())
    step_of = torch.full_like(inverse, most, dtype=torch.int64)
    is_zero = inverse == 0
    cosine = product * inverse[:, :, None] * inverse[:, None, :]
    score = (cosine.sum(2) if weight is None else weight).masked_fill(is_zero, _LAST)
    left = torch.full_like(inverse, torch.inf).masked_fill_(is_zero, _LAST)
    for step in range(most):
        pick = score.argmax(1)
        step_of[frame, pick] = step
        distance = 1 - cosine[frame, pick]
        left = torch.minimum(left, distance if weight is None else distance * weight)
        left[frame, pick] = -torch.inf
        score = left
    return step_of < quota[:, None]
