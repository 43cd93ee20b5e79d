"""Chooses by the question before the first layer which of a video's tokens stay.

A step may have a part of a video's rows only, since a chunk or a prefix-cache hit ends anywhere. The choice is made
among all of its tokens, which the encoder cache holds as long as any row is to be computed, and depends on them and on
the question alone: every step of every request with the same video and question gets rows of the same choice.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import (
    choose_diverse,
    choose_most_relevant,
    similarity_to_text,
    weigh_log_relevance,
    weigh_similarity,
)
from vllm_prune.question import question_ids
from vllm_prune.selector import INPUT, Selector
from vllm_prune.serving.wire.clock import Stopwatch
from vllm_prune.serving.wire.selector_file import Place
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.trace import BEFORE_LAYERS, TraceWriter, VideoOutcome
from vllm_prune.serving.worker.upload import upload

_REMEMBERED = 64
"""Choices, the last ones; a video that a prompt has in several chunks is chosen from once."""


@dataclass(frozen=True, eq=False)
class _Choice:
    """What a question chose of a video."""

    info: MediumInfo
    kept: torch.Tensor
    """Of the video's rows, indices [K + S], increasing."""
    kept_slots: torch.Tensor
    """Theirs, [K + S]."""
    chosen: torch.Tensor
    """Of its tokens, indices [K], increasing."""
    chosen_slots: torch.Tensor
    """Theirs, [K]."""
    scores: dict[int, torch.Tensor]
    """By what they were chosen, [N1], as traces have it."""


class AskFirst:
    """The choices of one worker."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        media: MediumTable,
        selectors: Mapping[Place, Selector],
        row_width: int,
        embed_text: Callable[[torch.Tensor], torch.Tensor],
        trace: TraceWriter | None,
    ) -> None:
        """Of the model.

        Args:
            vllm_config: vLLM's.
            media: What is known of the videos in the encoder cache.
            selectors: The learned ones, by where they read.
            row_width: W, of a row with what later layers get.
            embed_text: Token ids [Q] to embeddings [Q, C].
            trace: Where to write choices.
        """
        self._media, self._selectors, self._trace, self._embed_text = media, selectors, trace, embed_text
        self._width, self._row_width = vllm_config.model_config.get_inputs_embeds_size(), row_width
        self._device = torch.device(vllm_config.device_config.device)
        self._choices: OrderedDict[tuple[int, tuple[int, ...]], _Choice] = OrderedDict()

    def take(
        self, part: carrier.PartOfMedium, num_rows: int, prompt: Sequence[int], first: int, position: int
    ) -> tuple[torch.Tensor, torch.Tensor, Stopwatch]:
        """Features [n, W] and slots [n] of the `num_rows` rows of a video that a step has, and the time it took.

        Args:
            part: Which rows of the video these are.
            num_rows: n.
            prompt: Token ids of the whole prompt.
            first: Prompt index of the first of these rows.
            position: Of the video's start.
        """
        watch, begin = Stopwatch(self._device), time.perf_counter()
        choice = self._asked(part, prompt, first)
        info = choice.info
        if self._trace is not None and info.trace is not None and part.row == 0:
            outcome = VideoOutcome(
                info.trace, choice.chosen, (info.offsets(choice.chosen_slots) + position).T, choice.scores
            )
            self._trace.write(prompt, [outcome], time.perf_counter() - begin)
        features = self._features(part, num_rows, choice)
        watch.stop()
        return features, choice.kept_slots[part.row : part.row + num_rows], watch

    def look_ahead(self, part: carrier.PartOfMedium, num_rows: int, prompt: Sequence[int], first: int) -> torch.Tensor:
        """Features [n, W] of rows that no step computes now; see `take`, which has the arguments, too."""
        return self._features(part, num_rows, self._asked(part, prompt, first))

    def _features(self, part: carrier.PartOfMedium, num_rows: int, choice: _Choice) -> torch.Tensor:
        packed = self._media.rows(part.info)
        return carrier.take(packed, self._row_width, choice.kept[part.row : part.row + num_rows])

    def _asked(self, part: carrier.PartOfMedium, prompt: Sequence[int], first: int) -> _Choice:
        """What the question behind a video chooses of it."""
        info = self._media[part.info]
        assert info.turn is not None  # the processor refuses such requests of models without
        start = first - part.row
        question = tuple(question_ids(prompt, start, start + info.counts.rows, info.turn))
        return self._choice(part.info, self._media.rows(part.info), question)

    def _choice(self, number: int, packed: torch.Tensor, question: tuple[int, ...]) -> _Choice:
        """What is kept of the video with this number, all of whose rows are `packed`."""
        info, key = self._media[number], (number, question)
        known = self._choices.get(key)
        if known is not None and known.info is info:  # numbers are given again
            self._choices.move_to_end(key)
            return known
        slots = carrier.read_tags(packed, self._row_width)[0][: info.counts.carried_rows]
        tokens, pinned = info.split(slots)
        features = carrier.take(packed, self._row_width, tokens, self._width)
        video = VideoTokens(features, info.places(slots[tokens]), info.grid)
        with gpu_sync_allowed():  # the selectors wait for sizes that depend on values
            chosen, score = self._choose(info, video, question)
        check_same_on_ranks(chosen, "choice by the question, video of %d tokens", len(tokens))
        kept = torch.cat((tokens[chosen], pinned)).sort().values
        self._choices[key] = choice = _Choice(
            info=info,
            kept=kept,
            kept_slots=slots[kept],
            chosen=chosen,
            chosen_slots=slots[tokens[chosen]],
            scores={BEFORE_LAYERS: score},
        )
        while len(self._choices) > _REMEMBERED:
            self._choices.popitem(last=False)
        return choice

    def _choose(
        self, info: MediumInfo, video: VideoTokens, question: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices [K] of the tokens that stay, increasing, and the score [N1] by which they were chosen."""
        config, count = info.config, info.counts.kept
        scope: Any = config.question_param("scope")
        by_text = config.question_param("relevance") == "text"
        if not question:  # nothing is asked: every token has as much to do with it
            score = video.features.new_zeros(video.num_tokens, dtype=torch.float32)
        else:
            text = self._embed_text(upload(torch.tensor(question), self._device))
            if by_text:
                score = similarity_to_text(video.features, text, config.question_param("text"))
            else:
                score = self._selectors[INPUT].score(video.features, text, video.grid, video.grid_thw)
        if config.question_param("selector") == "topk" and question:
            return choose_most_relevant(video, count, score, scope), score
        weight = (
            weigh_similarity(score, config.exponent, video.features)
            if by_text
            else weigh_log_relevance(score, config.exponent)
        )
        return choose_diverse(video, count, weight, scope), score
