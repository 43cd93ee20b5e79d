"""Let a worker end with its engine core, also while it loads its model."""

from vllm_prune.patches.child_main import child_main_patch

PATCH = child_main_patch(
    name="worker_parent_watch",
    target="vllm.v1.executor.multiproc_executor:WorkerProc.worker_main",
    process="worker",
    why=(
        "vLLM's worker reads a pipe that closes with its engine core, but only once its model is loaded, and then asks "
        "its queues to end: a worker in the middle of a collective operation waits for ranks that are gone."
    ),
    verified="WorkerProc.worker_main",
    snippets=(
        "signal.signal(signal.SIGTERM, signal_handler)",
        "worker.monitor_death_pipe(",
    ),
)
