"""A learned selector chooses behind a layer, from hidden states of the video and of the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.selector import Selector

from .ask_first import by_log_relevance, diverse, most_relevant
from .importance import question_rows
from .prompt import Prompt
from .rows import Rows


@dataclass(frozen=True)
class Learned:
    """Who chooses, and what it has to know of the prompt."""

    config: PruneConfig
    prompt: Prompt
    tokens: list[VideoTokens]
    """That entered, of each medium."""
    selectors: Mapping[str | int, Selector]

    def choose(self, layer: int, hidden: Tensor, rows: Rows, video: int, count: int) -> tuple[Tensor, Tensor]:
        """Of the rows of a video, in order: indices [count] of those that stay, increasing, and the scores [n].

        Args:
            layer: A pruning layer.
            hidden: [R, C] behind it.
            rows: Of `hidden`.
            video: Index of the medium.
            count: How many stay.
        """
        own = (rows.medium == video).nonzero().squeeze(1)
        whole = self.tokens[video]
        asked = hidden[self._asked(rows, video)]
        scores = self.selectors[layer].score(hidden[own], asked, whole.grid[rows.token[own]], whole.grid_thw)
        if self.config.attention_param("scope") != "video":
            raise NotImplementedError("the oracle chooses from whole videos")
        if self.config.attention_param("selector") == "topk":
            return most_relevant(scores.double(), count), scores
        return diverse(hidden[own], by_log_relevance(scores.double(), self.config.exponent), count), scores

    def _asked(self, rows: Rows, video: int) -> Tensor:
        """The rows behind a video that are words of the question; without any, all of them, the reply's header, too."""
        behind = question_rows(rows.medium, video)
        ids, header = rows.token[behind].tolist(), self.prompt.reply_header[:-1]
        replies = [i for i in range(len(ids)) if tuple(ids[i : i + len(header)]) == header]
        words = [i for i in range(min([*replies, len(ids)])) if ids[i] not in self.prompt.special]
        return behind[torch.tensor(words)] if words else behind
