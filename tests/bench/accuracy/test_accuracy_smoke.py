"""The benchmark on the embedded model: real engines, interrupted and resumed."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("benchmarks.tiny_model", reason="needs the repository's benchmarks/")

UNIFORM = 'uniform@12%={"method": "uniform", "keep_ratio": 0.12}'
ATTENTION = 'attention@12%={"method": "attention", "keep_ratio": 0.12}'
CLIPS = ["--dataset", "synthetic", "-n", "2", "--frames", "16"]
VIDEO_TOKENS = 128  # 16 frames in pairs, 4 x 4 tokens each


def command(*arguments):
    return [sys.executable, "-m", "vllm_prune.cli.main", "bench", "accuracy", *CLIPS, *arguments]


def entries(folder):
    return {entry["name"]: entry for entry in json.loads((folder / "accuracy.json").read_text())["configurations"]}


def answers(folder):
    lines = (folder / "accuracy.answers.jsonl").read_text().splitlines()[1:]
    return [entry for entry in map(json.loads, lines) if "session" not in entry]


def session(leader):
    """Processes of the session that `leader` began, but for leftovers that nobody has waited for."""
    listed = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = (line.split(maxsplit=2) for line in listed.splitlines()[1:])
    return [args for sid, stat, args in lines if sid == str(leader) and not stat.startswith("Z")]


def test_engines_interrupted_and_resumed(tmp_path):
    given = ["--prune", "baseline", "--prune", UNIFORM, "--prune", ATTENTION, "--prune", "stock"]
    whole = command(*given, "--batch", "30", "-o", str(tmp_path))
    log = tmp_path / "accuracy.answers.jsonl"
    process = subprocess.Popen(
        whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (log.exists() and len(log.read_text().splitlines()) > 1):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "go on with --resume" in errors
    deadline = time.monotonic() + 10  # helpers of multiprocessing end by themselves, a moment later
    while session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert session(process.pid) == []
    assert not (tmp_path / "accuracy.json").exists()
    first = answers(tmp_path)

    done = subprocess.run([*whole, "--resume"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    every = answers(tmp_path)
    assert every[: len(first)] == first
    keys = [(answer["configuration"], answer["question"]) for answer in every]
    assert len(keys) == len(set(keys)) == 4 * len({question for _, question in keys})

    found = entries(tmp_path)
    assert {name: entry["video_tokens"] for name, entry in found.items()} == {
        "baseline": VIDEO_TOKENS,
        "stock": VIDEO_TOKENS,
        "uniform@12%": 15,
        "attention@12%": 15,
    }
    assert found["baseline"]["accuracy"]["mean"] >= 0.9
    assert found["attention@12%"]["accuracy"]["mean"] > found["uniform@12%"]["accuracy"]["mean"]
    said = {(answer["configuration"], answer["question"]): answer["said"] for answer in every}
    assert all(said["{}", question] == text for (name, question), text in said.items() if name == "stock")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_an_engine_that_cannot_start_is_explained(tmp_path):
    given = ["--prune", "baseline", "--engine-args", '{"max_model_len": -5}', "-o", str(tmp_path)]
    done = subprocess.run(command(*given), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "max_model_len" in done.stderr
    assert "engine-0-0.log" in done.stderr
