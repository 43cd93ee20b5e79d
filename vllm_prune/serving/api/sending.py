"""Requests on their way to the engine: their media are settled at the last moment, in the order of sending.

Runs in the API server; `patches/server_sent_media.py` calls `connect` for every new engine client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any

from vllm.logger import init_logger
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.cache.shm import ShmObjectStoreSenderCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem
from vllm.v1.engine.core_client import AsyncMPClient

from vllm_prune.serving.api.sent_media import KnownItem, ProcessedItem, SentMediaCache, Updates
from vllm_prune.serving.api.sent_media_shm import SentShmCache
from vllm_prune.serving.wire.architectures import is_variant

logger = init_logger("vllm.vllm_prune")

Cache = SentMediaCache | SentShmCache
"""A cache that follows what is sent."""


def connect(client: Any, renderer: Any) -> None:
    """Lets the media cache of a server of a pruning variant follow what its engine is sent.

    Args:
        client: vLLM's `EngineCoreClient`, new.
        renderer: vLLM's `BaseRenderer` of the same engine.
    """
    if not is_variant(renderer.config.model_config.architecture):
        return
    cache = _following(renderer.mm_processor_cache)
    if cache is None:
        return
    renderer._mm_processor_cache = cache
    # On the instance and without a reference to it: a cycle would keep an engine's memory until the next collection.
    this = weakref.ref(client)
    if isinstance(client, AsyncMPClient):
        add_async = type(client).add_request_async
        send_async = functools.partial(_send_async, lambda request: add_async(this(), request), cache)
        client.add_request_async = functools.partial(send_async, asyncio.Lock(), renderer._mm_executor)
    else:
        add = type(client).add_request
        client.add_request = functools.partial(_send, lambda request: add(this(), request), cache)


def _following(cache: Any) -> Cache | None:
    """The one to take the place of vLLM's; None where the engine has no part in it."""
    if type(cache) is LruKeyReplicatedSenderCache:
        return SentMediaCache(cache._cache.maxsize)
    return SentShmCache(cache) if type(cache) is ShmObjectStoreSenderCache else None


def _send(original: Callable[[Any], None], cache: Cache, request: Any) -> None:
    if request.mm_features:
        _process_again(request.mm_features, cache.missing(request.mm_features))
        _settle(request, cache)
    original(request)


async def _send_async(
    original: Callable[[Any], Coroutine[Any, Any, None]],
    cache: Cache,
    ordered: asyncio.Lock,
    executor: Executor,
    request: Any,
) -> None:
    if not request.mm_features:
        await original(request)
        return
    async with ordered:
        if missing := cache.missing(request.mm_features):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(executor, _process_again, request.mm_features, missing)
        _settle(request, cache)
        await original(request)


def _settle(request: Any, cache: Cache) -> None:
    features = request.mm_features
    request.mm_features = cache.send(features)
    # A request for one token is over soon, and may be a step of beam search, which sends the same media once more.
    if request.sampling_params is None or request.sampling_params.max_tokens != 1:
        for feature in features:
            if isinstance(feature.data, KnownItem):
                feature.data.process = None


def _process_again(features: list[MultiModalFeatureSpec], missing: Sequence[int]) -> None:
    """Puts the media in the place of their stand-ins.

    One that cannot be had (it was sent as its identifier alone) stays, and the engine asks for it by an error.
    """
    for i in missing:
        known = features[i].data
        assert isinstance(known, KnownItem)
        item = _processed(known)
        if item is not None:
            features[i] = dataclasses.replace(features[i], data=item)


def _processed(known: KnownItem) -> MultiModalKwargsItem | None:
    if known.process is None:
        return None
    try:
        item, updates = known.process()
    except ValueError as error:
        logger.warning("a medium that the engine no longer has cannot be processed again: %s", error)
        return None
    # Under an identifier of the client's choice there may be another medium now.
    return ProcessedItem.of(item, known.updates) if _placeholders(updates) == _placeholders(known.updates) else None


def _placeholders(updates: Updates) -> list[list[int]]:
    return [update.content.full for update in updates]
