"""Ways of choosing for `benchmarks/selectors.py`: before layer 0, and behind a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vllm_prune.methods import registry
from vllm_prune.methods.attention_importance import select_top
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import choose_diverse, similarity_to_text, weigh_similarity
from vllm_prune.selector import INPUT, LoadedSelector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import diverse, top
from vllm_prune.training.clips import Asked, Clip, Seen
from vllm_prune.training.reading import Reading, read

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
    """Who chooses, and where."""

    choose: Choice
    reading: Reading


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
    before, inside = (read(backbone, clip, scene.asked, place) for place in (INPUT, scene.layer))
    ways = {name: Way(choice, before) for name, choice in choices.items()}
    return {**ways, "attention at layer L": Way(lambda q, k: select_top(scene.seen[q].importance, k), inside)}


def learned_ways(
    backbone: Backbone, scene: Scene, name: str, loaded: LoadedSelector, exponent: float
) -> dict[str, Way]:
    """Those of a selector, where it reads."""
    reading = read(backbone, scene.clip, scene.asked, loaded.header.place)
    scores = reading.score(loaded.selector)
    return {
        f"{name}, top-k": Way(lambda q, k: top(scores[q], k), reading),
        f"{name}, DPP": Way(lambda q, k: reading.choose_diverse(q, k, scores[q], exponent), reading),
    }


def _once(choose: Callable[[int], Tensor]) -> Choice:
    """A choice that no question changes, made once for each count."""
    made: dict[int, Tensor] = {}

    def chosen(_: int, count: int) -> Tensor:
        if count not in made:
            made[count] = choose(count)
        return made[count]

    return chosen
