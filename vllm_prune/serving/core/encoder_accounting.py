"""What a video takes of vLLM's encoder cache, in rows of the model's width. Called by `patches/core_encoder_rows.py`.

Runs in the engine core. vLLM counts the embeddings of a medium's placeholders: K for a pruned video. Where the question
chooses, a row of the cache holds ceil(N1 / K) tokens (see `worker/carrier.py`), and the cache would grow to that many
times its own budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_prune.serving.wire.request_spec import read_spec

_ATTRIBUTE = "_vllm_prune_held_rows"
_PENDING = "_vllm_prune_pending_rows"
_FORGOTTEN = "_vllm_prune_forgotten_media"


@dataclass(frozen=True)
class HeldRows:
    """Of one medium of a request."""

    kept: int
    """K + S: what vLLM counts, unless the request's placeholders are others than its video's specification says."""
    packed: int
    """Rows of the model's width in its tensor: whole ones of N1 + S; `kept` where nothing is left to choose."""
    entering: int
    """N1 + S, which is what it takes at the least; `kept` where nothing is left to choose."""


class _CountedRequest:
    """A request as the cache's manager sees it: with the rows that its media really take."""

    def __init__(self, request: Any, rows: Callable[[int], int]) -> None:
        self._request, self._rows = request, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def get_num_encoder_embeds(self, input_id: int) -> int:
        return self._rows(input_id)


def begin_request(manager: Any) -> None:
    """Call before the encoder inputs of a request are scheduled: nothing of it waits for its place in the cache yet."""
    setattr(manager, _PENDING, 0)


def can_allocate(
    manager: Any, request: Any, input_id: int, compute_budget: int, scheduled: int, original: Callable[..., bool]
) -> bool:
    """vLLM's `can_allocate`, for real rows; the budget of computing stays in its own unit.

    Args:
        manager: vLLM's `EncoderCacheManager`.
        request: vLLM's.
        input_id: Index of the medium in the request.
        compute_budget: Embeddings that may still be computed in this step.
        scheduled: Embeddings of this request's media that were found to fit before, in this step.
        original: vLLM's own way, with the same arguments.
    """
    counted = _counted(manager, request)
    extra = counted.get_num_encoder_embeds(input_id) - request.get_num_encoder_embeds(input_id)
    pending = getattr(manager, _PENDING, 0)
    fits = original(counted, input_id, compute_budget + extra, scheduled + pending)
    if fits:
        setattr(manager, _PENDING, pending + extra)
    return fits


def allocate(manager: Any, request: Any, input_id: int, original: Callable[..., None]) -> None:
    """vLLM's `allocate`, for real rows."""
    original(_counted(manager, request), input_id)


def cached_embeds(request: Any, input_id: int, stored: int | None) -> int | None:
    """Embeddings of a cached medium as vLLM counts them, from the rows that are `stored` (None: it is not cached).

    Those of the video itself, not of the request's placeholders: where these are others, as a client of
    `/inference/v1/generate` may send them, vLLM refuses the request.
    """
    held = _held(request)[input_id]
    return held.kept if stored in (held.packed, held.entering) else stored


def release(manager: Any, request: Any, start: int) -> None:
    """Gives up a request's claim on cached media from prompt token `start` on, which this step did not schedule.

    The media of a dense span are scheduled together or not at all. Two requests that each held one medium and waited
    for room for another would wait for ever.
    """
    for input_id in list(manager.get_cached_input_ids(request)):
        if request.mm_features[input_id].mm_position.offset >= start:
            manager.free_encoder_input(request, input_id)


def forget(manager: Any, identifier: str) -> None:
    """Takes a medium that nobody uses out of the cache, as vLLM does to make room, and its rows out of the workers.

    vLLM leaves them there where the medium is scheduled again at once; rows of a failure must be made anew.
    """
    manager.num_free_slots += manager.freeable.pop(identifier)
    del manager.cached[identifier], manager.num_embeds_by_hash[identifier]
    setattr(manager, _FORGOTTEN, {*getattr(manager, _FORGOTTEN, ()), identifier})


def freed(manager: Any, original: Callable[[], list[str]]) -> list[str]:
    """Media whose rows the workers drop before this step: vLLM's, and those that were forgotten."""
    forgotten: set[str] = getattr(manager, _FORGOTTEN, set())
    setattr(manager, _FORGOTTEN, set())
    return list({*original(), *forgotten})


def _counted(manager: Any, request: Any) -> _CountedRequest:
    held = _held(request)
    # Media that do not fit together in whole rows do by their tokens: those of a dense span fit one step, and the cache
    # holds at least as much as a step.
    whole = sum(item.packed for item in held) <= manager.cache_size

    def rows(input_id: int) -> int:
        item = held[input_id]
        stored = manager.num_embeds_by_hash.get(request.mm_features[input_id].identifier)
        if stored in (item.packed, item.entering):  # by another request, maybe
            return stored
        return item.packed if whole else item.entering

    return _CountedRequest(request, rows)


def _held(request: Any) -> list[HeldRows]:
    """Of every medium of a request, found once."""
    held = getattr(request, _ATTRIBUTE, None)
    if held is None:
        held = [_find(request, i, feature) for i, feature in enumerate(request.mm_features)]
        setattr(request, _ATTRIBUTE, held)
    return held


def _find(request: Any, input_id: int, feature: Any) -> HeldRows:
    spec = read_spec(feature)
    if spec is None or not spec.config.query_aware or spec.keeps_all:
        embeds = request.get_num_encoder_embeds(input_id)
        return HeldRows(embeds, embeds, embeds)
    entering, kept = spec.counts.carried_rows, spec.counts.rows
    return HeldRows(kept, -(-entering // kept) * kept, entering)
