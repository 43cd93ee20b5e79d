"""The media that the API server believes the engine to have are those that it has, whatever is refused or delayed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.multimodal.cache.base import MultiModalCache
from vllm.multimodal.cache.lru import LruKeyReplicatedReceiverCache
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)
from vllm.multimodal.processing.processor import PromptUpdateDetails, ResolvedPromptUpdate, UpdateMode
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_prune.serving.api.sending import _send
from vllm_prune.serving.api.sent_media import KnownItem, ProcessedItem, SentMediaCache

CAPACITY_GB = 1e-5
"""Room for about ten media of 1,000 bytes."""


def medium(name: str) -> MultiModalKwargsItem:
    """A processed medium; its size depends on its name."""
    data = torch.full((200 + 150 * (ord(name) % 7),), ord(name), dtype=torch.int32)
    return MultiModalKwargsItem({"data": MultiModalFieldElem(data=data, field=MultiModalSharedField(batch_size=1))})


def updates(name: str) -> list[ResolvedPromptUpdate]:
    details = PromptUpdateDetails(full=[7] * (ord(name) % 5 + 1))
    return [ResolvedPromptUpdate("video", 0, UpdateMode.REPLACE, [7], details)]


class Pair:
    """Both sides: ours in the API server, vLLM's in the engine, and the serialization between them."""

    def __init__(self) -> None:
        config = SimpleNamespace(mm_processor_cache_gb=CAPACITY_GB)
        self.engine = LruKeyReplicatedReceiverCache(SimpleNamespace(get_multimodal_config=lambda: config))
        self.server = SentMediaCache(self.engine._cache.maxsize)
        self.processed = 0

    def process(self, names: str) -> SimpleNamespace:
        """A request with these media, as vLLM's processor makes it."""
        known = self.server.is_cached(list(names))
        features = []
        for name, is_known in zip(names, known, strict=True):
            item, found = self.server.get_and_update_item(None if is_known else self._process(name), name)
            assert [update.content.full for update in found] == [update.content.full for update in updates(name)]
            if isinstance(item, KnownItem):
                item.process = lambda name=name: self._process(name)
            features.append(MultiModalFeatureSpec(item, "video", name, PlaceholderRange(offset=0, length=1), name))
        return SimpleNamespace(mm_features=features, sampling_params=None)

    def _process(self, name: str):
        self.processed += 1
        return medium(name), updates(name)

    def send(self, request: SimpleNamespace) -> list[int]:
        """Sends it; returns what every medium's data begin with, as the engine sees them."""
        seen = []
        _send(
            lambda sent: seen.extend(self._receive(sent.mm_features)), self.server, copy.copy(request)
        )  # as for every answer of `n`
        assert self.server.order == list(self.engine._cache.order)
        return seen

    def _receive(self, features: list[MultiModalFeatureSpec]) -> list[int]:
        wire = MsgpackEncoder().encode(features)
        received = MsgpackDecoder(list[MultiModalFeatureSpec]).decode(wire)
        features = self.engine.get_and_update_features(received)  # raises for what it does not have
        return [int(feature.data["data"].data[0]) for feature in features]


@dataclass
class Waiting:
    names: str
    request: SimpleNamespace


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["process", "send", "refuse", "send twice"]),
        st.text("abcdefghijklmnop", min_size=1, max_size=4),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_no_order_of_sending_and_refusing_parts_the_two_sides(steps, choose: random.Random):
    pair, waiting = Pair(), []
    for step, names in steps:
        if step == "process" or not waiting:
            waiting.append(Waiting(names, pair.process(names)))
            continue
        chosen = waiting.pop(choose.randrange(len(waiting)))
        for _ in range(("refuse", "send", "send twice").index(step)):
            assert pair.send(chosen.request) == [ord(name) for name in chosen.names]


def test_a_medium_is_processed_and_sent_once():
    pair = Pair()
    first, second = pair.process("a"), pair.process("a")
    assert pair.send(first) == pair.send(second) == pair.send(pair.process("a")) == [ord("a")]
    assert pair.processed == 1


def test_what_was_never_sent_is_forgotten_with_its_request():
    pair = Pair()
    pair.send(pair.process("b"))
    request = pair.process("ab")
    del request
    assert pair.server.is_cached(["a", "b"]) == [False, True]
    assert pair.server.order == ["b"]


def test_a_medium_that_the_engine_dropped_meanwhile_is_processed_again():
    pair = Pair()
    pair.send(pair.process("a"))
    waiting = pair.process("a")
    for name in "bcdefghijklmnop":
        pair.send(pair.process(name))
    assert "a" not in pair.server.order
    assert pair.send(waiting) == [ord("a")]


def test_both_sides_count_the_same_bytes():
    for name in "abcdefg":
        wire = MsgpackEncoder().encode(medium(name))
        received = MsgpackDecoder(MultiModalKwargsItem).decode(wire)
        assert MultiModalCache.get_item_size(received) == MultiModalCache.get_item_size(medium(name))


def test_what_goes_to_a_worker_is_the_medium_alone():
    """An engine in the process of the server pickles it; functions among its updates cannot be."""
    item = ProcessedItem.of(medium("a"), [dataclasses.replace(u, target=lambda _: []) for u in updates("a")])
    found = pickle.loads(pickle.dumps(item))
    assert type(found) is MultiModalKwargsItem
    assert found.get_data().keys() == item.get_data().keys()
