"""The question chooses before the language model: the textbook's definition in float64, one set after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vllm_prune.budget import plan_counts
from vllm_prune.config import QUESTION, PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.selector import INPUT, Selector

from .prompt import Prompt

_LEAST = 1e-3
"""Of a relevance that is stretched."""


def choose(
    model: PreTrainedModel,
    prompt: Prompt,
    configs: list[PruneConfig],
    tokens: list[VideoTokens],
    selectors: Mapping[str | int, Selector],
) -> tuple[list[VideoTokens], dict[int, tuple[Tensor, Tensor]]]:
    """What is left of every medium, and of those chosen from the kept indices [K] and the scores [N1].

    `configs`: of each medium.
    """
    left = list(tokens)
    chosen: dict[int, tuple[Tensor, Tensor]] = {}
    for index, config in enumerate(configs):
        count = plan_counts(dataclasses.replace(config, stage1=None), tokens[index].num_tokens).kept
        if config.method != QUESTION or count == tokens[index].num_tokens:
            continue
        places = prompt.places
        assert places is not None
        scores = _score(model, _question(prompt, places[index]), config, tokens[index], selectors)
        kept = _pick(model, config, tokens[index], scores, count)
        left[index] = VideoTokens(tokens[index].features[kept], tokens[index].grid[kept], tokens[index].grid_thw)
        chosen[index] = kept, scores
    return left, chosen


def _question(prompt: Prompt, place: int) -> list[int]:
    """The text behind the placeholder at `place`, up to the reply; else the text before it, back to the last reply."""
    header, ids = prompt.reply_header, prompt.ids
    starts = [i for i in range(len(ids)) if tuple(ids[i : i + len(header) - 1]) == header[:-1]]
    behind = ids[place : min([start for start in starts if start > place], default=len(ids))]
    before = ids[max([start + len(header) - 1 for start in starts if start < place], default=0) : place]
    words = [token for token in behind if token not in prompt.special]
    return words or [token for token in before if token not in prompt.special]


def _score(
    model: PreTrainedModel,
    question: list[int],
    config: PruneConfig,
    tokens: VideoTokens,
    selectors: Mapping[str | int, Selector],
) -> Tensor:
    """[N1] float32."""
    if not question:
        return torch.zeros(tokens.num_tokens)
    text = model.get_input_embeddings()(torch.tensor(question))
    features = tokens.features[:, : text.shape[1]]
    if config.question_param("relevance") == "learned":
        return selectors[INPUT].score(features, text, tokens.grid, tokens.grid_thw)
    unit = torch.nn.functional.normalize
    cosine = unit(features.double(), dim=1) @ unit(text.double(), dim=1).T
    return (cosine.mean(1) if config.question_param("text") == "mean" else cosine.amax(1)).float()


def _pick(model: PreTrainedModel, config: PruneConfig, tokens: VideoTokens, scores: Tensor, count: int) -> Tensor:
    if config.question_param("scope") != "video":
        raise NotImplementedError("the oracle chooses from whole videos")
    values = scores.double()
    if config.question_param("selector") == "topk" and values.unique().numel() > 1:
        return most_relevant(values, count)
    if config.question_param("relevance") == "learned":
        relevance = by_log_relevance(values, config.exponent)
    else:
        low, high = values.min(), values.max()
        share = (values - low) / (high - low) if high > low else torch.ones_like(values)
        relevance = ((_LEAST + (1 - _LEAST) * share) ** config.exponent).clamp(min=_LEAST)
    return diverse(tokens.features[:, : model.config.text_config.hidden_size], relevance, count)


def most_relevant(values: Tensor, count: int) -> Tensor:
    """Indices [count], increasing, of the highest `values`; of equal ones the earlier."""
    return torch.tensor(sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]))


def by_log_relevance(values: Tensor, exponent: float) -> Tensor:
    """Relevance [N] of log-relevance [N] in float64."""
    return (exponent * (values - values.max())).exp().clamp(min=_LEAST)


def diverse(features: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Indices [count], increasing, by greedy MAP of the DPP over `features` [N, C] with `relevance` [N]."""
    units = torch.nn.functional.normalize(features.double(), dim=1)
    return _greedy(relevance[:, None] * (units @ units.T) * relevance, units, count)


def _greedy(kernel: Tensor, units: Tensor, count: int) -> Tensor:
    """Indices [count], increasing, of the largest determinant, one pick after the other by its definition."""
    picked: list[int] = []
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in picked]
        if picked:
            solved = torch.linalg.solve(kernel[picked][:, picked], kernel[picked][:, rest])
            gain = kernel.diagonal()[rest] - (kernel[rest][:, picked] * solved.T).sum(1)
        else:
            gain = kernel.diagonal()[rest]
            nearest = (units @ units.sum(0))[rest]
            gain = torch.where(gain >= gain.max() - 1e-9, gain.max() + 1e-9 * (1 + nearest), gain)
        picked.append(rest[int(gain.argmax())])
    return torch.tensor(sorted(picked))
