"""Hand a worker's notes on to the requests they are about, and end requests whose video could not be pruned."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.core.sched.scheduler"
_TARGET = f"{_MODULE}:Scheduler.update_from_output"
_MARK = "_vllm_prune_reads_notes"


def _scheduler() -> type[Any]:
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def _verify() -> None:
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    scheduler = _scheduler()
    used = ("self", "scheduler_output", "model_runner_output")
    require_leading(scheduler.update_from_output, used, _TARGET)
    skipped = ("if request is None or request.is_finished(): # The request is already finished.",)
    require_source(scheduler.update_from_output, skipped, _TARGET)
    used = ("self", "request_ids", "finished_status")
    require_leading(scheduler.finish_requests, used, f"{_MODULE}:Scheduler.finish_requests")
    eviction = (
        "self.freeable.popitem(last=False)",
        "del self.cached[mm_hash] del self.num_embeds_by_hash[mm_hash] self.freed.append(mm_hash)",
        "self.num_free_slots += num_free_embeds",
    )
    target = "vllm.v1.core.encoder_cache_manager:EncoderCacheManager.can_allocate"
    require_source(EncoderCacheManager.can_allocate, eviction, target)


def _install() -> None:
    scheduler = _scheduler()
    original = scheduler.update_from_output

    @functools.wraps(original)
    def update_from_output(
        self: Any, scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        from vllm_prune.serving.core.report import update_from_output as update

        def unchanged() -> Any:
            return original(self, scheduler_output, model_runner_output, *args, **kwargs)

        return update(self, scheduler_output, model_runner_output, unchanged)

    setattr(update_from_output, _MARK, True)
    scheduler.update_from_output = update_from_output


PATCH = Patch(
    name="core_step_notes",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "An exception in a worker ends the engine with all its requests. A method of the user's that fails on one "
        "video should end the requests with that video, and what it took should be told to the client."
    ),
    how=(
        "Wraps update_from_output: requests with a failed video are finished with an error before vLLM looks at their "
        "tokens, their blocks and videos leave the caches, and notes ride in the `trace_headers` of the outputs."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_scheduler().update_from_output, _MARK),
    verify=_verify,
    install=_install,
)
