"""Let a step end in a video and its question where a dense prefix can, and no prefix-cache hit end between them."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.core.sched.scheduler"
_TARGET = f"{_MODULE}:Scheduler"
_COORDINATOR = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.cache_blocks"
_MARK = "_vllm_prune_keeps_spans_whole"


def _scheduler() -> type[Any]:
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def _coordinator() -> type[Any]:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

    return KVCacheCoordinator


def _verify() -> None:
    scheduler = _scheduler()
    require_leading(
        scheduler._try_schedule_encoder_inputs,
        ("self", "request", "num_computed_tokens", "num_new_tokens"),
        f"{_TARGET}._try_schedule_encoder_inputs",
    )
    find_hit = scheduler._get_local_prefix_cache_hit
    require_leading(find_hit, ("self", "request"), f"{_TARGET}._get_local_prefix_cache_hit")
    calls = (") = self._try_schedule_encoder_inputs(", ") = self._get_local_prefix_cache_hit(request")
    require_source(scheduler.schedule, calls, f"{_TARGET}.schedule")
    require_source(scheduler.schedule, ("self._update_after_schedule(scheduler_output)",), f"{_TARGET}.schedule")
    require_leading(_coordinator().cache_blocks, ("self", "request", "num_computed_tokens"), _COORDINATOR)


def _install() -> None:
    scheduler = _scheduler()
    schedule_encoder, find_hit = scheduler._try_schedule_encoder_inputs, scheduler._get_local_prefix_cache_hit

    @functools.wraps(schedule_encoder)
    def _try_schedule_encoder_inputs(
        self: Any, request: Any, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        from vllm_prune.serving.core.scheduling import schedule_encoder_inputs

        def original(num_new_tokens: int) -> tuple[Any, ...]:
            return schedule_encoder(self, request, num_computed_tokens, num_new_tokens, *args, **kwargs)

        return schedule_encoder_inputs(self, request, num_computed_tokens, num_new_tokens, original)

    @functools.wraps(find_hit)
    def _get_local_prefix_cache_hit(self: Any, request: Any, *args: Any, **kwargs: Any) -> tuple[Any, int, int, bool]:
        from vllm_prune.serving.core.scheduling import clip_prefix_hit

        return clip_prefix_hit(self, request, *find_hit(self, request, *args, **kwargs))

    coordinator = _coordinator()
    schedule, cache_blocks = scheduler.schedule, coordinator.cache_blocks

    @functools.wraps(schedule)
    def schedule_and_tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.core.long_spans import tell_workers

        output = schedule(self, *args, **kwargs)
        tell_workers(self, output)
        return output

    @functools.wraps(cache_blocks)
    def cache_complete_blocks(self: Any, request: Any, num_computed_tokens: int) -> None:
        from vllm_prune.serving.core.long_spans import tokens_to_cache

        cache_blocks(self, request, tokens_to_cache(request, num_computed_tokens))

    setattr(_try_schedule_encoder_inputs, _MARK, True)
    scheduler.schedule, coordinator.cache_blocks = schedule_and_tell, cache_complete_blocks
    scheduler._try_schedule_encoder_inputs = _try_schedule_encoder_inputs
    scheduler._get_local_prefix_cache_hit = _get_local_prefix_cache_hit


PATCH = Patch(
    name="core_span_scheduling",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "The scheduler cuts a prompt where its budget ends, and takes up a cached prefix where its last full block "
        "ends. A question that chooses a video's tokens has to be computed in the step that computes the video, or, "
        "where both are more than a step, in the last one of those that do; until then their blocks hold nothing."
    ),
    how=(
        "Wraps the two methods that decide where a step of a multimodal request begins and ends; both already move "
        "that point for other reasons (media that may not be cut, encoder budget). The step's output says which spans "
        "are under way, and blocks go into the prefix cache once their span is complete."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_scheduler()._try_schedule_encoder_inputs, _MARK),
    verify=_verify,
    install=_install,
)
