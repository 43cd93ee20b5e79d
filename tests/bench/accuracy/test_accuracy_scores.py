"""Means, standard errors and confidence intervals."""

import itertools
import math
import random

import numpy as np
import pytest
from accuracy_cases import answer, question

from vllm_prune.bench.accuracy.scores import accuracy, bootstrap, difference, score


def asked(rights, **of):
    """Questions with given outcomes, one a scene unless `scene` says otherwise."""
    return [
        (question(str(i), **{name: value(i) for name, value in ({"scene": str} | of).items()}), answer(str(i), right))
        for i, right in enumerate(rights)
    ]


def test_a_mean_over_seeds_with_its_standard_error():
    # Seed 0: 1 of 2 right, seed 1: 2 of 2, seed 2: 0 of 2.
    result = accuracy(asked([1, 0, 1, 1, 0, 0], seed=lambda i: i // 2))
    assert result.mean == pytest.approx(0.5)
    assert result.standard_error == pytest.approx(0.5 / math.sqrt(3))
    assert result.n == 3


def test_of_one_seed_it_is_that_of_independent_scenes():
    rights = [1, 1, 1, 0, 1, 0, 1, 1]
    result = accuracy(asked(rights))
    assert result.standard_error == pytest.approx(np.std(rights, ddof=1) / math.sqrt(8))
    assert result.n == 8


def test_questions_about_one_scene_count_as_one_observation():
    alike = accuracy(asked([1, 1, 1, 1, 0, 0, 0, 0], scene=lambda i: str(i // 4)))
    assert (alike.mean, alike.n) == (0.5, 2)
    assert alike.standard_error == pytest.approx(0.5)
    assert accuracy(asked([1, 0], scene=lambda i: "one")).standard_error is None


def test_the_standard_error_over_scenes_of_unequal_size_is_the_spread_of_repeated_draws():
    rng = random.Random(0)

    def draw():
        return [(scene, rng.random() < p) for scene in range(60) for p in [rng.random()] for _ in range(1 + scene % 7)]

    estimates = []
    for _ in range(300):
        drawn = draw()
        estimates.append(accuracy(asked([right for _, right in drawn], scene=lambda i, d=drawn: str(d[i][0]))))
    spread = np.std([estimate.mean for estimate in estimates], ddof=1)
    assert np.mean([estimate.standard_error for estimate in estimates]) == pytest.approx(spread, rel=0.12)


def test_a_score_counts_tokens_and_unreadable_replies():
    pairs = [
        (question("a"), answer("a", prompt_tokens=50, video_tokens=40)),
        (question("b"), answer("b", False, predicted=None, prompt_tokens=70, video_tokens=60)),
    ]
    result = score(pairs)
    assert (result.prompt_tokens, result.video_tokens, result.unreadable, result.questions) == (60, 50, 1, 2)
    assert score([(question("a"), answer("a", video_tokens=None)), *pairs]).video_tokens is None


def test_a_difference_counts_gains_and_losses():
    ours, theirs = [1, 1, 0, 0, 1], [1, 0, 1, 1, 1]
    baseline = {str(i): answer(str(i), right) for i, right in enumerate(theirs)}
    result = difference(asked(ours), baseline)
    assert (result.mean, result.gained, result.lost) == (pytest.approx(-0.2), 1, 2)
    assert -1 <= result.low <= result.mean <= result.high <= 1


def test_equal_answers_differ_by_nothing():
    pairs = asked([1, 0, 1])
    result = difference(pairs, {q.key: a for q, a in pairs})
    assert (result.mean, result.low, result.high) == (0, 0, 0)


def test_the_interval_is_that_of_all_draws():
    total, count = np.array([1.0, -1.0, 2.0]), np.array([1, 1, 3])
    every = [total[list(draw)].sum() / count[list(draw)].sum() for draw in itertools.product(range(3), repeat=3)]
    # 27 equally likely draws, so quantiles are looked for in the whole distribution rather than between its points.
    expected = np.quantile(np.repeat(every, 1000), [0.025, 0.975])
    assert bootstrap(total, count) == pytest.approx(tuple(expected))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(200):
        size = rng.integers(1, 8, size=50)
        total = rng.binomial(size, 0.3) - rng.binomial(size, 0.2)
        low, high = bootstrap(total, size, seed=repeat)
        covered += low <= 0.1 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_results_are_repeatable():
    pairs = asked([1, 0, 1, 0, 0, 1])
    baseline = {q.key: answer(q.key, i % 3 == 0) for i, (q, _) in enumerate(pairs)}
    assert difference(pairs, baseline) == difference(pairs, baseline)
