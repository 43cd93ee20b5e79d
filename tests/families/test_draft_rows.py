"""`DraftRows`: what a drafter gets of packed rows, at the places of each request's own prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.ask_first import AskFirst
from vllm_prune.serving.worker.draft_rows import DraftRows, Window
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.spans import TurnFormat

CELLS, KEPT, WIDTH, FIRST = 12, 4, 16, 3
TURN = TurnFormat(reply_start=(2, 9), num_more=0, special=(0, 2, 6))
QUESTION = PruneConfig.parse(
    {
        "method": "question",
        "stage1": None,
        "keep_ratio": None,
        "target_token_num": KEPT,
        "params": {"relevance": "text", "selector": "topk"},
    }
)


@pytest.fixture(autouse=True)
def alone_too(alone) -> None:
    """No other rank to compare with."""


def make(by_question: bool) -> tuple[DraftRows, torch.Tensor, torch.Tensor]:
    """Those of a model, rows [KEPT, ...] of a video whose cell i is like token 20 + i, and all its features."""
    table, words = MediumTable(), 5 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    features = words[20 : 20 + CELLS] if by_question else words[20 : 20 + KEPT]
    entering = KEPT if not by_question else CELLS
    layers: dict[str, Any] = {"layers": (KEPT,), "by_question": True} if by_question else {}
    counts = TokenCounts(total=CELLS, encoded=CELLS, stage1=entering, entering=KEPT, **layers)
    info = MediumInfo(MediumLayout((1, 3, 4)), counts, QUESTION.to_json(), turn=TURN)
    slots = torch.arange(entering)
    rows = table.attach(info, lambda number: carrier.pack(features, slots, 0 * slots, KEPT, number))
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(get_inputs_embeds_size=lambda: WIDTH),
        device_config=SimpleNamespace(device="cpu"),
    )
    ask_first = AskFirst(config, table, {}, WIDTH, lambda ids: words[ids], None)
    return DraftRows(table, ask_first, WIDTH, WIDTH), rows, features


def prompt(*question: int) -> list[int]:
    return [7, 8, 0, *[6] * KEPT, 0, *question, 2, 9]


def windows(start: int, count: int, *prompts: list[int]) -> list[Window]:
    return [Window(start, count, lambda own=own: own) for own in prompts]  # type: ignore[misc]


def test_rows_that_were_kept_before():
    """A step from the prompt's second token to the video's second is ahead by one."""
    rows, packed, features = make(by_question=False)
    is_media = torch.tensor([False, True, True, True])
    (found,) = rows.unpack([packed[:3]], is_media, windows(2, 4, prompt(10, 11)))
    assert torch.equal(found, features[:3])


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_rows_that_each_question_chooses(skipped):
    """Of two requests with one video, in steps that begin before the video or inside it."""
    rows, packed, features = make(by_question=True)
    asked = [prompt(21, 24), prompt(30)]
    start = FIRST + skipped
    part = packed[skipped:]
    is_media = torch.tensor([*[True] * len(part), False, *[True] * len(part), False])
    found = rows.unpack([part, part], is_media, windows(start, len(part) + 1, *asked))
    for own, ids, cells in zip(found, asked, ({1, 4}, {10}), strict=True):
        (whole,) = rows.unpack([packed], torch.tensor([True] * KEPT), windows(FIRST, KEPT, ids))
        kept = [int((features == row).all(dim=1).nonzero()) for row in whole]
        assert kept == sorted(kept)
        assert cells < set(kept)
        assert torch.equal(own, whole[skipped:])


def test_rows_of_a_medium_that_is_not_pruned_lose_what_later_layers_get():
    table = MediumTable()
    rows = DraftRows(table, make(by_question=False)[0]._ask_first, 2 * WIDTH, WIDTH)
    whole = torch.randn(3, 2 * WIDTH)
    (found,) = rows.unpack([whole], torch.tensor([True, True, True]), windows(0, 3, prompt()))
    assert torch.equal(found, whole[:, :WIDTH])
