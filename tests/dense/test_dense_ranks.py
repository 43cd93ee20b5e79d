"""What tensor-parallel ranks tell each other about videos that cannot be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dense_cases import VIDEO, Case, Oracle, chat, compare, video
from dense_engine import RemoteEngine

WIDE = 140
"""Pixels across; other videos of this file are 112."""

TWO_VIDEOS = Case(chat(VIDEO + VIDEO + "What colour is the flash?"), (video(21), video(22)))


def _watch(worker: Any) -> None:
    """Counts this rank's calls of the encoder and exchanges of failures, and lets rank 1 fail on wide videos."""
    import torch
    from vllm.distributed import get_tensor_model_parallel_rank

    from vllm_prune.serving.worker import failures

    model, reduce, select = worker.get_model(), torch.distributed.all_reduce, failures.merge_and_select
    embed = model.embed_multimodal
    counted = {"calls": 0, "exchanges": 0, "videos": 0}

    def counting_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        counted["exchanges"] += tensor.dtype == torch.int32 and tensor.device.type == "cpu"
        return reduce(tensor, *args, **kwargs)

    def counting_embed(**inputs: Any) -> Any:
        rows = embed(**inputs)
        counted["calls"] += 1
        counted["videos"] += len(rows)
        return rows

    def selecting(tokens: Any, *args: Any) -> Any:
        if get_tensor_model_parallel_rank() == 1 and tokens.grid_thw[2] == WIDE // 28:
            raise ArithmeticError("the second rank's alone")
        return select(tokens, *args)

    def put_back() -> None:
        torch.distributed.all_reduce, failures.merge_and_select = reduce, select
        del model.embed_multimodal

    torch.distributed.all_reduce, model.embed_multimodal = counting_reduce, counting_embed
    failures.merge_and_select = selecting
    worker.exchanges = counted, put_back


def _counted(worker: Any) -> dict[str, int]:
    return worker.exchanges[0]


def _put_back(worker: Any) -> None:
    worker.exchanges[1]()


@pytest.fixture
def watched(two_ranks: RemoteEngine) -> Iterator[RemoteEngine]:
    two_ranks.call("on_ranks", _watch)
    two_ranks.call("forget")
    yield two_ranks
    two_ranks.call("on_ranks", _put_back)


@pytest.mark.slow
def test_failures_are_exchanged_once_a_call_and_one_ranks_is_everybodys(watched: RemoteEngine, oracle: Oracle) -> None:
    compare([TWO_VIDEOS], watched.run([TWO_VIDEOS.prompt()]), oracle)
    counted = watched.call("on_ranks", _counted)
    assert counted[0] == counted[1]
    assert counted[0]["videos"] == 2
    assert counted[0]["exchanges"] == counted[0]["calls"]

    wide = Case(chat(VIDEO + VIDEO + "How many shapes?"), (video(21), video(23, width=WIDE)))
    bad, good = watched.run([wide.prompt(), TWO_VIDEOS.prompt()])
    assert "the second rank's alone" in bad.error
    assert bad.token_ids == []
    compare([TWO_VIDEOS], [good], oracle)
