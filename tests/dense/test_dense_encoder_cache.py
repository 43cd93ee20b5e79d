"""vLLM's encoder cache counts the rows that videos take before the question has chosen, and stays within its size."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from dense_cases import VIDEO, Case, chat, video
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.request import Request

from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.patches.core_encoder_rows import PATCH
from vllm_prune.serving.core.encoder_accounting import begin_request, release
from vllm_prune.serving.wire.request_spec import FIELD, VideoSpec
from vllm_prune.spans import TurnFormat

SIZE = 1000
TURN = TurnFormat(reply_start=(1,), num_more=1)
CONFIGS = [{"method": "attention", "keep_ratio": ratio} for ratio in (0.01, 0.05, 0.4, 0.7)]
CONFIGS += [{"method": "uniform", "keep_ratio": 0.1}]


@pytest.fixture(scope="module", autouse=True)
def _patched() -> None:
    PATCH.apply()


def medium(number: int, tokens: int, config: dict[str, Any], offset: int) -> MultiModalFeatureSpec:
    spec = VideoSpec(config=PruneConfig.parse(config), layout=MediumLayout((1, 1, tokens)), per_frame=None, turn=TURN)
    place = PlaceholderRange(offset=offset, length=spec.counts.kept)
    data: Any = {FIELD: SimpleNamespace(data=spec.encode())}
    return MultiModalFeatureSpec(data, "video", f"{number}-{tokens}-{config}", place)


def request_of(name: int, videos: list[tuple[int, int, int]]) -> Request:
    """A request with videos: number, tokens before pruning, and which configuration."""
    features, offset = [], 1
    for number, tokens, config in videos:
        features.append(medium(number, tokens, CONFIGS[config], offset))
        offset += features[-1].mm_position.length + 1
    return Request(str(name), [1] * (offset + 5), SamplingParams(max_tokens=1), None, mm_features=features)


def true_rows(request: Request, i: int) -> int:
    """Tokens that the tensor of a medium holds."""
    spec = VideoSpec.decode(request.mm_features[i].data[FIELD].data)
    kept = spec.counts.kept
    return kept if not spec.config.query_aware else -(-spec.counts.entering // kept) * kept


def schedule(manager: EncoderCacheManager, request: Request) -> bool:
    """As vLLM's scheduler does it for media of one dense span: all of them, or none."""
    begin_request(manager)
    scheduled: list[int] = []
    embeds = 0
    for i, feature in enumerate(request.mm_features):
        count = request.get_num_encoder_embeds(i)
        if feature.identifier in [request.mm_features[other].identifier for other in scheduled]:
            continue
        cached = manager.get_cached_num_encoder_embeds(request, i)
        assert cached in (None, count)
        if manager.check_and_update_cache(request, i):
            continue
        if not manager.can_allocate(request, i, 10**6, embeds):
            release(manager, request, 0)
            return False
        scheduled.append(i)
        embeds += count
    for i in scheduled:
        manager.allocate(request, i)
    return True


VIDEOS = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from([30, 100, 250, 333]), st.integers(0, len(CONFIGS) - 1)),
    min_size=1,
    max_size=3,
)


@given(st.lists(st.tuples(VIDEOS, st.booleans()), min_size=1, max_size=30))
@settings(max_examples=200)
def test_books_are_kept_in_whatever_order_requests_come_and_go(steps):
    manager, running, rows = EncoderCacheManager(SIZE), [], {}
    for name, (videos, ends) in enumerate(steps):
        request = request_of(name, videos)
        if schedule(manager, request):
            running.append(request)
            for i, feature in enumerate(request.mm_features):
                rows[feature.identifier] = (true_rows(request, i), sum(tokens for _, tokens, _ in videos))
        if ends and running:
            manager.free(running.pop(0))
        held = manager.num_embeds_by_hash
        assert manager.num_free_slots == SIZE - sum(held.values()) >= 0
        assert manager.num_freeable_slots == manager.num_free_slots + sum(manager.freeable.values())
        assert set(held) == set(manager.cached)
        in_whole_rows = all(held[identifier] == rows[identifier][0] for identifier in held)
        assert not in_whole_rows or sum(rows[identifier][0] for identifier in held) <= SIZE
    while running:
        manager.free(running.pop())
    assert manager.num_freeable_slots == SIZE


def test_one_that_waits_for_room_holds_nothing_from_others():
    """Each finds one of its videos in the cache; the first has no room for its other one while a third request runs."""
    manager = EncoderCacheManager(SIZE)
    first, second = [(1, 400, 0), (2, 400, 0)], [(3, 300, 0), (4, 400, 0)]
    for name, videos in enumerate((first[:1], second[:1])):
        request = request_of(name, videos)
        assert schedule(manager, request)
        manager.free(request)
    third, one, other = request_of(2, [(5, 300, 0)]), request_of(3, first), request_of(4, second)
    assert schedule(manager, third)
    assert not schedule(manager, one)
    assert schedule(manager, other)
    manager.free(third)
    manager.free(other)
    assert schedule(manager, one)


def test_placeholders_that_are_not_the_videos_are_seen():
    """vLLM compares them with what is cached, and refuses the request; its encoder's rows would not fit."""
    manager = EncoderCacheManager(SIZE)
    right, wrong = request_of(0, [(1, 100, 2)]), request_of(1, [(1, 100, 2)])
    kept = right.get_num_encoder_embeds(0)
    place = wrong.mm_features[0].mm_position
    wrong.mm_features[0] = dataclasses.replace(
        wrong.mm_features[0], mm_position=PlaceholderRange(offset=place.offset, length=kept + 3)
    )
    assert schedule(manager, right)
    assert manager.get_cached_num_encoder_embeds(right, 0) == kept
    assert manager.get_cached_num_encoder_embeds(wrong, 0) == kept != wrong.get_num_encoder_embeds(0)


def _rows_in_cache(worker: Any) -> int:
    """Rows of the model's width in the worker's encoder cache."""
    cache = worker.model_runner.encoder_cache
    tensors = getattr(cache, "encoder_outputs", cache)
    width = worker.model_runner.model_config.get_inputs_embeds_size()
    return sum(tensor.numel() // width for tensor in tensors.values())


def test_the_cache_stays_within_its_size(eager):
    config = {"method": "attention", "keep_ratio": 0.05}
    size = eager.call("encoder_cache_size")
    most = 0
    for seed in range(0, 36, 4):
        cases = [Case(chat(VIDEO + "red?"), (video(100 + seed + i),), (), config) for i in range(4)]
        eager.run([case.prompt() for case in cases], max_tokens=1)
        (rows,) = eager.call("on_ranks", _rows_in_cache)
        most = max(most, rows)
    assert size // 2 < most <= size * 1.1  # a tenth: cells and groups travel in columns of their own
