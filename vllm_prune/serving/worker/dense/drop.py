"""Which dense rows stay behind a pruning layer."""

from __future__ import annotations

import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.serving.worker.dense.choose import choose_tokens, measure_importance
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.paged_cache import PagedCache
from vllm_prune.serving.worker.dense.rows import DenseRows, LiveRequest
from vllm_prune.serving.worker.dense.step import DenseStep, VideoRows
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.upload import upload


class RowDropper:
    """Lets the questions of one step choose, and remembers the importance they chose by."""

    def __init__(self, step: DenseStep, decoder: DecoderView, paged: PagedCache) -> None:
        self._schedule = _pruning_schedule(step, decoder)
        self._attention, self._paged = decoder.attention, paged
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
        self, layer: int, rows: DenseRows, query: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Rows that stay, [m], increasing, as `rows` numbers them.

        Args:
            layer: A pruning layer.
            rows: The dense rows that are left, n of them.
            query: Of the dense rows, this rank's heads, [n, H, D].
            key: Likewise, [n, G, D].
            hidden: Hidden states behind the layer, [n, C].
        """
        attention = self._attention[layer]
        keep = torch.ones(len(rows.alive), dtype=torch.bool)
        all_chosen = []
        for live in rows.requests():
            pruned = [video for video in live.request.videos if video in self._schedule[layer]]
            if not pruned:
                continue
            context = self._paged.keys(attention, live.request.index, live.request.context)
            keys = torch.cat((context, key[live.start : live.end]))
            for video in pruned:
                first, last = rows.video_range(live, video)
                left = upload(rows.rows_left(live, video), key.device)
                tokens, pinned = video.video.split(left)
                importance = self._measure(rows, live, video, query, keys, first + tokens, attention.impl.scale)
                self.importance.setdefault(video, {})[layer] = importance
                count = self._schedule[layer][video]
                chosen = choose_tokens(video.video, left[tokens], importance, hidden[first + tokens], count)
                check_same_on_ranks(chosen, "choice behind layer %d, video of %d tokens", layer, len(tokens))
                keep[first:last] = False
                all_chosen.append(first + torch.cat((tokens[chosen], pinned)))
        with gpu_sync_allowed():  # the one wait for the device behind a layer
            keep[torch.cat(all_chosen).cpu()] = True
        return keep.nonzero().squeeze(1)

    def _measure(
        self,
        rows: DenseRows,
        live: LiveRequest,
        video: VideoRows,
        query: torch.Tensor,
        keys: torch.Tensor,
        tokens: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Importance of a video's tokens at dense rows `tokens`. `keys`: all of its request's, the context's first."""
        question = upload(rows.question(live, video), query.device)
        to_key = live.request.context - live.start
        config = video.video.info.config
        return measure_importance(query[question], question + to_key + 1, keys, tokens + to_key, scaling, config)


def _pruning_schedule(step: DenseStep, decoder: DecoderView) -> dict[int, dict[VideoRows, int]]:
    """For every pruning layer, which videos it prunes and to how many tokens."""
    schedule: dict[int, dict[VideoRows, int]] = {}
    for request in step.requests:
        for rows in request.videos:
            info = rows.video.info
            for layer, count in zip(decoder.pruning_layers(info.config), info.counts.layers, strict=True):
                schedule.setdefault(layer, {})[rows] = count
    return schedule
