"""What `python -m benchmarks.clients` takes for a failure. The runs themselves need packages that no test installs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clients.__main__ import CLIENTS, check, expected_counts
from benchmarks.clients.client import Found, Run, sample_questions
from benchmarks.clients.server import Counts

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "clients" / "requirements"


def run_in(folder: Path) -> Run:
    return Run(folder=folder, url="http://127.0.0.1:8000", python=Path(sys.executable))


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("name", CLIENTS)
def test_the_version_is_pinned_and_the_docs_name_it(name: str) -> None:
    first = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()[0]
    pinned = re.fullmatch(rf"{name}(?:\[\w+\])?==(\d+\.\d+\.\d+)", first)
    assert pinned, first
    assert re.search(rf"{name} {re.escape(pinned[1])}\b", (ROOT / "docs" / "clients.md").read_text(), re.IGNORECASE)


@pytest.mark.parametrize("name", CLIENTS)
def test_its_task_has_every_question_and_its_clip(name: str, tmp_path: Path) -> None:
    CLIENTS[name].command(run_in(tmp_path))
    (file,) = tmp_path.rglob("questions.jsonl")
    tasks = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(tasks) == len(sample_questions())
    for task, asked in zip(tasks, sample_questions(), strict=True):
        assert {asked.question, str(asked.clip.path)} <= set(task.values())


def test_what_the_server_counts_must_be_what_the_configuration_says() -> None:
    pruned, everything = expected_counts("default"), expected_counts("baseline")
    assert everything.kept == everything.before == pruned.before > 4 * pruned.kept > 0
    check(Found(pruned.requests, {}), pruned, pruned)
    seen_as_images = Counts(0, 0, 0)
    for counted in (everything, seen_as_images, Counts(pruned.requests - 1, pruned.before, pruned.kept)):
        with pytest.raises(ValueError, match="the server counted"):
            check(Found(pruned.requests, {}), counted, pruned)
    with pytest.raises(ValueError, match="14 requests answered; 15 were asked"):
        check(Found(14, {}), pruned, pruned)


def test_failed_requests_of_lmms_eval_are_no_wrong_answers(tmp_path: Path) -> None:
    """Which writes them into the place of the answer, scores them 0 and ends with status 0."""
    out = tmp_path / "out" / "embedded"
    write(out / "1_results.json", {"results": {"sample_clips": {"right,none": 0.5}}})
    samples = [{"filtered_resps": "up", "right": 1.0}, {"filtered_resps": "blue", "right": 0.0}]
    file = out / "1_samples_sample_clips.jsonl"
    file.write_text("\n".join(map(json.dumps, samples)))
    assert CLIENTS["lmms-eval"].read(run_in(tmp_path)) == Found(2, {"right answers": "50%"})
    samples[1]["filtered_resps"] = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Connection error."
    file.write_text("\n".join(map(json.dumps, samples)))
    with pytest.raises(ValueError, match=r"1 of 2 requests failed: .*Connection error"):
        CLIENTS["lmms-eval"].read(run_in(tmp_path))


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_wrote_nothing_has_failed(name: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)):
        CLIENTS[name].read(run_in(tmp_path))


def test_an_unknown_client_is_a_wrong_argument() -> None:
    command = [sys.executable, "-m", "benchmarks.clients", "nope", "-o", "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "client 'nope': must be one of lmms-eval, guidellm, aiperf" in done.stderr
