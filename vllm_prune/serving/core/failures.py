"""Ends the requests that used a video on which a method failed, and removes what was computed of it.

Runs in the engine core, before vLLM looks at the output of the step that used the video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.request import RequestStatus

from vllm_prune.serving.core.encoder_accounting import forget


def end_failed(scheduler: Any, step: Any, failures: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Ends requests in vLLM's scheduler.

    Their blocks from the step's first token on are taken out of the prefix cache, and so ends every other request that
    found one of these blocks there. Their videos are taken out of the encoder cache once nobody uses them.

    Args:
        scheduler: vLLM's.
        step: vLLM's `SchedulerOutput`.
        failures: What happened, by request.

    Returns:
        By id, the requests that ended, each with its reason.
    """
    failed = {id: message for id, message in failures.items() if id in scheduler.requests}
    computed = _computed_before(step)
    bad_blocks: dict[int, str] = {}
    for id, message in failed.items():
        for block in _blocks_from(scheduler, scheduler.requests[id], computed[id], step.num_scheduled_tokens[id]):
            bad_blocks[block] = message
    scheduler.kv_cache_manager.evict_blocks(set(bad_blocks))
    for request in scheduler.running:
        shared = _blocks_of(scheduler, request) & bad_blocks.keys()
        if shared:
            failed.setdefault(request.request_id, bad_blocks[min(shared)])
    ended = scheduler.finish_requests(failed.keys(), RequestStatus.FINISHED_ERROR)
    for request in ended:
        _forget_videos(scheduler.encoder_cache_manager, request)
    return {request.request_id: (request, failed[request.request_id]) for request in ended}


def _computed_before(step: Any) -> dict[str, int]:
    """Tokens that every request of the step had computed before it."""
    cached = step.scheduled_cached_reqs
    computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return computed | {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}


def _blocks_of(scheduler: Any, request: Any) -> set[int]:
    return {block for group in scheduler.kv_cache_manager.get_block_ids(request.request_id) for block in group}


def _blocks_from(scheduler: Any, request: Any, start: int, count: int) -> set[int]:
    """Blocks with the tokens start <= i < start + count of a request, and all after them."""
    blocks: set[int] = set()
    for group in scheduler.kv_cache_manager.get_block_ids(request.request_id):
        blocks.update(group[start // scheduler.block_size :])
    if blocks:
        return blocks
    # It was preempted since the step began: its blocks are free, and may still be found by their content.
    size = scheduler.hash_block_size
    for block_hash in request.block_hashes[start // size : (start + count) // size]:
        found = scheduler.kv_cache_manager.block_pool.get_cached_block(block_hash, [0])
        blocks.update(block.block_id for block in found or ())
    return blocks


def _forget_videos(cache: Any, request: Any) -> None:
    """Takes a request's videos out of vLLM's `EncoderCacheManager`, once nobody uses them."""
    for feature in request.mm_features:
        if feature.modality == "video" and feature.identifier in cache.freeable:
            forget(cache, feature.identifier)
