"""Requests to families whose images and frames are squares of one size, and what the oracle says about them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from dense_cases import ASK_FIRST, CONFIGS, IMAGE_CONFIGS, IMAGE_SIZES, Case, Oracle, random_case
from oracle import load_model
from oracle.internvl_chat import ChatProcessor, chat_text, write_chat_model
from oracle.micro_model import load_by_place, micro_selectors, write_micro_model
from oracle.square_models import SIDE
from transformers import AutoProcessor

from vllm_prune.config import PruneConfig

CHAT = "internvl_chat"
"""The same weights as "internvl", of another class."""
FAMILIES = {"llava_onevision": 8, "llava": 7, "llava_next": 7, "llava_next_video": 7, "internvl": 8, CHAT: 8}
"""Each with a seed whose requests have no near ties."""
IMAGES_ONLY = ("llava", "llava_next")
VIDEOS_ONLY = "llava_next_video"
"""One each, as vLLM serves it."""
CELLS = 9
"""Of a frame."""
TILED_SIZES = ((84, 112), (140, 56), (112, 160))
"""(height, width) in pixels. None fits one tile, which would be the small version of the image once more."""


def write_square_model(folder: Path, family: str) -> str:
    """Into a folder of this one, which is returned."""
    if family != CHAT:
        return str(write_micro_model(folder / "micro", family=family))
    return str(write_chat_model(write_micro_model(folder / "internvl", family="internvl"), folder / "micro"))


def square_oracle(model: str, family: str, contiguous: bool = False) -> Oracle:
    """For the model that `write_square_model` wrote into `model`."""
    selectors = load_by_place(micro_selectors(model))
    original = str(Path(model).parent / "internvl") if family == CHAT else model
    processor = AutoProcessor.from_pretrained(original)
    if family == CHAT:
        processor = ChatProcessor(processor, SIDE)
    return Oracle(load_model(original), processor, "default", selectors, contiguous=contiguous)


def options_of(family: str) -> dict[str, Any]:
    """Of its engines."""
    if family == CHAT:
        return {"trust_remote_code": True}
    return {"limit_mm_per_prompt": {"video": 1}} if family == VIDEOS_ONLY else {}


class ChatCase(Case):
    """A request to the class that writes placeholders otherwise."""

    def prompt(self) -> dict[str, Any]:
        return super().prompt() | {"prompt": chat_text(self.text)}


def of_family(family: str, cases: list[Case]) -> list[Case]:
    """The same requests as its engines take them."""
    return [ChatCase(**vars(case)) for case in cases] if family == CHAT else cases


def fits(family: str, case: Case) -> bool:
    """Whether the model takes such media, and each video has the tokens that are asked of it layer by layer."""
    asked = case.config.get("target_token_num") if isinstance(case.config, dict) else None
    most = max(asked) if isinstance(asked, list) else 0
    if any(most > CELLS * len(frames) for frames, _ in case.videos):
        return False
    return family != VIDEOS_ONLY or (len(case.videos) < 2 and not case.images)


def is_served(config: Any) -> bool:
    """Whether no part of a configuration looks at the attention inside the encoder."""
    base = PruneConfig.parse("default")
    asked = base if config is None else PruneConfig.parse(config, base=base)
    return not any(part.needs_encoder_attention for part in asked.parts)


@functools.cache
def cases(family: str) -> list[Case]:
    """36 at random; the configurations that the family can serve take turns."""
    of_images = family in IMAGES_ONLY
    configs = itertools.cycle(filter(is_served, IMAGE_CONFIGS if of_images else CONFIGS))
    random = np.random.default_rng(FAMILIES[family])
    share, sizes = (1.0, sizes_of(family)) if of_images else (0.2, IMAGE_SIZES[:1])
    drawn = (random_case(random, [next(configs)], share, sizes) for _ in itertools.count())
    return of_family(family, list(itertools.islice((case for case in drawn if fits(family, case)), 36)))


def sizes_of(family: str) -> Any:
    """Of its images."""
    return IMAGE_SIZES if family == "llava" else TILED_SIZES


@functools.cache
def image_cases(family: str) -> list[Case]:
    """28 at random; the configurations that prune images take turns."""
    random, configs = np.random.default_rng(11), itertools.cycle(filter(is_served, IMAGE_CONFIGS))
    return of_family(family, [random_case(random, [next(configs)], 0.6, TILED_SIZES) for _ in range(28)])


@functools.cache
def asking_cases(family: str) -> list[Case]:
    """14 at random; the configurations by which the question chooses before the first layer take turns."""
    random, configs = np.random.default_rng(5), itertools.cycle(ASK_FIRST)
    drawn = (random_case(random, [next(configs)], float(family in IMAGES_ONLY)) for _ in itertools.count())
    asked = list(itertools.islice((case for case in drawn if fits(family, case)), 14))
    if family not in IMAGES_ONLY:
        return of_family(family, asked)
    keys = ("method", "keep_ratio", "target_token_num", "params")
    images = [{key: case.config[key] for key in keys if case.config.get(key) is not None} for case in asked]
    return [
        dataclasses.replace(case, config={"preset": "baseline", "image": image})
        for case, image in zip(asked, images, strict=True)
    ]
