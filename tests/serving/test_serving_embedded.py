"""The embedded model on a server that lets requests ask for anything: it answers, also from pruned videos."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from serving_samples import share_right
from serving_server import PAGE_KEY


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


@pytest.mark.skipif(importlib.util.find_spec("benchmarks") is None, reason="needs the repository's benchmarks/")
def test_the_benchmark_of_answers_asks_a_server(embedded, tmp_path):
    """Clips of 128 tokens: 16 frames in pairs, 4 x 4 tokens each."""
    attention = 'attention@12%={"stage1": null, "method": "attention", "keep_ratio": 0.12}'
    command = [sys.executable, "-m", "vllm_prune.cli.main", "bench", "accuracy", "--dataset", "synthetic", "-n", "2"]
    command += ["--frames", "16", "--prune", "baseline", "--prune", attention, "-o", str(tmp_path)]
    command += ["--url", f"{embedded.root}/v1", "--api-key", PAGE_KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {entry["name"]: entry for entry in json.loads((tmp_path / "accuracy.json").read_text())["configurations"]}
    assert found["baseline"]["accuracy"]["mean"] >= 0.9
    assert (found["baseline"]["video_tokens"], found["attention@12%"]["video_tokens"]) == (128, 15)
    assert found["attention@12%"]["share_kept"] == pytest.approx(15 / 128, abs=1e-5)
