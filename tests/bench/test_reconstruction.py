"""The error of reconstruction against a plain loop; the table has a row for each case."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.methods import Assignment

reconstruction = pytest.importorskip("benchmarks.reconstruction", reason="needs the repository's benchmarks/")


def test_error_is_what_slots_blur():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [11.0, 1.0]])
    error, largest = reconstruction.measure_error(
        features, Assignment(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 2]))
    )
    spread = float((features - features.mean(0)).square().sum())
    assert error == pytest.approx((1 + 1 + 0 + 2) / spread)
    assert largest == 0.5


def test_nothing_is_lost_where_everything_stays():
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    assert reconstruction.measure_error(features, Assignment.identity(12)) == (0, pytest.approx(1 / 12))


def test_the_common_component_raises_cosines_and_leaves_distances():
    path = next(iter(reconstruction.real_clips().values()))
    plain, common = (reconstruction.load_tokens(path, 2, share).features for share in (0.0, 1.5))
    torch.testing.assert_close(
        torch.cdist(plain[:9], plain[:9]), torch.cdist(common[:9], common[:9]), atol=2e-2, rtol=0
    )
    cosines = [float(torch.nn.functional.cosine_similarity(x[:-1], x[1:]).mean()) for x in (plain, common)]
    assert cosines[0] < cosines[1] < 1


def test_the_table_compares_with_an_earlier_one():
    rows = [{"clip": "a.mp4", "frames": 4, "features": "pixels", "keep": 0.1, "methods": {"tome": (0.5, 0.2)}}]
    earlier = {"rows": [{**rows[0], "methods": {"tome": (0.75, 0.2)}}], "provenance": {}}
    cell = reconstruction._cell(rows[0], "tome", earlier)
    assert cell == "0.750 → 0.500 (20%)"
    assert reconstruction._cell(rows[0], "tome", None) == "0.500 (20%)"
