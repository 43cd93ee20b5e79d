"""Count the rows that a video really takes of the encoder cache."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.core.encoder_cache_manager"
_TARGET = f"{_MODULE}:EncoderCacheManager"
_MARK = "_vllm_prune_counts_rows"


def _manager() -> type[Any]:
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    return EncoderCacheManager


def _verify() -> None:
    manager = _manager()
    arguments = ("self", "request", "input_id", "encoder_compute_budget", "num_embeds_to_schedule")
    require_leading(manager.can_allocate, arguments, f"{_TARGET}.can_allocate")
    require_leading(manager.allocate, ("self", "request", "input_id"), f"{_TARGET}.allocate")
    cached = manager.get_cached_num_encoder_embeds
    require_leading(cached, ("self", "request", "input_id"), f"{_TARGET}.get_cached_num_encoder_embeds")
    asks = ("request.get_num_encoder_embeds(input_id)",)
    require_source(manager.can_allocate, asks, f"{_TARGET}.can_allocate")
    require_source(manager.allocate, (*asks, "self.num_embeds_by_hash.setdefault("), f"{_TARGET}.allocate")
    require_leading(manager.get_freed_mm_hashes, ("self",), f"{_TARGET}.get_freed_mm_hashes")
    freed = ("num_encoder_embeds = self.num_embeds_by_hash[mm_hash]",)
    require_source(manager.free_encoder_input, freed, f"{_TARGET}.free_encoder_input")


def _install() -> None:
    manager = _manager()
    fits, take, cached = manager.can_allocate, manager.allocate, manager.get_cached_num_encoder_embeds

    @functools.wraps(fits)
    def can_allocate(
        self: Any, request: Any, input_id: int, encoder_compute_budget: int, num_embeds_to_schedule: int
    ) -> bool:
        from vllm_prune.serving.core.encoder_accounting import can_allocate as count_and_ask

        original = functools.partial(fits, self)
        return count_and_ask(self, request, input_id, encoder_compute_budget, num_embeds_to_schedule, original)

    @functools.wraps(take)
    def allocate(self: Any, request: Any, input_id: int) -> None:
        from vllm_prune.serving.core.encoder_accounting import allocate as count_and_take

        count_and_take(self, request, input_id, functools.partial(take, self))

    @functools.wraps(cached)
    def get_cached_num_encoder_embeds(self: Any, request: Any, input_id: int) -> int | None:
        from vllm_prune.serving.core.encoder_accounting import cached_embeds

        return cached_embeds(request, input_id, cached(self, request, input_id))

    get_freed = manager.get_freed_mm_hashes

    @functools.wraps(get_freed)
    def get_freed_mm_hashes(self: Any) -> list[str]:
        from vllm_prune.serving.core.encoder_accounting import freed

        return freed(self, functools.partial(get_freed, self))

    setattr(can_allocate, _MARK, True)
    manager.get_freed_mm_hashes = get_freed_mm_hashes
    manager.can_allocate, manager.allocate = can_allocate, allocate
    manager.get_cached_num_encoder_embeds = get_cached_num_encoder_embeds


PATCH = Patch(
    name="core_encoder_rows",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "vLLM takes a medium's embeddings in the encoder cache to be as many as its placeholders. A video whose tokens "
        "the question chooses lies there with all it chooses from, up to a hundred times as much: a server would grow "
        "past the memory that was measured for it."
    ),
    how=(
        "Hands the three methods that count a request whose media count the rows they really take. For all other media "
        "the numbers are vLLM's. What workers are told to drop has the videos on which a method failed, also where one "
        "is scheduled again at once: a V2 runner would give the request the rows of the failure."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_manager().can_allocate, _MARK),
    verify=_verify,
    install=_install,
)
