"""The command line."""

import argparse
import subprocess
import sys

import pytest
from accuracy_cases import touch, write_json

from vllm_prune.bench.accuracy import command
from vllm_prune.bench.accuracy.engine import InProcess
from vllm_prune.bench.accuracy.plot import read_ttft
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.cli import bench
from vllm_prune.embedded import model_path


@pytest.fixture
def own(tmp_path):
    touch(tmp_path / "a.mp4")
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f'{{"video": "a.mp4", "question": "{i}?", "answer": "x"}}\n' for i in range(4)))
    return ["--dataset", str(path), "--data", str(tmp_path), "-o", str(tmp_path / "out")]


def plan(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.make_plan(parser.parse_args(arguments))


def test_defaults(own):
    made = plan(*own, "--prune", "stock", "--prune", "default")
    assert [c.name for c in made.configurations] == ["stock", "default"]
    assert made.baseline == "stock"
    assert len(made.questions) == 4
    assert isinstance(made.backend, InProcess)
    assert (made.backend.model, made.backend.max_tokens, made.backend.max_frames) == (model_path(), 16, 32)
    assert made.log.name == "accuracy.answers.jsonl"


def test_a_server_is_asked_with_url(own):
    made = plan(*own, "--prune", "stock", "--url", "http://127.0.0.1:1/v1", "--model", "m", "--max-tokens", "5")
    assert made.backend.describe() == {"url": "http://127.0.0.1:1/v1", "model": "m", "max_tokens": 5}


def test_configurations_from_a_file(own, tmp_path):
    path = write_json(tmp_path / "c.json", {"u@25%": {"method": "uniform", "keep_ratio": 0.25}, "e": "evs:0.5"})
    made = plan(*own, "--prune", "baseline", "--prune-file", str(path), "--baseline", "e")
    assert [c.name for c in made.configurations] == ["baseline", "u@25%", "e"]
    assert made.configurations[1].config.keep_ratio == 0.25
    assert made.baseline == "e"


def test_synthetic_clips_by_seed():
    pytest.importorskip("benchmarks.tiny_model", reason="needs the repository's benchmarks/")
    made = plan("--dataset", "synthetic", "-n", "1", "--seeds", "0", "1", "--frames", "16", "--prune", "baseline")
    assert {question.seed for question in made.questions} == {0, 1}
    assert (made.backend.max_tokens, made.backend.max_frames) == (1, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["--prune", "stok"], r"--prune 'stok': preset='stok': unknown"),
        (["--prune", "stock", "--prune", "stock"], "--prune: 'stock' comes 2 times"),
        (["--prune", "evs:2"], "--prune evs:2: the rate must be"),
        (["--prune", "stock", "--baseline", "x"], "--baseline x: not among the names of --prune: stock"),
        (["--prune", "stock", "--model", "/nowhere"], r"--model /nowhere: no config\.json there"),
        (["--prune", "stock", "--seeds", "1", "1"], "--seeds 1 1: each seed once"),
        (["--prune", "stock", "--n", "3", "--seeds", "0", "1"], "sample 1 would end at question 6 of 4"),
        (["--prune", "stock", "--notes", "/nowhere.md"], r"--notes /nowhere\.md: .*No such file"),
        (["--prune-file", "/nowhere.json"], r"/nowhere\.json: no such file"),
        (["--prune", "stock", "--ttft", "/nowhere.json"], "--ttft /nowhere.json: not a result of `vllm-prune"),
    ],
)
def test_mistakes_are_named(own, arguments, message):
    with pytest.raises(BenchmarkError, match=message):
        plan(*own, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "0: must be 1 or more"),
        (["--seeds", "-1"], "-1: must be 0 or more"),
        (["--engine-args", "{"], "not valid JSON"),
        (["--engine-args", "[]"], "must be a JSON object"),
    ],
)
def test_malformed_options_are_refused(own, arguments, message, capsys):
    with pytest.raises(SystemExit):
        plan(*own, "--prune", "stock", *arguments)
    assert message in capsys.readouterr().err


def test_ttft_is_read_from_the_throughput_benchmark(tmp_path):
    def entry(name, clients, value):
        return {"configuration": name, "clients": clients, "metrics": {"ttft_mean_ms": {"mean": value}}}

    path = write_json(tmp_path / "t.json", {"summary": [entry("a", 8, 9.0), entry("a", 1, 5.0), entry("b", 1, 4.0)]})
    assert read_ttft(path) == {"a": 5.0, "b": 4.0}
    write_json(path, {"summary": []})
    with pytest.raises(BenchmarkError, match="not a result"):
        read_ttft(path)


def run_bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vllm_prune.cli.main", "bench", "accuracy", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_errors_end_the_command_with_a_message(own):
    done = run_bench(*own, "--prune", "stock", "--url", "http://127.0.0.1:1/v1", "--model", "m")
    assert done.returncode == 1
    assert "vllm-prune bench accuracy: no server at http://127.0.0.1:1/v1" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import argparse, sys\nfrom vllm_prune.bench.accuracy import command\n"
        "command.add_arguments(argparse.ArgumentParser())\n"
        "print('heavy:', sorted({'torch', 'vllm'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "heavy: []" in output.stdout, output.stderr
    assert "accuracy" in bench.BENCHMARKS
