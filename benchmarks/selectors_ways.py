"""Ways of choosing for `benchmarks/selectors.py`: before layer 0, and behind a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods import registry
from vllm_prune.methods.attention_importance import select_top
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import choose_diverse, similarity_to_text, weigh_log_relevance, weigh_similarity
from vllm_prune.selector import INPUT, LoadedSelector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import answers, diverse, kept_positions, top
from vllm_prune.training.clips import Asked, Clip, Seen

_QUERY_FREE = ("vidcom2", "evs", "random")

Choice = Callable[[int, int], Tensor]
"""From (question, count) to the indices that are kept."""


@dataclass(frozen=True)
class Scene:
    """A clip as the model sees it, with one question of each type."""

    clip: Clip
    asked: list[Asked]
    truth: Tensor
    """[Q] first token of the right answers."""
    seen: list[Seen]
    """The teacher's view."""
    types: list[str]
    layer: int
    """The teacher's."""
    seed: int
    """For what is drawn."""


@dataclass(frozen=True)
class Way:
    """Who chooses, and where what was not chosen goes."""

    choose: Choice
    behind: int | None = None
    """The layer behind which; None: before layer 0."""

    def answer(self, backbone: Backbone, scene: Scene, kept: Sequence[Tensor]) -> Tensor:
        """[Q] first token of each answer from the tokens `kept` ([K] increasing)."""
        if self.behind is None:
            return answers(backbone, scene.clip, scene.asked, kept)
        seen = _seen_at(backbone, scene, self.behind)
        clip = scene.clip
        pairs = zip(seen, kept, strict=True)
        rows = [torch.cat([each.head, each.medium[clip.places(those)], each.tail]) for each, those in pairs]
        places = [kept_positions(backbone, clip, *pair) for pair in zip(scene.asked, kept, strict=True)]
        return backbone.answer(rows, places, self.behind + 1)


def plain_ways(backbone: Backbone, scene: Scene, exponent: float) -> dict[str, Way]:
    """All that do without a learned selector."""
    clip = scene.clip
    tokens = VideoTokens.from_features(clip.features, clip.grid)
    cosine = [similarity_to_text(clip.features, backbone.embed(each.question), "mean") for each in scene.asked]
    by_text = [weigh_similarity(each, 1.0, clip.features) for each in cosine]
    logs = [each.importance.clamp_min(1e-6).log() for each in scene.seen]
    choices: dict[str, Choice] = {
        "attention at layer L, its tokens from layer 0": lambda q, k: top(logs[q], k),
        "the same scores, DPP": lambda q, k: diverse(clip, k, logs[q], exponent),
        "DPP, no question": _once(lambda k: diverse(clip, k)),
        "text cosine, top-k": lambda q, k: top(cosine[q], k),
        "text cosine, DPP": lambda q, k: choose_diverse(tokens, k, by_text[q], "video"),
    }
    for name in _QUERY_FREE:
        params = {"seed": scene.seed} if name == "random" else {}
        method = registry.create(name, **params)
        choices[name] = _once(lambda k, method=method: method.assign(tokens, k).anchor)
    inside = Way(lambda q, k: select_top(scene.seen[q].importance, k), scene.layer)
    return {**{name: Way(choice) for name, choice in choices.items()}, "attention at layer L": inside}


def learned_ways(
    backbone: Backbone, scene: Scene, name: str, loaded: LoadedSelector, exponent: float
) -> dict[str, Way]:
    """Those of a selector, where it reads."""
    clip, place = scene.clip, loaded.header.place
    if place == INPUT:
        words = [backbone.embed(each.question) for each in scene.asked]
        videos, behind = [clip.features] * len(words), None
    else:
        behind = int(place)
        seen = _seen_at(backbone, scene, behind)
        videos = [each.medium[clip.cells] for each in seen]
        words = [each.tail[asked.rows] for each, asked in zip(seen, scene.asked, strict=True)]
    pairs = zip(videos, words, strict=True)
    scores = [loaded.selector.score(video, each, None, clip.grid) for video, each in pairs]

    def differing(question: int, count: int) -> Tensor:
        tokens = VideoTokens.from_features(videos[question], clip.grid)
        return choose_diverse(tokens, count, weigh_log_relevance(scores[question], exponent), "video")

    return {f"{name}, top-k": Way(lambda q, k: top(scores[q], k), behind), f"{name}, DPP": Way(differing, behind)}


def _seen_at(backbone: Backbone, scene: Scene, layer: int) -> list[Seen]:
    return scene.seen if layer == scene.layer else backbone.see(scene.clip, scene.asked, layer)


def _once(choose: Callable[[int], Tensor]) -> Choice:
    """A choice that no question changes, made once for each count."""
    made: dict[int, Tensor] = {}

    def chosen(_: int, count: int) -> Tensor:
        if count not in made:
            made[count] = choose(count)
        return made[count]

    return chosen
