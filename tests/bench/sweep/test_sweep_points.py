"""The grid, the front, the log and the report of a sweep; no model runs."""

import json

import pytest

from vllm_prune.bench.accuracy.scores import Score
from vllm_prune.bench.sweep.entries import ANSWER, TTFT, ProbeLog
from vllm_prune.bench.sweep.pareto import front
from vllm_prune.bench.sweep.plot import draw
from vllm_prune.bench.sweep.points import UNPRUNED, Axes, make_configurations
from vllm_prune.bench.sweep.report import markdown
from vllm_prune.bench.sweep.results import SweepResults
from vllm_prune.bench.throughput.aggregate import Estimate
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.cli.main import main
from vllm_prune.config import PRESETS, PruneConfig

STAGE1 = {"tau": [0.7, 0.8, 0.9], "cluster_ratio": [0.3, 0.5, 0.7], "temporal_segment_ratio": [0.25, 0.5]}


def test_every_combination_once():
    axes = Axes(**STAGE1, keep_ratio=[None, 0.4], layer=[None, 1, 3])
    points = axes.points()
    assert len(points) == 18 * (1 + 3) == len({point.name for point in points})
    configs = [configuration.config for configuration in make_configurations(points, 6)]
    assert configs[0] == PruneConfig()
    assert len(set(map(PruneConfig.to_json, configs))) == 1 + len(points)
    assert PRESETS["default"] in configs
    assert PRESETS["stage1_only"] in configs


@pytest.mark.parametrize(
    ("axis", "message"),
    [({"layer": [9]}, r"layer=9: layers=\[9\]"), ({"tau": [2.0]}, "tau=2"), ({"keep_ratio": [0]}, "keep=0")],
)
def test_a_value_out_of_range_is_named(axis, message):
    axes = Axes(**{**STAGE1, "keep_ratio": [0.4], "layer": [None], **axis})
    with pytest.raises(BenchmarkError, match=message):
        make_configurations(axes.points(), 6)


def test_the_front_is_what_nothing_beats():
    costs, qualities = [10, 10, 20, 30, 30, 5], [0.5, 0.6, 0.6, 0.9, 0.9, 0.1]
    assert front(costs, qualities) == [False, True, False, True, True, True]
    assert front([], []) == []


def make_results(with_accuracy: bool) -> SweepResults:
    points = Axes(
        tau=[0.8], cluster_ratio=[0.3, 0.5], temporal_segment_ratio=[0.25], keep_ratio=[None, 0.4], layer=[1]
    ).points()
    names = [UNPRUNED, *(point.name for point in points)]
    answers, seconds, scores = {}, {}, {}
    for index, name in enumerate(names):
        answers[name] = {
            "text": "no" if index == 4 else "red",
            "token_ids": [1],
            "prompt_tokens": 120 - 20 * index,
            "video_tokens": 100 - 20 * index,
            "log_probability": -0.1 * index,
        }
        seconds[name] = [0.3 - 0.01 * index, 0.2, 0.5]
        accuracy = Estimate(mean=1 - 0.1 * index, standard_error=0.01, n=4)
        tokens = 100.0 - 20 * index
        scores[name] = Score(
            accuracy=accuracy, questions=9, unreadable=0, prompt_tokens=tokens + 20, video_tokens=tokens
        )
    session = {
        "seconds": 3.0,
        "started": "now",
        "commit": "c",
        "source_sha256": "s" * 20,
        "versions": {"torch": "2"},
        "machine": {"cpu": "x", "cpu_cores": 2, "memory_gib": 4, "gpus": [], "load_average_at_start": 0.1},
    }
    settings = {
        "title": "t",
        "command": "c",
        "sessions": [session],
        "measured_with": {},
        "questions": 9,
        "probed": {"video": "v", "question": "Which?"},
    }
    return SweepResults(settings, points, answers, seconds, scores if with_accuracy else {})


@pytest.mark.parametrize("with_accuracy", [False, True])
def test_results_are_written_and_drawn(tmp_path, with_accuracy):
    results = make_results(with_accuracy)
    results.write(tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["quality"] == ("accuracy" if with_accuracy else "log_probability")
    assert len(document["points"]) == 4
    # Fewer tokens always cost quality here, so that every point is on the front; by time, which is the same, the best.
    assert all(point["on_front_by_tokens"] for point in document["points"])
    assert [point["agrees"] for point in document["points"]] == [True, True, True, False]
    assert document["points"][0]["share_kept"] == 0.8
    assert document["unpruned"]["ttft_ms"] == 300
    assert PruneConfig.parse(document["points"][1]["configuration"]) == results.points[1].point.config
    assert markdown(results).count("\n| 0.8 |") == 4
    draw(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_what_is_known_is_not_measured_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with ProbeLog(path, {"model": "m"}, resume=False) as log:
        log.add("p", TTFT, 0.5, repeat=1)
        log.add("p", ANSWER, {"text": "red"})
    with path.open("a") as file:
        file.write('{"point": "p", "what": "tt')  # the run was killed here
    with ProbeLog(path, {"model": "m"}, resume=True) as log:
        assert (len(log), log.get("p", TTFT, 1), log.has("p", TTFT, 0)) == (2, 0.5, False)
        log.add("p", TTFT, 0.4)
    with ProbeLog(path, {"model": "m"}, resume=True) as log:
        assert len(log) == 3
    with pytest.raises(BenchmarkError, match="has measurements of an earlier run; go on with --resume"):
        ProbeLog(path, {"model": "m"}, resume=False)
    with pytest.raises(BenchmarkError, match="were made with model='m', this run has 'other'"):
        ProbeLog(path, {"model": "other"}, resume=True)
    path.write_text('{"schema": 1, "model": "m"}\n{"x": 1}\n')
    with pytest.raises(BenchmarkError, match=r"a\.jsonl:2: not a measurement"):
        ProbeLog(path, {"model": "m"}, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to ask"),
        (["no.mp4"], "no.mp4: no such file"),
        (["--dataset", "nope"], "--dataset 'nope': neither a known dataset"),
        (["--dataset", "egoschema", "--data", "/no"], "--data /no: no such folder"),
        (["--dataset", "synthetic", "-n", "1", "--question", "Why?"], "give the VIDEO that it is about"),
        (["--dataset", "synthetic", "-n", "1", "--model", "/no"], "--model /no: no config.json there"),
        (["--dataset", "synthetic", "-n", "1", "--layer", "9", "--keep-ratio", "0.4"], "layers=[9]"),
    ],
)
def test_a_wrong_argument_is_named(capsys, tmp_path, arguments, message):
    assert main(["bench", "sweep", *arguments, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
