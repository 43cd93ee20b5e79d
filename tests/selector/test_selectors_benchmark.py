"""The table of `benchmarks/selectors.py`."""

import json
import sys

import pytest

from benchmarks import selectors
from benchmarks.selectors_report import _clustered
from vllm_prune.embedded import selector_path


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(selectors, "LENGTHS", (16,))
    monkeypatch.setattr(selectors, "NOISES", ("clean",))
    monkeypatch.setattr(selectors, "RATIOS", (0.12,))
    output = tmp_path / "table"

    def call(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["selectors", "-o", str(output), "--n", "1", "--seeds", "0", "1", *arguments])
        selectors.main()
        return json.loads(output.with_suffix(".json").read_text())

    return call, output


def test_a_selector_is_added_to_a_table_that_is_there(run):
    call, output = run
    first = call()
    lines = output.with_suffix(".answers.jsonl").read_text().splitlines()
    second = call("--selector", f"match={selector_path()}")
    added = output.with_suffix(".answers.jsonl").read_text().splitlines()[len(lines) :]
    assert [json.loads(line).get("group") for line in added] == ["match", "match", None]
    assert first["clips"] == second["clips"] == 2
    assert set(second["accuracy"]) - set(first["accuracy"]) == {"match, top-k", "match, DPP"}
    assert first["accuracy"].items() <= second["accuracy"].items()
    table = output.with_suffix(".md").read_text()
    assert "| match, DPP |" in table
    assert second["selectors"]["match"][:16] in table


def test_a_run_out_of_time_makes_no_table(run):
    call, output = run
    with pytest.raises(FileNotFoundError):
        call("--seconds", "-1")
    assert not output.with_suffix(".md").exists()


def test_questions_about_one_clip_are_not_independent():
    assert _clustered([[1, 1], [0, 0]]) == (50.0, 50.0)
    assert _clustered([[1, 0], [0, 1]]) == (50.0, 0.0)
