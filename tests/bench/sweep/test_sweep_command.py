"""`vllm-prune bench sweep` as it is called, with the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import clips

CLIP = clips()[0]
COMMAND = [sys.executable, "-m", "vllm_prune.cli.main", "bench", "sweep", str(CLIP.path)]
OPTIONS = ["--question", CLIP.questions[0].question, "--tau", "0.8", "--cluster-ratio", "0.3", "0.5"]
OPTIONS += ["--segment-ratio", "0.25", "--keep-ratio", "none", "0.4", "--layer", "1", "2", "--repeats", "2"]
TOKENS, POINTS, REPEATS = 128, 6, 2


def test_a_sweep_measures_every_point_and_nothing_twice(tmp_path):
    command = [*COMMAND, *OPTIONS, "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document["unpruned"]["answer"] == CLIP.questions[0].answer
    assert document["unpruned"]["video_tokens"] == TOKENS
    assert -0.1 < document["unpruned"]["log_probability"] <= 0
    assert len(document["points"]) == POINTS
    for point in document["points"]:
        config = PruneConfig.parse(point["configuration"])
        assert point["video_tokens"] == plan_counts(config, TOKENS).kept
        assert point["log_probability"] <= 0
        assert point["ttft_ms"] > 0
    assert any(point["on_front_by_tokens"] for point in document["points"])
    log = (tmp_path / "sweep.probe.jsonl").read_text()
    assert log.count('"point"') == (1 + POINTS) * (1 + REPEATS)
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (tmp_path / "sweep.probe.jsonl").read_text() == log
    assert json.loads((tmp_path / "sweep.json").read_text())["points"] == document["points"]
