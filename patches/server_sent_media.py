"""Let the API server's list of the engine's media follow what the engine is really sent."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_signature, require_source

_MODULE = "vllm.v1.engine.core_client"
_TARGET = f"{_MODULE}:EngineCoreClient"
_MARK = "_vllm_prune_settles_media"


def _module() -> Any:
    from vllm.v1.engine import core_client

    return core_client


def _verify() -> None:
    from vllm.multimodal.cache import base, lru, shm

    client = _module().EngineCoreClient
    calls = ("renderer: BaseRenderer | None = None", "MPClient(")
    for name in ("make_client", "make_async_mp_client"):
        require_source(getattr(client, name), calls, f"{_TARGET}.{name}")
    for name in ("InprocClient", "SyncMPClient"):
        require_signature(getattr(_module(), name).add_request, "(self, request)", f"{_MODULE}:{name}.add_request")
    require_signature(
        _module().AsyncMPClient.add_request_async, "(self, request)", f"{_MODULE}:AsyncMPClient.add_request_async"
    )
    operations = ("self.touch_receiver_cache_item(cache_key", "cache_key = feature.mm_hash or feature.identifier")
    features = base.BaseMultiModalReceiverCache.get_and_update_features
    require_source(features, operations, "vllm.multimodal.cache.base:BaseMultiModalReceiverCache")
    cached = ("self._cache.pop(mm_hash, None) self.cache_if_fits(", "self._cache.get(mm_hash)")
    item = lru.LruKeyReplicatedReceiverCache.get_and_update_item
    require_source(item, cached, "vllm.multimodal.cache.lru:LruKeyReplicatedReceiverCache")
    counts = ("self._shm_cache.get_cached(mm_hash)", "self._shm_cache.put(mm_hash, item)")
    sender = shm.ShmObjectStoreSenderCache.get_and_update_item
    require_source(sender, counts, "vllm.multimodal.cache.shm:ShmObjectStoreSenderCache")


def _install() -> None:
    client = _module().EngineCoreClient
    client.make_async_mp_client = staticmethod(_connected(client.make_async_mp_client))
    client.make_client = staticmethod(_connected(client.make_client))


def _connected(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def make_connected(*args: Any, renderer: Any = None, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.sending import connect

        made = make(*args, renderer=renderer, **kwargs)
        if renderer is not None:
            connect(made, renderer)
        return made

    setattr(make_connected, _MARK, True)
    return make_connected


PATCH = Patch(
    name="server_sent_media",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "The API server notes a medium as known to the engine when a request with it is processed. A request that is "
        "refused after that (its logprobs, grammar, number of answers or length; a budget of ours) is never sent, and "
        "the next one with the same medium fails, as may one with another medium that only the engine has dropped."
    ),
    how=(
        "Gives the renderer a media cache that is written when a request goes out, in the order and by the rules of "
        "the engine's own; a medium that the engine has dropped meanwhile is processed again. In shared memory, a "
        "medium is expected to be read as often as it is sent. Servers of other models, and those whose engine has no "
        "part in the cache (several API servers, internal data parallelism), are not touched."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/43941",
        "https://github.com/vllm-project/vllm/issues/46354",
        "https://github.com/vllm-project/vllm/issues/51897",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().EngineCoreClient.make_client, _MARK),
    verify=_verify,
    install=_install,
)
