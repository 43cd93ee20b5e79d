"""From answers to accuracies: means, standard errors over samples, differences with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_prune.bench.accuracy.asking import Answer
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.throughput.aggregate import Estimate, estimate

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy minus the baseline's, on the same questions."""

    mean: float
    low: float
    """Of the 95% confidence interval."""
    high: float
    gained: int
    """Questions that only this configuration answers rightly."""
    lost: int
    """Questions that only the baseline answers rightly."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one configuration did on some questions."""

    accuracy: Estimate
    """0 to 1. `n` is the number of samples (or, of one sample, of its scenes) that the standard error is over."""
    questions: int
    unreadable: int
    """Replies that name no option; they count as wrong."""
    prompt_tokens: float
    video_tokens: float | None
    """Mean over the questions; None where the server does not tell."""


Asked = Sequence[tuple[Question, Answer]]


def score(asked: Asked) -> Score:
    """The score on questions and their answers (one or more)."""
    videos = [answer.video_tokens for _, answer in asked if answer.video_tokens is not None]
    return Score(
        accuracy=accuracy(asked),
        questions=len(asked),
        unreadable=sum(answer.predicted is None for _, answer in asked),
        prompt_tokens=float(np.mean([answer.prompt_tokens for _, answer in asked])),
        video_tokens=float(np.mean(videos)) if len(videos) == len(asked) else None,
    )


def accuracy(asked: Asked) -> Estimate:
    """Share of right answers.

    With several seeds: the mean of the seeds' accuracies, and its standard error. With one, the standard error is that
    of a mean over scenes, whose questions are not independent of each other.
    """
    by_seed = _group(asked, lambda question: question.seed)
    if len(by_seed) > 1:
        return estimate([_share_right(part) for part in by_seed.values()])
    by_scene = _group(asked, lambda question: question.video.scene)
    right = np.array([sum(answer.right for _, answer in part) for part in by_scene.values()])
    size = np.array([len(part) for part in by_scene.values()])
    mean = float(right.sum() / size.sum())
    if len(by_scene) == 1:
        return Estimate(mean=mean, standard_error=None, n=1)
    # A ratio of sums over clusters (Cochran, Sampling Techniques, 1977, section 6.3).
    spread = float(np.std(right - mean * size, ddof=1)) * len(size) ** 0.5 / float(size.sum())
    return Estimate(mean=mean, standard_error=spread, n=len(by_scene))


def _share_right(asked: Asked) -> float:
    return sum(answer.right for _, answer in asked) / len(asked)


def _group(asked: Asked, key: Callable[[Question], object]) -> dict[object, list[tuple[Question, Answer]]]:
    groups: dict[object, list[tuple[Question, Answer]]] = {}
    for question, answer in asked:
        groups.setdefault(key(question), []).append((question, answer))
    return groups


def difference(asked: Asked, baseline: Mapping[str, Answer], seed: int = 0) -> Difference:
    """Compares with the baseline's answers, by key, to the same questions.

    The interval is a paired bootstrap over scenes: the questions about one scene are drawn together.
    """
    changes = [(q.video.scene, int(answer.right) - int(baseline[q.key].right)) for q, answer in asked]
    places: dict[str, int] = {}
    scene = np.array([places.setdefault(key, len(places)) for key, _ in changes])
    change = np.array([value for _, value in changes])
    low, high = bootstrap(np.bincount(scene, change), np.bincount(scene), seed)
    return Difference(
        mean=float(change.mean()), low=low, high=high, gained=int((change > 0).sum()), lost=int((change < 0).sum())
    )


def bootstrap(total: np.ndarray, count: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of sum(total) / sum(count) when the elements are drawn with replacement.

    Args:
        total: What each element (a scene) adds up to, [n].
        count: The number of its parts (questions), [n].
        seed: Of the draws.
    """
    rng, n = np.random.default_rng(seed), len(total)
    draws = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = (draws @ total) / (draws @ count)
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))
