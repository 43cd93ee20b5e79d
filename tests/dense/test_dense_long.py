"""Dense prefixes that stretch over several steps: answers are those of one step, whatever happens between the parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dense_cases import CONFIGS, QUESTIONS, VIDEO, Case, Oracle, chat, compare, prompts, video
from dense_engine import RemoteEngine, forgetful
from long_cases import check_dense_prefixes_over_several_steps, longer_cases
from test_dense_exactness import batch_of

BATCHES = [(2, 20), (7, 96), (8, 40)]
BATCHES += [pytest.param(*each, marks=pytest.mark.long) for each in ((1, 12), (3, 12), (5, 20), (6, 64))]
"""Sizes of batches, and dense rows that a step computes of one prefix. (Of 4 cases no question chooses.)"""


@pytest.mark.parametrize(("size", "rows"), BATCHES)
def test_a_dense_prefix_over_several_steps(eager: RemoteEngine, oracle: Oracle, size: int, rows: int) -> None:
    cases = batch_of(size)
    check_dense_prefixes_over_several_steps(eager, oracle, cases, rows)
    # Half of them find a context, or all that they are, in the cache; each twice, beside one that is under way.
    eager.call("forget")
    eager.run(prompts(cases[::2]))
    both = cases[::-1] + cases
    compare(both, eager.run(prompts(both), part_rows=rows), oracle)


@pytest.mark.parametrize("rows", [64, pytest.param(40, marks=pytest.mark.long)])
def test_preempted_between_parts(eager: RemoteEngine, oracle: Oracle, rows: int) -> None:
    cases = batch_of(6)
    answers = eager.run(prompts(cases), part_rows=rows, preempts=True)
    compare(cases, answers, oracle)
    assert any(answer.preemptions for answer in answers)
    assert eager.call("bytes_under_way") == 0


def test_aborted_between_parts(eager: RemoteEngine, oracle: Oracle) -> None:
    """Nothing of it is left: neither memory nor blocks (of which the fixture knows), nor anything in a cache."""
    cases = batch_of(5)
    before, after = eager.call("abort_under_way", prompts(cases), 40)
    assert before > 0 == after
    compare(cases, eager.run(prompts(cases)), oracle)


def test_as_many_at_once_as_there_is_memory_for(eager: RemoteEngine, oracle: Oracle) -> None:
    """Each of three has 32 rows of its video and some of text: all at once, or one after the other."""
    cases = [Case(chat(f"{VIDEO}{QUESTIONS[0]}"), (video(seed),)) for seed in range(3)]
    held = []
    for dense_tokens in (1000, 70):
        eager.call("forget")
        compare(cases, eager.run(prompts(cases), part_rows=20, dense_tokens=dense_tokens), oracle)
        held.append(eager.call("most_bytes_under_way"))
    assert held[0] > held[1] > 0


def test_a_seed_gives_the_same_tokens_in_however_many_steps(eager: RemoteEngine) -> None:
    """Of two runs, which would differ without one."""
    asked = [Case(chat(f"{VIDEO}{QUESTIONS[0]}"), (video(seed),)).prompt() for seed in (1, 2)]
    found = []
    for rows in (None, 20):
        eager.call("forget")
        found.append([answer.token_ids for answer in eager.run(asked, part_rows=rows, max_tokens=8, seed=5)])
    eager.call("forget")
    assert found[0] == found[1] != [answer.token_ids for answer in eager.run(asked, max_tokens=8, seed=6)]


def test_log_probabilities_of_a_prompt_that_no_step_holds_are_refused(eager: RemoteEngine, oracle: Oracle) -> None:
    case = Case(chat(f"{VIDEO}{QUESTIONS[2]}"), (video(1),), config={"preset": "stage2_only", "keep_ratio": 0.9})
    assert "prompt_logprobs need" in eager.call("prompt_logprobs", case.prompt(), 40)
    assert not eager.call("prompt_logprobs", case.prompt(), 100)
    compare([case], eager.run([case.prompt()], part_rows=40), oracle)


CHUNKS = (64, 128, 256, 512)
"""Dense rows that a step computes of prefixes of hundreds."""


@pytest.fixture(scope="module")
def shared_longer(micro: str) -> Iterator[RemoteEngine]:
    """An engine with room for such videos unpruned."""
    options = {"max_model_len": 4096, "max_num_batched_tokens": 4096}
    with RemoteEngine(micro, "default", **options) as engine:
        yield engine


@pytest.fixture
def longer(shared_longer: RemoteEngine) -> Iterator[RemoteEngine]:
    with forgetful(shared_longer) as engine:
        yield engine


def test_the_longer_cases_are_of_all_kinds() -> None:
    asking = [case for case in longer_cases() if case.videos]
    assert len(longer_cases()) == 36
    assert {repr(config) for config in CONFIGS} == {repr(case.config) for case in asking}
    several = [case for case in asking if isinstance(case.config, dict) and len(case.config.get("layers", [])) > 1]
    assert several
    assert any(len(case.videos) > 1 for case in several)
    assert any(case.text.count("<|im_start|>user") > 2 for case in asking)
    assert any(not case.videos for case in longer_cases())


@pytest.mark.long
@pytest.mark.parametrize("rows", CHUNKS)
def test_prefixes_of_hundreds_of_rows(longer: RemoteEngine, oracle: Oracle, rows: int) -> None:
    """Undisturbed, preempted and aborted between chunks; a quarter of the cases each."""
    cases = longer_cases()[CHUNKS.index(rows) :: len(CHUNKS)]
    check_dense_prefixes_over_several_steps(longer, oracle, cases, rows, max_tokens=4)
    longer.call("forget")
    answers = longer.run(prompts(cases), part_rows=rows, preempts=True)
    compare(cases, answers, oracle)
    assert any(answer.preemptions for answer in answers)
    longer.call("forget")
    before, after = longer.call("abort_under_way", prompts(cases), rows)
    assert before > 0 == after
    compare(cases, longer.run(prompts(cases), part_rows=rows), oracle)
    assert longer.call("bytes_under_way") == 0


def _bytes_held(worker: Any) -> int:
    return worker.get_model()._dense_prefix.long.num_bytes


@pytest.mark.long
@pytest.mark.parametrize(("size", "rows"), [(7, 96), (8, 40)])
def test_on_two_ranks(two_ranks: RemoteEngine, oracle: Oracle, size: int, rows: int) -> None:
    """Both keep the same, and neither holds any of it afterwards."""
    cases = batch_of(size)
    with forgetful(two_ranks):
        before = two_ranks.call("rank_digests")[0][0]
        check_dense_prefixes_over_several_steps(two_ranks, oracle, cases, rows)
        first, second = two_ranks.call("rank_digests")
        assert first == second
        assert first[0] > before
        assert two_ranks.call("on_ranks", _bytes_held) == [0, 0]


@pytest.mark.long
@pytest.mark.parametrize(("size", "rows"), [(7, 96), (8, 40)])
def test_compiled(compiled: RemoteEngine, oracle: Oracle, size: int, rows: int) -> None:
    """In a cache for little more than one request."""
    cases = batch_of(size)
    assert compiled.call("is_compiled")
    with forgetful(compiled):
        check_dense_prefixes_over_several_steps(compiled, oracle, cases, rows)
