"""Requests with stage 1 on pixels, the same at every run; cached, as the oracle knows videos by their identity."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from dense_cases import IMAGE, VIDEO, Case, chat, image
from PIL import Image
from pixel_clips import noisy, panning, pure_noise, still, video_item, with_square

QUESTION = "What colour is the flash?"
OTHER = "How many shapes move in the video?"
PIXELS = {"where": "processor"}


@functools.cache
def busy(seed: int, frames: int = 12) -> Any:
    """A square that walks over a still, noisy picture: some cells new, most of them not."""
    return video_item(noisy(with_square(still(frames, seed), seed), 2.0, seed))


def ask(config: Any, *videos: Any, question: str = QUESTION, images: tuple[Any, ...] = ()) -> Case:
    return Case(chat(VIDEO * len(videos) + IMAGE * len(images) + question), videos, images, config)


@functools.cache
def page(seed: int, height: int = 140, width: int = 196) -> Image.Image:
    """A flat page with a few rectangles, some of them along the edges of cells, and some noise for a photo."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), random.integers(200, 256), np.uint8)
    for _ in range(3):
        y, x = random.integers(0, height - 20), random.integers(0, width - 20)
        pixels[y : y + int(random.integers(8, 40)), x : x + int(random.integers(8, 90))] = random.integers(0, 256, 3)
    pixels[56:84, 28:140] = random.integers(0, 256, 3)
    pixels[:28, 56:84] = random.integers(0, 256, (28, 28, 3))
    return Image.fromarray(pixels)


@functools.cache
def scan(seed: int) -> Image.Image:
    """A page that gets darker towards the right, with noise of three grey levels."""
    pixels = np.array(page(seed)).astype(int) - np.arange(196)[:, None] // 20
    pixels += np.random.default_rng(seed).integers(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


SAME = {"preset": "baseline", "image": {"same_within": 0}}


@functools.cache
def page_cases() -> list[Case]:
    """Pages whose equal cells are not encoded, alone, in a row, beside videos, and with methods on what is left."""
    configs: list[Any] = [
        {"same_within": 0},
        {"same_within": 0, "method": "uniform", "keep_ratio": 0.5},
        {"same_within": 0, "method": "dpp", "target_token_num": 5},
        {"same_within": 0, "method": "attention", "keep_ratio": 0.5},
        {"same_within": 0, "method": "tome", "keep_ratio": 0.6, "min_tokens": 20},
        {"same_within": 0, "method": "question", "keep_ratio": 0.5, "params": {"relevance": "text"}},
    ]
    cases = []
    for seed, config in enumerate(configs):
        pages = (page(seed), page(seed + 50, 84, 112))[: 1 + seed % 2]
        videos = (busy(seed),) if seed % 3 == 2 else ()
        cases.append(ask({"preset": "baseline", "image": config}, *videos, images=pages))
    for seed, within in enumerate((4, 6, 10)):
        cases.append(ask({"preset": "baseline", "image": {"same_within": within}}, images=(scan(seed), page(seed))))
    return [*cases, ask({"stage1": PIXELS, "image": {"same_within": 0}}, busy(7), images=(page(7), page(8)))]


@functools.cache
def random_cases() -> list[Case]:
    """Ten plans, from nearly still to all new, in all configurations."""
    configs: list[Any] = [
        {"stage1": PIXELS},
        {"stage1": {**PIXELS, "cluster_ratio": 1.0}},
        {"stage1": {**PIXELS, "tau": 0.95, "cluster_ratio": 0.3}},
        {"stage1": {**PIXELS, "tau": 0.6}},
        {"stage1": PIXELS, "method": "uniform", "keep_ratio": 0.5},
        {"stage1": PIXELS, "method": "attention", "keep_ratio": 0.5},
        {"stage1": {**PIXELS, "cluster_ratio": 0.8}, "method": "attention", "layers": [1, 3], "keep_ratio": [0.8, 0.5]},
        {"stage1": PIXELS, "method": "attention", "keep_ratio": None, "target_token_num": 9},
        {"stage1": {**PIXELS, "cluster_ratio": 1.0}, "method": "attention", "keep_ratio": 0.4},
        {"stage1": {**PIXELS, "tau": 0.9}, "method": "attention", "params": {"text": "mean"}},
    ]
    cases = []
    for seed, config in enumerate(configs):
        frames = 4 + seed
        clips = (busy(seed, frames), video_item(panning(frames, 1 + seed, seed)), video_item(pure_noise(frames, seed)))
        videos = (clips[seed % 3], busy(seed + 20)) if seed % 4 == 1 else (clips[seed % 3],)
        images = (image(seed),) if seed % 4 == 2 else ()
        cases.append(ask(config, *videos, images=images))
    return cases
