"""Requests whose tokens a learned selector chooses inside the decoder: configurations, prompts, what is asserted."""

from __future__ import annotations

import functools
from typing import Any

from dense_cases import IMAGE_SIZES, VIDEO, Case, chat, in_turns, video


def learned(params: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A configuration; where there is no stage 1."""
    return {"method": "attention", "stage1": None, **fields, "params": {"relevance": "learned", **(params or {})}}


def of_images(params: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The images' part of one."""
    return {"method": "attention", **fields, "params": {"relevance": "learned", **(params or {})}}


INSIDE: tuple[Any, ...] = (
    learned(keep_ratio=0.3),
    learned({"selector": "dpp"}, keep_ratio=0.3),
    learned({"selector": "dpp", "exponent": 1.0}, keep_ratio=0.12, layers=[4]),
    learned(keep_ratio=None, target_token_num=7, layers=[4]),
    learned({"selector": "dpp"}, keep_ratio=0.5, stage1={"cluster_ratio": 0.5}),
    learned(keep_ratio=[0.6, 0.5], layers=[2, 4]),
    learned({"selector": "dpp"}, keep_ratio=0.25, layers=[1]),
)
INSIDE_IMAGES: tuple[Any, ...] = (
    {"preset": "baseline", "image": of_images(keep_ratio=0.5)},
    {"preset": "default", "image": of_images({"selector": "dpp"}, keep_ratio=0.4, layers=[4])},
    learned({"selector": "dpp"}, keep_ratio=0.3)
    | {"image": {"method": "attention", "target_token_num": 3, "layers": [2]}},
    learned(keep_ratio=0.3, layers=[4]) | {"image": of_images(keep_ratio=[0.8, 0.5], layers=[1, 2])},
    {
        "method": "question",
        "stage1": None,
        "keep_ratio": 0.3,
        "image": of_images({"selector": "dpp", "exponent": 2.0}, target_token_num=5, min_tokens=3),
    },
    learned(keep_ratio=0.5) | {"image": {"method": "question", "keep_ratio": 0.5, "params": {"selector": "topk"}}},
)
"""Of images, of videos beside them, or of both, each by its own."""
SEEDS = {"qwen3_vl": 93, "qwen3_vl_moe": 93}
"""Of families in whose requests of the seed 91 a choice has near ties."""


@functools.cache
def inside_cases(family: str, count: int) -> list[Case]:
    """At random, of videos, an image at times."""
    return in_turns(INSIDE, count, SEEDS.get(family, 91))


@functools.cache
def image_cases_inside(count: int) -> list[Case]:
    return in_turns(INSIDE_IMAGES, count, 17, image_share=0.6, image_sizes=IMAGE_SIZES)


def unusual_cases() -> list[Case]:
    """Questions and videos of unusual lengths and places."""
    asked, clip = "What colour is the flash?", (video(4),)
    places = {
        "one step of the grid": (chat(VIDEO + asked), (video(3, 2),)),
        "in the system turn": (chat(asked, system=f"Look at this: {VIDEO}"), clip),
        "two videos, one question": (chat(f"{VIDEO}and{VIDEO}{asked}"), (video(4), video(5, 4))),
        "text before and after": (chat(f"Look: {VIDEO}{asked} Answer in one word."), clip),
        "text before only": (chat(f"{asked}{VIDEO}"), clip),
        "asked later": (chat(VIDEO, "a red ball", asked), clip),
        "in two turns": (chat(VIDEO + asked, "red", f"{VIDEO}And the other?"), (video(4), video(5, 4))),
    }
    configs = (learned(keep_ratio=0.3), learned({"selector": "dpp"}, keep_ratio=[0.6, 0.5], layers=[1, 4]))
    return [Case(text, clips, (), config) for text, clips in places.values() for config in configs]
