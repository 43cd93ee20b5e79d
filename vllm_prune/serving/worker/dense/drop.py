"""Which dense rows stay behind a pruning layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_prune.serving.worker.dense.choose import choose_tokens, measure_importance
from vllm_prune.serving.worker.dense.rows import DenseRows, LiveRequest
from vllm_prune.serving.worker.dense.step import DenseRequest, DenseStep, VideoRows
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.upload import upload

ContextKeys = Callable[[int, DenseRequest], torch.Tensor]
"""Keys [context, G, D] that a request has in the paged cache of a layer."""


class RowDropper:
    """Lets the questions of one step choose, and remembers the importance they chose by."""

    def __init__(self, step: DenseStep, depth: int, context_keys: ContextKeys) -> None:
        """`depth`: layers of the decoder."""
        self._schedule = _pruning_schedule(step, depth)
        self._context_keys = context_keys
        self.importance: dict[VideoRows, dict[int, torch.Tensor]] = {}
        """By pruning layer, of the tokens that were left before its choice."""

    @property
    def last_layer(self) -> int:
        """The last pruning layer of any video of the step."""
        return max(self._schedule)

    def prunes_at(self, layer: int) -> bool:
        """Whether any video loses tokens behind `layer`."""
        return layer in self._schedule

    def choose(
        self, layer: int, rows: DenseRows, attention: Any, qk: tuple[torch.Tensor, torch.Tensor], hidden: torch.Tensor
    ) -> torch.Tensor:
        """Rows that stay, [m], increasing, as `rows` numbers them.

        Args:
            layer: A pruning layer.
            rows: The dense rows that are left, n of them.
            attention: The layer's attention module.
            qk: Queries [n, H * D] and keys [n, G * D] of the dense rows, this rank's heads.
            hidden: Hidden states behind the layer, [n, C].
        """
        query = qk[0].unflatten(1, (attention.num_heads, attention.head_dim))
        key = qk[1].unflatten(1, (attention.num_kv_heads, attention.head_dim))
        keep = torch.ones(len(rows.alive), dtype=torch.bool)
        all_chosen = []
        for live in rows.requests():
            pruned = [video for video in live.request.videos if video in self._schedule[layer]]
            if not pruned:
                continue
            keys = torch.cat((self._context_keys(layer, live.request), key[live.start : live.end]))
            for video in pruned:
                importance = self._measure(rows, live, video, query, keys, attention.scaling)
                self.importance.setdefault(video, {})[layer] = importance
                first, last = rows.video_range(live, video)
                left = upload(rows.tokens_left(live, video), importance.device)
                count = self._schedule[layer][video]
                chosen = choose_tokens(video.video, left, importance, hidden[first:last], count)
                check_same_on_ranks(chosen, "choice behind layer %d, video of %d tokens", layer, last - first)
                keep[first:last] = False
                all_chosen.append(first + chosen)
        keep[torch.cat(all_chosen).cpu()] = True  # the one wait for the device behind a layer
        return keep.nonzero().squeeze(1)

    def _measure(
        self,
        rows: DenseRows,
        live: LiveRequest,
        video: VideoRows,
        query: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Importance of the tokens that a video has left. `keys`: all of its request's, the context's first."""
        question = upload(rows.question(live, video), query.device)
        to_key = live.request.context - live.start
        first, last = rows.video_range(live, video)
        tokens = torch.arange(first, last, device=query.device) + to_key
        config = video.video.info.config
        return measure_importance(query[question], question + to_key + 1, keys, tokens, scaling, config)


def _pruning_schedule(step: DenseStep, depth: int) -> dict[int, dict[VideoRows, int]]:
    """For every pruning layer, which videos it prunes and to how many tokens."""
    schedule: dict[int, dict[VideoRows, int]] = {}
    for request in step.requests:
        for rows in request.videos:
            info = rows.video.info
            for layer, count in zip(info.config.resolved_layers(depth), info.counts.layers, strict=True):
                schedule.setdefault(layer, {})[rows] = count
    return schedule
