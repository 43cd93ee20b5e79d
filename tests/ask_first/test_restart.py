"""Connectors that keep blocks on disk: what an engine computed, the next one finds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allowed import LEARNED
from dense_cases import VIDEO as CLIP
from dense_cases import Case, Oracle, chat, compare, video
from dense_engine import BLOCK_SIZE, Answer, RemoteEngine
from host_disk import connector, free_memory

pytestmark = pytest.mark.long
QUERY_FREE: dict[str, Any] = {"method": "uniform", "stage1": None, "keep_ratio": 0.5}
BEFORE = "You are given a video and answer briefly. " * 5


def ask(question: str) -> Case:
    return Case(chat(CLIP + question, system=BEFORE), (video(3, 10),))


CASES = [ask("What colour is the flash?"), ask("How many shapes are there?"), ask("What colour is the ball?")]


def whole_blocks(answer: Answer, computed: int = 0) -> int:
    """Tokens of a prompt that a repetition can have, of which `computed` are computed again in any case."""
    return (len(answer.prompt) - computed) // BLOCK_SIZE * BLOCK_SIZE


def wait_until_settled(folder: Path) -> None:
    """Until no block has been added for a second."""
    found = -1
    while found != (found := len(list(folder.rglob("*.bin")))):
        time.sleep(1)


@pytest.fixture
def engine_id() -> Iterator[str]:
    name = f"restart-{uuid.uuid4().hex}"
    yield name
    assert free_memory(name)


def test_blocks_on_disk_answer_for_their_own_question(micro, selector, importable, oracle, tmp_path, engine_id):
    options: dict[str, Any] = {"selector": selector, "kv_transfer_config": connector(tmp_path, engine_id)}
    options |= {"override": "tighten", "mm_processor_cache_type": "shm"}
    prompts = [case.prompt() for case in CASES]
    with RemoteEngine(micro, LEARNED, **options) as engine:
        first = engine.run(prompts[:2])
        compare(CASES[:2], first, oracle)
        wait_until_settled(tmp_path)
    free_memory(engine_id)
    with RemoteEngine(micro, LEARNED, **options) as engine:
        again = engine.run(prompts)
        compare(CASES, again, oracle)
        assert [answer.num_cached for answer in again[:2]] == [whole_blocks(answer) for answer in first]


def test_query_free_blocks_of_a_connector_that_goes_by_tokens(micro, oracle, tmp_path):
    """vLLM's `ExampleConnector`, which knows media and tokens alone: enough where no question chooses."""
    transfer = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    plain = Oracle(oracle.model, oracle.processor, QUERY_FREE)
    prompts = [case.prompt() for case in CASES]
    for again in (False, True):
        with RemoteEngine(micro, QUERY_FREE, override="tighten", kv_transfer_config=transfer) as engine:
            answers = [engine.run([prompt])[0] for prompt in prompts]
            compare(CASES, answers, plain)
            assert not again or [answer.num_cached for answer in answers] == [whole_blocks(each, 1) for each in answers]
