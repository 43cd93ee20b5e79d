"""The embedded model on a server that lets requests ask for anything: it answers, also from pruned videos."""

from __future__ import annotations

import pytest
from serving_samples import share_right


@pytest.mark.parametrize(
    ("prune", "least_right", "kept"),
    [("baseline", 0.85, 1.0), (None, 0.6, 0.5), ({"stage1": {"cluster_ratio": 0.25}}, 0.5, 0.25)],
    ids=["unpruned", "half", "quarter"],
)
def test_answers(embedded, prune, least_right, kept):
    right, share = share_right(embedded, prune)
    assert share == pytest.approx(kept, abs=0.01)
    assert right >= least_right


@pytest.mark.parametrize("prune", ["default", {"method": "attention", "keep_ratio": 0.25}, {"preset": "aggressive"}])
def test_the_question_may_choose(embedded, prune):
    right, share = share_right(embedded, prune)
    assert share < 0.3
    assert right >= 0.5
