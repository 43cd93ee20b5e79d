"""Which dense rows stay behind a pruning layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.selector import Selector
from vllm_prune.serving.wire.selector_file import Place
from vllm_prune.serving.worker.dense.choose import choose_tokens, measure_importance
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.paged_cache import PagedCache
from vllm_prune.serving.worker.dense.rows import DenseRows, LiveRequest
from vllm_prune.serving.worker.dense.step import DenseStep, VideoRows
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.upload import upload

Measure = Callable[[VideoRows, torch.Tensor, torch.Tensor], torch.Tensor]
"""Importance [n] of a video's tokens, which are at dense rows [n], and among the video's own rows at [n]."""


class RowDropper:
    """Lets the questions of one step choose, and remembers the importance they chose by."""

    def __init__(
        self, step: DenseStep, decoder: DecoderView, paged: PagedCache, selectors: Mapping[Place, Selector]
    ) -> None:
        self._schedule = _pruning_schedule(step, decoder)
        self._attention, self._paged, self._selectors = decoder.attention, paged, selectors
        self.importance: dict[VideoRows, dict[int, torch.Tensor]] = {}
        """By pruning layer, of the tokens that were left before its choice."""

    @property
    def last_layer(self) -> int:
        """The last pruning layer of any video of the step; -1 without."""
        return max(self._schedule, default=-1)

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
        keep = torch.ones(len(rows.alive), dtype=torch.bool)
        all_chosen = []
        for live in rows.requests():
            pruned = [video for video in live.request.videos if video in self._schedule[layer]]
            if not pruned:
                continue
            measures: dict[bool, Measure] = {}  # by whether a selector does; media may differ in it
            for video in pruned:
                first, last = rows.video_range(live, video)
                left = upload(rows.rows_left(live, video), key.device)
                tokens, pinned = video.video.split(left)
                learned = video.video.info.config.needs_selector
                if learned not in measures:
                    measures[learned] = (
                        self._by_selector(layer, rows, live, hidden)
                        if learned
                        else self._by_attention(layer, rows, live, query, key)
                    )
                importance = measures[learned](video, first + tokens, left[tokens])
                self.importance.setdefault(video, {})[layer] = importance
                count = self._schedule[layer][video]
                chosen = choose_tokens(video.video, left[tokens], importance, hidden[first + tokens], count)
                check_same_on_ranks(chosen, "choice behind layer %d, video of %d tokens", layer, len(tokens))
                keep[first:last] = False
                all_chosen.append(first + torch.cat((tokens[chosen], pinned)))
        with gpu_sync_allowed():  # the one wait for the device behind a layer
            keep[torch.cat(all_chosen).cpu()] = True
        return keep.nonzero().squeeze(1)

    def _by_attention(
        self, layer: int, rows: DenseRows, live: LiveRequest, query: torch.Tensor, key: torch.Tensor
    ) -> Measure:
        """By the attention that a request's questions pay."""
        attention = self._attention[layer]
        context = self._paged.keys(attention, live.request.index, live.request.context)
        keys = torch.cat((context, key[live.start : live.end]))
        to_key = live.request.context - live.start

        def measure(video: VideoRows, tokens: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            question = upload(rows.question(live, video), query.device)
            visible, config = question + to_key + 1, video.video.info.config
            return measure_importance(query[question], visible, keys, tokens + to_key, attention.impl.scale, config)

        return measure

    def _by_selector(self, layer: int, rows: DenseRows, live: LiveRequest, hidden: torch.Tensor) -> Measure:
        """By the learned selector that reads the output of `layer`."""
        selector = self._selectors[layer]

        def measure(video: VideoRows, tokens: torch.Tensor, own_rows: torch.Tensor) -> torch.Tensor:
            question = upload(rows.question(live, video), hidden.device)
            info = video.video.info
            places = info.places(video.video.slots[own_rows])
            with gpu_sync_allowed():  # it leaves out rows of text that are not finite
                return selector.score(hidden[tokens], hidden[question], places, info.grid)

        return measure


def _pruning_schedule(step: DenseStep, decoder: DecoderView) -> dict[int, dict[VideoRows, int]]:
    """For every pruning layer, which videos it prunes and to how many tokens."""
    schedule: dict[int, dict[VideoRows, int]] = {}
    for request in step.requests:
        for rows in request.videos:
            info = rows.video.info
            for layer, count in zip(decoder.pruning_layers(info.config), info.counts.layers, strict=True):
                schedule.setdefault(layer, {})[rows] = count
    return schedule
