"""Spans: found from the prompt alone, cut by no step, ended in by no hit; and what they do to the scheduler."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from vllm_prune.config import PruneConfig
from vllm_prune.serving.core.long_spans import end_of_part, tokens_to_cache
from vllm_prune.serving.core.scheduling import clip_prefix_hit, schedule_encoder_inputs
from vllm_prune.serving.core.spans import RequestSpan, SpanMedium
from vllm_prune.serving.wire.settings import StepLimits, write_step_limits
from vllm_prune.spans import Span, TurnFormat, clip_hit, clip_to_spans, dense_spans, longest_piece

TEXT, VIDEO, END, REPLY, NEWLINE = 1, 6, 2, 3, 4
HEADER = [END, REPLY, NEWLINE]
TURN = TurnFormat(reply_start=(END, REPLY), num_more=1)

typed = st.sampled_from([TEXT, VIDEO, END, NEWLINE]).map(lambda token: [token, TEXT])
turns = st.lists(st.lists(st.one_of(typed, st.integers(2, 5).map(lambda n: [VIDEO] * n)), max_size=6), max_size=5)
spans_apart = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=4).map(
    lambda gaps: [
        Span(sum(a + b for a, b in gaps[:i]) + gap, sum(a + b for a, b in gaps[: i + 1]))
        for i, (gap, _) in enumerate(gaps)
    ]
)


def prompt_of(turns: list[list[list[int]]]) -> tuple[list[int], list[tuple[int, int]]]:
    prompt: list[int] = []
    videos: list[tuple[int, int]] = []
    for turn in turns:
        for part in turn:
            if part[-1] == VIDEO:
                videos.append((len(prompt), len(part)))
            prompt += part
        prompt += HEADER
    return prompt, videos


@given(turns)
def test_a_span_is_a_turn_from_its_first_video_on(turns):
    prompt, videos = prompt_of(turns)
    spans = dense_spans(prompt, videos, TURN)
    for span in spans:
        assert span.start in [offset for offset, _ in videos]
        assert prompt[span.end - 3 : span.end] == HEADER
        assert prompt[span.start : span.end].count(REPLY) == 1
    assert all(sum(span.start <= offset and offset + n <= span.end for span in spans) == 1 for offset, n in videos)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


@given(turns, st.integers(1, 40))
def test_spans_do_not_depend_on_what_follows_the_turn(turns, more):
    prompt, videos = prompt_of(turns)
    assert dense_spans(prompt + [TEXT] * more, videos, TURN) == dense_spans(prompt, videos, TURN)


@given(spans_apart, st.integers(0, 80), st.integers(0, 80))
def test_a_step_cuts_no_span_and_does_as_much_as_it_may(spans, start, length):
    start = clip_hit(spans, start)
    end = clip_to_spans(spans, start, start + length)
    assert start <= end <= start + length
    assert not any(span.start < end < span.end for span in spans)
    assert sum(start < span.end <= end for span in spans) <= 1
    if end < start + length:
        assert any(end in (span.start, span.end) for span in spans)


@given(spans_apart, st.lists(st.integers(1, 30), min_size=1, max_size=100))
def test_every_chunking_computes_every_span_whole(spans, budgets):
    total, done, computed = 80, 0, []
    for budget in budgets * 100:
        end = clip_to_spans(spans, done, min(done + budget, total))
        computed += [span for span in spans if done <= span.start and span.end <= end]
        done = end
    stuck = next((span for span in spans if span.end > done), None)
    assert computed == [span for span in spans if span.end <= done]
    assert done == total or (stuck is not None and stuck.end - stuck.start > max(budgets)) or done == stuck.start


@given(spans_apart, st.integers(0, 80))
def test_a_hit_ends_in_no_span(spans, hit):
    used = clip_hit(spans, hit)
    assert used <= hit
    assert not any(span.start < used < span.end for span in spans)
    assert used == hit or any(span.start == used and hit < span.end for span in spans)


class Manager:
    def truncate_computed_blocks(self, blocks: list[int], num_tokens: int) -> list[int]:
        assert num_tokens % 32 == 0
        return blocks[: num_tokens // 32]


def fake_scheduler(step: int = 1, limit: int = 100) -> SimpleNamespace:
    hf_config = SimpleNamespace()
    write_step_limits(hf_config, StepLimits(limit, limit))
    return SimpleNamespace(
        current_step=step,
        running=[],
        block_size=32,
        kv_cache_manager=Manager(),
        encoder_cache_manager=EncoderCacheManager(limit),
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)),
    )


def fake_request(*spans: tuple[int, int], extra: int = 0, key: str = "key") -> SimpleNamespace:
    found = [RequestSpan(Span(*span), extra, f"{key}{i}", dense=True) for i, span in enumerate(spans)]
    return SimpleNamespace(request_id=key, _vllm_prune_spans=found, mm_features=[])


def hit_of(scheduler, request, num_tokens: int) -> int:
    blocks, used, boundary, diverged = clip_prefix_hit(scheduler, request, list(range(9)), num_tokens, 500, False)
    assert len(blocks) == (used // 32 if used < num_tokens else 9)
    assert boundary == (500 if used == num_tokens else min(500, used))
    assert not diverged
    return used


def test_a_hit_cut_back_into_the_block_of_an_earlier_span_is_cut_back_further():
    """Blocks of 32: the second span starts at 50, its block at 32, which the first span reaches into."""
    assert hit_of(fake_scheduler(), fake_request((4, 40), (50, 100)), 96) == 0
    assert hit_of(fake_scheduler(), fake_request((4, 30), (50, 100)), 96) == 32
    assert hit_of(fake_scheduler(), fake_request((36, 66), (70, 100)), 96) == 32
    assert hit_of(fake_scheduler(), fake_request((4, 40), (50, 100)), 128) == 128
    assert hit_of(fake_scheduler(), fake_request((4, 40), (50, 100)), 0) == 0


@given(spans_apart, st.integers(0, 9))
def test_a_hit_used_is_whole_blocks_and_ends_in_no_span(spans, blocks):
    request = fake_request(*((span.start, span.end) for span in spans))
    used = hit_of(fake_scheduler(), request, 32 * blocks)
    assert used % 32 == 0
    assert not any(span.start < used < span.end for span in spans)


def unchanged(tokens: int):
    return [], tokens, 1000, [], []


def test_blocks_of_a_span_are_no_hit_in_the_step_that_computes_it():
    scheduler, first, second = fake_scheduler(), fake_request((40, 64)), fake_request((40, 64), (70, 90))
    assert schedule_encoder_inputs(scheduler, first, 0, 80, unchanged)[1] == 64
    assert hit_of(scheduler, second, 64) == 32
    assert hit_of(scheduler, fake_request((40, 64), key="other"), 64) == 64
    scheduler.current_step += 1
    assert hit_of(scheduler, second, 64) == 64


def test_a_server_of_another_model_schedules_media_as_vllm_does():
    """Which the plugin is loaded in as well, and nobody wrote a limit for."""
    scheduler = fake_scheduler()
    scheduler.vllm_config.model_config.hf_config = SimpleNamespace()
    assert schedule_encoder_inputs(scheduler, fake_request(), 0, 40, unchanged)[1] == 40


def test_dense_rows_of_a_step_are_limited():
    scheduler = fake_scheduler(limit=100)
    requests = [fake_request((10, 30), extra=extra) for extra in (90, 20, 10)]
    tokens = [schedule_encoder_inputs(scheduler, request, 0, 40, unchanged)[1] for request in requests]
    assert tokens == [30, 10, 30]
    scheduler.current_step += 1
    assert schedule_encoder_inputs(scheduler, requests[1], 10, 40, unchanged)[1] == 20


long_media = st.lists(st.tuples(st.integers(0, 9), st.integers(2, 30), st.integers(1, 40)), min_size=1, max_size=3)
"""Of every medium of a span: tokens of text before it, its placeholders, dense rows of each."""


@given(long_media, st.integers(1, 20), st.integers(1, 60), st.integers(1, 60))
def test_parts_of_a_long_span_end_in_a_medium_and_compute_all_of_it(media, question, most_rows, budget):
    start, found = 5, []
    for text, length, each in media:
        offset = found[-1].end + text if found else start
        found.append(SpanMedium(offset, length, length * each - min(each, length) // 2, PruneConfig()))
    end = found[-1].end + question
    item = RequestSpan(Span(start, end), sum(m.rows - m.length for m in found), "key", dense=True, media=tuple(found))
    assert item.rows_between(start, end) == item.rows
    most_tokens = max(budget, longest_piece(item.span, [(medium.offset, medium.length) for medium in found]))
    computed, rows = start, 0
    while computed < end:
        later = end_of_part(item, computed, most_tokens, most_rows)
        assert computed < later <= computed + most_tokens
        assert later == end or any(medium.offset < later < medium.end for medium in found)
        part = item.rows_between(computed, later)
        assert part <= most_rows or not any(
            computed < earlier < later for medium in found for earlier in range(medium.offset + 1, medium.end)
        )
        computed, rows = later, rows + part
    assert rows == item.rows


def long_request(computed: int, *, logprobs: int | None = None) -> SimpleNamespace:
    """A video of 300 rows at 10 placeholders, and 10 tokens of question."""
    media = (SpanMedium(10, 10, 300, PruneConfig()),)
    span = RequestSpan(Span(10, 30), 290, "long", dense=True, media=media)
    params = SimpleNamespace(prompt_logprobs=logprobs)
    return SimpleNamespace(
        request_id="long",
        _vllm_prune_spans=[span],
        mm_features=[],
        num_computed_tokens=computed,
        sampling_params=params,
    )


def test_a_long_span_begins_a_step_of_its_own_and_counts_until_it_is_complete():
    scheduler = fake_scheduler(limit=100)
    write_step_limits(scheduler.vllm_config.model_config.hf_config, StepLimits(100, 350, several_steps=True))
    request, second = long_request(0), long_request(10)
    assert schedule_encoder_inputs(scheduler, request, 0, 40, unchanged)[1] == 10
    assert schedule_encoder_inputs(scheduler, request, 10, 20, unchanged)[1] == 3  # of 30 rows each
    assert schedule_encoder_inputs(scheduler, second, 10, 20, unchanged)[1] == 0
    request.num_computed_tokens, scheduler.running = 13, [request]
    scheduler.current_step += 1
    assert schedule_encoder_inputs(scheduler, second, 10, 20, unchanged)[1] == 0
    assert schedule_encoder_inputs(scheduler, request, 13, 17, unchanged)[1] == 3
    assert [tokens_to_cache(request, computed) for computed in (9, 10, 13, 29, 30, 31)] == [9, 10, 10, 10, 30, 31]
    scheduler.running = []
    scheduler.current_step += 1
    assert schedule_encoder_inputs(scheduler, second, 10, 20, unchanged)[1] == 3


def test_a_prompt_whose_log_probabilities_are_asked_for_is_computed_in_one_step():
    scheduler = fake_scheduler(limit=100)
    write_step_limits(scheduler.vllm_config.model_config.hf_config, StepLimits(100, 350, several_steps=True))
    assert schedule_encoder_inputs(scheduler, long_request(10, logprobs=1), 10, 20, unchanged)[1] == 20


def test_an_encoder_that_cannot_take_a_second_video_delays_the_whole_span():
    request = fake_request((10, 30))
    assert schedule_encoder_inputs(fake_scheduler(), request, 0, 40, lambda tokens: unchanged(20))[1] == 10
    assert schedule_encoder_inputs(fake_scheduler(), request, 10, 40, lambda tokens: unchanged(10))[1] == 0
