"""What a worker remembers of videos goes with their rows, and no number stands for two videos at once."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from serving_cases import ask
from serving_engine import prune

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.serving.worker.trace import TraceWriter


def read_info(rows: torch.Tensor) -> int:
    return carrier.read_parts([rows], torch.empty(0), [])[0][0].info


def info(kept: int = 4) -> MediumInfo:
    counts = plan_counts(PruneConfig(method="uniform", target_token_num=kept), 32)
    return MediumInfo(MediumLayout((2, 4, 4)), counts, "{}")


def attach(table: MediumTable, about: MediumInfo) -> torch.Tensor:
    count = about.counts.kept
    cells = torch.arange(count)
    return table.attach(about, lambda number: carrier.pack(torch.zeros(count, 8), cells, cells, count, number))


def test_a_video_is_known_as_long_as_any_part_of_its_rows():
    table, about = MediumTable(), info()
    rows = attach(table, about)
    part = rows[2:3]
    del rows
    gc.collect()
    assert table[read_info(part)] is about
    del part
    gc.collect()
    assert len(table) == 0


def test_numbers_come_round_and_are_never_shared():
    table, held, choose = MediumTable(capacity=7), [], random.Random(0)
    for kept in range(1, 400):
        if len(held) == 7:
            held.pop(choose.randrange(7))
        about = info(1 + kept % 32)
        held.append((attach(table, about), about))
        assert all(table[read_info(rows)] is known for rows, known in held)
        assert len(table) == len(held)


def test_more_videos_than_numbers_are_refused():
    table = MediumTable(capacity=2)
    held = [attach(table, info()) for _ in range(2)]
    with pytest.raises(RuntimeError, match="the rows of 2 videos exist at once"):
        attach(table, info())
    assert len(held) == len(table)


def test_rows_that_could_not_be_made_leave_nothing():
    table = MediumTable(capacity=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            table.attach(info(), lambda number: torch.zeros(1 // 0))
    attach(table, info())


@pytest.mark.parametrize("config", ["default", {"stage1": {"cluster_ratio": 0.5}}])
def test_the_engine_forgets_what_no_cache_holds(engine, config):
    table = engine.model._encoder_rows.media
    gc.collect()
    assert len(table) == 0
    for seed in range(3):
        engine.run([prune(ask(16, 112, 112, seed=60 + seed, question="What is red?"), config)])
    assert len(table) == 3
    engine.run([prune(ask(16, 112, 112, seed=60, question="What is blue?"), config)])
    assert len(table) == 3
    engine.forget()
    gc.collect()
    assert len(table) == 0


def test_what_is_written_of_a_video_is_held_as_long_as_its_rows(engine, tmp_path, monkeypatch):
    """What vLLM's encoder cache drops is forgotten; what it has can be written about as often as it is asked."""
    writer = TraceWriter(str(tmp_path))
    monkeypatch.setattr(engine.model._encoder_rows, "_trace", writer)
    monkeypatch.setattr(engine.model._dense_prefix, "_trace", writer)
    for question in ("What is red?", "What is blue?"):
        engine.run([prune(ask(16, 112, 112, seed=53, question=question), "default")])
    assert len(list(tmp_path.glob("*.npz"))) == 2
    table = engine.model._encoder_rows.media
    (number,) = table._infos
    trace = weakref.ref(table[number].trace)
    assert trace() is not None
    engine.forget()
    gc.collect()
    assert trace() is None
