"""What a selector reads where it chooses, and what the model answers from what is left there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import choose_diverse, weigh_log_relevance
from vllm_prune.selector import INPUT, Selector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import EXPONENT, answers, kept_positions
from vllm_prune.training.clips import Asked, Clip, Seen


@dataclass(frozen=True)
class Reading:
    """A video and questions about it, at the place of a selector."""

    clip: Clip
    asked: Sequence[Asked]
    videos: Sequence[Tensor]
    """[N, C] visual tokens, of each question."""
    words: Sequence[Tensor]
    """[Q, C] each question's own."""
    layer: int | None
    """Behind which it chooses; None: before layer 0."""
    seen: Sequence[Seen]
    """What that layer gives, of each question."""

    def score(self, selector: Selector) -> list[Tensor]:
        """[N] log-relevance, of each question."""
        pairs = zip(self.videos, self.words, strict=True)
        return [selector.score(video, words, None, self.clip.grid) for video, words in pairs]

    def choose_diverse(self, question: int, count: int, scores: Tensor | None, exponent: float = EXPONENT) -> Tensor:
        """Indices [count], increasing, by a DPP over the whole video; `scores` [N] log-relevance, None: no question."""
        video = self.videos[question]
        score = video.new_zeros(len(video), dtype=torch.float32) if scores is None else scores
        tokens = VideoTokens.from_features(video, self.clip.grid)
        return choose_diverse(tokens, count, weigh_log_relevance(score, exponent), "video")

    def answer(self, backbone: Backbone, kept: Sequence[Tensor]) -> Tensor:
        """[Q] first token of each answer, from the tokens `kept` ([K] increasing), at their original positions."""
        if self.layer is None:
            return answers(backbone, self.clip, self.asked, kept)
        rows = [
            torch.cat([seen.head, seen.medium[self.clip.places(those)], seen.tail])
            for seen, those in zip(self.seen, kept, strict=True)
        ]
        pairs = zip(self.asked, kept, strict=True)
        places = [kept_positions(backbone, self.clip, asked, those) for asked, those in pairs]
        return backbone.answer(rows, places, self.layer + 1)


def read(backbone: Backbone, clip: Clip, asked: Sequence[Asked], place: str | int) -> Reading:
    """What a selector that reads at `place` is given."""
    if place == INPUT:
        words = [backbone.embed(each.question) for each in asked]
        return Reading(clip, asked, [clip.features] * len(words), words, None, [])
    seen = backbone.see(clip, asked, int(place))
    words = [state.tail[each.rows] for state, each in zip(seen, asked, strict=True)]
    return Reading(clip, asked, [state.medium[clip.cells] for state in seen], words, int(place), seen)
