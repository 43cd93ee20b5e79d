"""Pictures made on the fly: coloured forms on a page, which the embedded model can be asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from vllm_prune.bench.accuracy.datasets.synthetic import CLIPS_A_SEED, generator, questions_about
from vllm_prune.bench.accuracy.pictures import Picture
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.throughput.errors import BenchmarkError


@dataclass(frozen=True)
class SyntheticPicture(Picture):
    """A page that is made when it is needed."""

    seed: int
    """The generator's own."""

    @property
    def key(self) -> str:
        return f"page-{self.seed}"

    def pixels(self) -> np.ndarray:
        drawn: np.ndarray = _make_page(self.seed).pixels
        return drawn


@lru_cache(maxsize=4)
def _make_page(seed: int) -> Any:
    return generator("pages").make_page(seed)


def load(n: int, seeds: Sequence[int]) -> list[Question]:
    """The questions on the pages of the seeds that `evaluation_pages` takes its pages from.

    Args:
        n: Pages for each seed.
        seeds: One sample each.
    """
    if n > CLIPS_A_SEED:
        raise BenchmarkError(f"--n {n}: a seed has {CLIPS_A_SEED} pages; give more --seeds")
    first = int(generator("clips").HELD_OUT_SEED)
    return [
        question
        for seed in seeds
        for page in range(n)
        for question in _questions(SyntheticPicture(first + seed * CLIPS_A_SEED + page), seed)
    ]


def _questions(picture: SyntheticPicture, seed: int) -> list[Question]:
    return questions_about(picture, _make_page(picture.seed).questions, seed)
