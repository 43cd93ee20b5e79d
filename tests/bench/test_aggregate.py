"""Means, standard errors and ratios."""

import math

import pytest

from vllm_prune.bench.throughput.aggregate import Run, estimate, ratio, values_by_repeat


def runs(**values):
    """Runs of one client by configuration: `a=[1, 2]` measured `x` as 1 in repeat 0 and 2 in repeat 1."""
    return [
        Run(configuration=name, clients=1, repeat=repeat, values={} if value is None else {"x": value})
        for name, series in values.items()
        for repeat, value in enumerate(series)
    ]


def test_mean_and_standard_error():
    found = estimate([2.0, 4.0, 6.0, 8.0])
    assert found.mean == 5.0
    # Sample variance 20/3 over 4 values.
    assert found.standard_error == pytest.approx(math.sqrt(20 / 3 / 4))
    assert found.n == 4


def test_one_value_has_no_standard_error():
    assert estimate([3.0]).standard_error is None
    assert estimate([3.0]).text(1) == "3.0"


def test_text_has_both():
    assert estimate([1.0, 3.0]).text(2) == "2.00 ± 1.00"


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="one value or more"):
        estimate([])


def test_ratio_pairs_repeats():
    # The second repeat ran on a machine twice as slow: the ratio does not move.
    found = ratio(runs(ours=[1.0, 2.0], stock=[4.0, 8.0]), "ours", "stock", 1, "x")
    assert (found.mean, found.standard_error) == (0.25, 0.0)


def test_ratio_leaves_out_repeats_that_lack_one():
    found = ratio(runs(ours=[1.0, None, 3.0], stock=[2.0, 2.0]), "ours", "stock", 1, "x")
    assert (found.mean, found.n) == (0.5, 1)


def test_ratio_to_nothing_is_none():
    assert ratio(runs(ours=[1.0], stock=[0.0]), "ours", "stock", 1, "x") is None
    assert ratio(runs(ours=[1.0]), "ours", "stock", 1, "x") is None


def test_values_keep_to_configuration_and_clients():
    other = Run(configuration="a", clients=8, repeat=0, values={"x": 9.0})
    assert values_by_repeat([*runs(a=[1.0], b=[2.0]), other], "a", 1, "x") == {0: 1.0}
