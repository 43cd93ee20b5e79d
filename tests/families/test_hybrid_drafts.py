"""Speculative decoding on Qwen3.5 by a draft layer of the checkpoint's own ("MTP"), on the V2 runner."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import (
    ASK_FIRST,
    IMAGE,
    LOGPROB_TOLERANCE,
    VIDEO,
    Case,
    Oracle,
    chat,
    compare,
    in_turns,
)
from dense_cases import image as picture
from dense_cases import video as clip
from dense_engine import Answer, RemoteEngine
from oracle import load_model
from oracle.draft_layer import DraftLayer, add_draft_layer, load_draft_layer
from oracle.from_vllm import to_prompt
from oracle.micro_model import load_by_place, micro_selector, write_micro_model
from oracle.run import run_known
from runner import IS_V2
from transformers import AutoProcessor

pytestmark = pytest.mark.skipif(not IS_V2, reason="refused on the V1 runner")

LONG, FEW_BLOCKS, MOST = 40, 24, 2
TOLERANCE = 3 * LOGPROB_TOLERANCE
"""As in `test_hybrid_attention.py`, and of hidden states, too; those of other tokens differ by more than 0.01."""
OPTIONS: dict[str, Any] = {"override": "tighten", "enable_prefix_caching": True}
ASKING = {"method": "question", "stage1": None, "keep_ratio": 0.3}
SERVED = {"question": ASKING, "query-free": {"method": "dart", "stage1": None, "keep_ratio": 0.3}}
"""Servers: with drafts a request may ask for fewer tokens only."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(add_draft_layer(write_micro_model(tmp_path_factory.mktemp("drafts") / "micro", family="qwen3_5")))


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest) -> Any:
    return SERVED[request.param]


@pytest.fixture(scope="module")
def oracle(model: str, served: Any) -> Iterator[Oracle]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    selectors = load_by_place([micro_selector(model)])
    yield Oracle(load_model(model), AutoProcessor.from_pretrained(model), served, selectors)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine(model: str, served: Any) -> Iterator[RemoteEngine]:
    drafts = {"method": "mtp", "num_speculative_tokens": MOST}
    with RemoteEngine(model, served, selector=[micro_selector(model)], speculative_config=drafts, **OPTIONS) as engine:
        yield engine


@pytest.fixture
def asks(served: Any) -> None:
    if served is not ASKING:
        pytest.skip("the question's server has this test")


def batch() -> list[Case]:
    return [dataclasses.replace(case, config=None) for case in in_turns(ASK_FIRST, 8, seed=5)]


def draft_layer_inputs(worker: Any) -> list[list[dict[str, np.ndarray]]]:
    """What the draft layer was given and gave since this was asked last: for each step, in each call."""
    drafter = worker.worker.model_runner.speculator
    calls: list[list[dict[str, np.ndarray]]] | None = getattr(drafter, "calls", None)
    drafter.calls = []
    if calls is None:
        forward, propose = drafter.model.forward, drafter.propose

        def proposing(*args: Any, **kwargs: Any) -> Any:
            drafter.calls.append([])
            return propose(*args, **kwargs)

        def watching(**inputs: Any) -> Any:
            out = forward(**inputs)
            names = ("positions", "inputs_embeds", "hidden_states")
            call = {name: inputs[name].float().numpy().copy() for name in names}
            drafter.calls[-1].append(call | {"out": out.float().numpy().copy()})
            return out

        drafter.propose, drafter.model.forward = proposing, watching
    return calls or []


def draft_what_is_known(worker: Any, known: Sequence[Sequence[int]]) -> None:
    """Most drafts from now on are what follows, some with one token wrong; the draft layer runs as before."""
    runner, random = worker.worker.model_runner, np.random.default_rng(0)
    propose = runner.speculator.propose

    def mixed(*args: Any, **kwargs: Any) -> Any:
        batch, rejected, ids = args[0], args[6], runner.req_states.all_token_ids.gpu
        lengths_of = zip(batch.idx_mapping_np, batch.prefill_len_np, strict=True)
        rows = [ids[index, :length].tolist() for index, length in lengths_of]
        lengths = (batch.seq_lens[: len(rows)] - rejected[: len(rows)]).tolist()
        drafts = propose(*args, **kwargs)
        for row, (begins, length) in enumerate(zip(rows, lengths, strict=True)):
            full = next((full for full in known if list(full[: len(begins)]) == list(begins)), [])
            follows = list(full[length + 1 : length + 1 + drafts.shape[1]])
            if length < len(begins) or not follows or random.random() < 0.3:
                continue
            if random.random() < 0.3:
                follows[int(random.integers(len(follows)))] += 1
            drafts[row, : len(follows)] = torch.tensor(follows)
        return drafts

    runner.speculator.propose = mixed


@pytest.mark.long
def test_the_draft_layer_gets_the_pruned_prompt(engine, oracle, model):
    """Embeddings of the next kept rows, hidden states and positions; in steps that end anywhere, inside videos too."""
    layer = load_draft_layer(Path(model))
    one = Case(chat(VIDEO + "What colour is the flash?"), (clip(3, 6),))
    three = Case(chat(f"First{VIDEO}then{IMAGE}and{VIDEO}How many?"), (clip(1, 6), clip(2, 4)), (picture(3),))
    cases = [one, dataclasses.replace(one, config={"keep_ratio": 0.1}), three]
    for case in cases:
        for step_tokens in (None, 17):
            run_alone(engine, oracle, layer, case, step_tokens)


def run_alone(engine: RemoteEngine, oracle: Oracle, layer: DraftLayer, case: Case, step_tokens: int | None) -> None:
    engine.call("forget")
    engine.call("on_ranks", draft_layer_inputs)
    (answer,) = engine.run([case.prompt()], max_tokens=5, step_tokens=step_tokens)
    (calls,) = engine.call("on_ranks", draft_layer_inputs)
    compare([case], [answer], oracle, max_tokens=5, tolerance=TOLERANCE)
    check_draft_layer(case, answer, calls, oracle, layer)


def check_draft_layer(
    case: Case, answer: Answer, calls: list[list[dict[str, np.ndarray]]], oracle: Oracle, layer: DraftLayer
) -> None:
    """All calls are what the oracle has, of the rows that stay when drafts are rejected.

    Before the prompt is whole vLLM 0.33 calls the layer once, as nobody could use the drafts, others as often as ever.
    """
    prompt = to_prompt(oracle.processor, case.text, videos=case.videos, images=case.images, typed=True)
    hidden, rows = run_known(oracle.model, prompt, oracle.config_of(case), answer.token_ids, oracle.selectors)
    next_embeds, hidden = rows.embeds[1:], hidden[:-1]
    positions = torch.arange(len(hidden)).expand(3, -1)  # this runner gives drafters indices, pruned or not
    expected = {"inputs_embeds": next_embeds, "hidden_states": hidden, "positions": positions.T}
    expected["out"] = layer.run(oracle.model, next_embeds, hidden, positions)
    assert len(calls) == len(answer.steps)
    assert max(map(len, calls)) == MOST
    ends = [step.start for step in answer.steps[1:]] + [len(hidden)]
    for step, end, (call, *more) in zip(answer.steps, ends, calls, strict=True):
        if step.start >= len(answer.prompt):
            break  # which is scheduled before it is known how many drafts of the one before were accepted
        count = min(end - step.start, step.count)
        for name, values in expected.items():
            found = torch.from_numpy(call[name])
            if name == "positions":
                found = found.expand(3, -1).T
            error = (found[:count] - values[step.start : step.start + count]).abs().max()
            assert error < TOLERANCE, (name, case, step, float(error))
        check_later_drafts(step.start + count, expected, positions, more, oracle, layer)


def check_later_drafts(
    stop: int,
    expected: dict[str, torch.Tensor],
    positions: torch.Tensor,
    calls: list[dict[str, np.ndarray]],
    oracle: Oracle,
    layer: DraftLayer,
) -> None:
    """After row `stop` - 1 come the drafts so far, each one position further on."""
    embeds, hidden, places = expected["inputs_embeds"][:stop], expected["hidden_states"][:stop], positions[:, :stop]
    out = expected["out"][:stop]
    for call in calls:
        draft = oracle.model.lm_head(out[-1]).argmax()
        embeds = torch.cat((embeds, oracle.model.get_input_embeddings()(draft[None])))
        hidden, places = torch.cat((hidden, out[-1:])), torch.cat((places, places[:, -1:] + 1), dim=1)
        out = layer.run(oracle.model, embeds, hidden, places)
        assert (torch.from_numpy(call["positions"]).expand(3, -1)[:, 0] == places[:, -1]).all()
        for name, values in (("inputs_embeds", embeds), ("hidden_states", hidden), ("out", out)):
            error = (torch.from_numpy(call[name])[0] - values[-1]).abs().max()
            assert error < TOLERANCE, (name, float(error))


@pytest.mark.long
def test_answers_with_drafts_equal_the_oracle(asks, engine, oracle):
    """Cold, in chunks and preempted; with drafts that are accepted, in part or not."""
    cases = batch()
    prompts = [case.prompt() for case in cases]
    first = engine.run(prompts, max_tokens=LONG)
    compare(cases, first, oracle, max_tokens=LONG, tolerance=TOLERANCE)
    known = [answer.prompt + answer.token_ids for answer in first]
    engine.call("on_ranks", functools.partial(draft_what_is_known, known=known))
    for options in ({}, {"step_tokens": 23}, {"free_blocks": FEW_BLOCKS}):
        engine.call("forget")
        answers = engine.run(prompts, max_tokens=LONG, **options)
        compare(cases, answers, oracle, max_tokens=LONG, tolerance=TOLERANCE)
        assert all(len(answer.steps) < LONG for answer in answers), "drafts are accepted"
    assert sum(answer.preemptions for answer in answers) > 0


def forget_patches(worker: Any) -> None:
    """vLLM gathers rows for the drafter in its own way again."""
    from vllm_prune.patches import worker_draft_rows

    owner = worker_draft_rows._state()
    owner.gather_mm_embeddings = owner.gather_mm_embeddings.__wrapped__


@pytest.mark.long
def test_in_vllms_own_way_the_draft_layer_gets_other_rows(asks, engine, oracle, model):
    """The last test of this engine, which may not live through it."""
    case = Case(chat(f"First{VIDEO}and then{VIDEO}How many?"), (clip(1, 6), clip(2, 4)))
    engine.call("on_ranks", forget_patches)
    with pytest.raises(AssertionError):
        run_alone(engine, oracle, load_draft_layer(Path(model)), case, 17)
