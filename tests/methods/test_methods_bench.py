"""`vllm-prune bench methods` on a small size: what it writes, and that it compares like with like."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from method_cases import random_video

from vllm_prune.bench.methods import references
from vllm_prune.bench.methods.measure import measure
from vllm_prune.methods import compact, create, names

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
command = pytest.importorskip("vllm_prune.cli.bench_methods")

SMALL = ["--frames", "4", "--tokens-per-frame", "12", "--keep", "6", "--dim", "16", "--repeats", "2", "--still", "0.5"]


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(arguments)))


def test_it_writes_json_markdown_and_a_picture(tmp_path: Path) -> None:
    assert _run(*SMALL, "--sweep-frames", "8", "4", "-o", str(tmp_path)) == 0
    results = json.loads((tmp_path / "methods.json").read_text())
    measured = {(row["name"], row["kind"]) for row in results["main"]}
    assert {(name, "method") for name in names()} <= measured
    assert {
        ("dpp by frame", "reference"),
        ("prunevid", "reference"),
        ("tome", "reference"),
        ("Gram products", "floor"),
    } <= measured
    assert [row["tokens"] for row in results["sweep"]] == [48] * (len(names()) + 1) + [96] * (len(names()) + 1)
    text = (tmp_path / "methods.md").read_text()
    assert all(f"| {name} (method) |" in text for name in names())
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_it_reports_what_the_modes_of_the_dpp_lose(tmp_path: Path) -> None:
    assert _run(*SMALL, "--methods", "uniform", "--approximations", "-o", str(tmp_path)) == 0
    rows = json.loads((tmp_path / "methods.json").read_text())["approximations"]
    assert [(row["tokens"], row["kept"]) for row in rows] == [(12, 6), (48, 24), (192, 96)]
    for row in rows[:1]:  # with more tokens than channels every choice is singular
        assert all(row["exact"] >= row[name] - 1e-6 for name in ("top relevance", "random", "uniform"))
    gap = rows[0]["lowrank"] - rows[0]["exact"]
    assert f"| {gap:+.2f} |" in (tmp_path / "methods.md").read_text()


def test_it_refuses_to_keep_more_than_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--tokens-per-frame", "4", "--keep", "5", "-o", str(tmp_path)) == 2
    assert "--keep 5: must be at most --tokens-per-frame 4" in capsys.readouterr().err


def test_processor_time_is_for_one_thread_of_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*SMALL, "--clock", "cpu", "-o", str(tmp_path)) == 2
    assert "--clock cpu: give --device cpu --threads 1" in capsys.readouterr().err
    assert _run(*SMALL, "--clock", "cpu", "--threads", "1", "--methods", "uniform", "-o", str(tmp_path)) == 0


def test_memory_is_the_most_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.zeros(1000).add(1)

    assert 8000 <= measure(call, "cpu", 1).peak_bytes < 9000


def test_the_plain_versions_do_the_same_work() -> None:
    tokens = random_video(0, (4, 3, 4), 32)
    plain = torch.cat([frame.sort().values + 12 * t for t, frame in enumerate(references.dpp(tokens, 24))])
    mine = create("dpp", scope="frame").assign(tokens, 24).anchor
    gram = torch.nn.functional.normalize(tokens.features.double(), dim=1)
    for frame in range(4):
        volumes = [gram[kept[kept // 12 == frame]] for kept in (plain, mine)]
        first, second = (float(torch.logdet(rows @ rows.T)) for rows in volumes)
        assert first == pytest.approx(second, abs=0.3), "the first pick is a tie"
    sums = torch.cat(references.tome(tokens, 24)).norm(dim=1).sort().values
    assignment = create("tome").assign(tokens, 24)
    merged = compact(tokens, assignment).features * assignment.slot.bincount()[:, None]
    torch.testing.assert_close(merged.norm(dim=1).sort().values, sums, atol=1e-4, rtol=1e-4)
    assert len(references.prunevid(tokens, 24)) == len(create("prunevid").plan(tokens).group_sizes.nonzero())  # type: ignore[attr-defined]
