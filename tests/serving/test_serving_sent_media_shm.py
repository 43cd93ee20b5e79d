"""Media in shared memory are kept for requests that will read them, and for no others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from test_serving_sent_media import medium, updates
from vllm.multimodal.cache.shm import ShmObjectStoreReceiverCache, ShmObjectStoreSenderCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vllm_prune.serving.api.sending import _send
from vllm_prune.serving.api.sent_media_shm import SentShmCache
from vllm_prune.serving.wire.request_spec import FIELD

ROOM = 20_000
"""Bytes, for some five media."""


class Pair:
    """Both sides, in one process."""

    def __init__(self) -> None:
        limit = ROOM / 2 / 2**20
        multimodal = SimpleNamespace(mm_processor_cache_gb=ROOM / 2**30, mm_shm_cache_max_object_size_mb=limit)
        config = SimpleNamespace(
            parallel_config=SimpleNamespace(world_size=1),
            model_config=SimpleNamespace(get_multimodal_config=lambda: multimodal),
        )
        self.original = ShmObjectStoreSenderCache(config)
        self.server = SentShmCache(self.original)
        self.worker = ShmObjectStoreReceiverCache(config, get_context("spawn").Lock())

    def process(self, names: str) -> SimpleNamespace:
        known = self.server.is_cached(list(names))
        for name in names:
            self.server.touch_sender_cache_item(name)
        features = []
        for name, is_known in zip(names, known, strict=True):
            item, _ = self.server.get_and_update_item(None if is_known else (medium(name), updates(name)), name)
            features.append(MultiModalFeatureSpec(item, "video", name, PlaceholderRange(offset=0, length=1), name))
        if hasattr(self.server, "release_sender_touches"):
            self.server.release_sender_touches()
        return SimpleNamespace(mm_features=features, sampling_params=None)

    def send(self, request: SimpleNamespace) -> list[SimpleNamespace]:
        sent: list[SimpleNamespace] = []
        _send(sent.append, self.server, copy.copy(request))
        return sent

    def read(self, requests: list[SimpleNamespace]) -> list[int]:
        """What every medium's data begin with, as a worker sees them."""
        features = [copy.copy(feature) for request in requests for feature in request.mm_features]
        return [int(feature.data["data"].data[0]) for feature in self.worker.get_and_update_features(features)]


@pytest.fixture
def pair(monkeypatch) -> Iterator[Pair]:
    monkeypatch.setenv("VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", f"vllm_prune_test_{id(monkeypatch)}")
    made = Pair()
    yield made
    made.worker._shm_cache.close()
    made.original.close()


def test_refused_requests_leave_their_room_to_others(pair):
    for name in "abcdefghijklmnopqrstuvwxyz":
        pair.process(name)  # and never sent
    for name in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        assert pair.read(pair.send(pair.process(name))) == [ord(name)]
        assert pair.server.is_cached([name]) == [True]


def test_a_handle_brings_the_specification_of_its_video(pair):
    """The engine core keys blocks by it, and cannot read what lies in shared memory."""
    item = medium("v")
    item[FIELD] = item["data"]
    written, _ = pair.server.get_and_update_item((item, updates("v")), "v")
    known, _ = pair.server.get_and_update_item(None, "v")
    other, _ = pair.server.get_and_update_item((medium("w"), updates("w")), "w")
    assert "data" not in written
    assert written[FIELD] == known[FIELD] == item[FIELD]
    assert FIELD not in other


def test_every_answer_of_n_reads_it(pair):
    request = pair.process("a")
    sent = pair.send(request) + pair.send(request) + pair.send(request)
    assert pair.read(sent[:1]) == [ord("a")]
    for name in "BCDEFGHIJKLMNOP":
        pair.read(pair.send(pair.process(name)))
    assert pair.read(sent[1:]) == [ord("a"), ord("a")]


def test_a_known_medium_of_a_refused_request_can_be_dropped_later(pair):
    pair.read(pair.send(pair.process("a")))
    pair.process("ab")
    for name in "CDEFGHIJKLMNOP":
        pair.read(pair.send(pair.process(name)))
    assert pair.server.is_cached(["a", "b"]) == [False, False]
