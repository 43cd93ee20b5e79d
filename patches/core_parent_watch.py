"""Let the engine core end with its API server."""

from vllm_prune.patches.child_main import child_main_patch

PATCH = child_main_patch(
    name="core_parent_watch",
    target="vllm.v1.engine.core:EngineCoreProc.run_engine_core",
    process="engine core",
    why=(
        "An engine core waits for requests of its API server and never looks whether that still runs: where it was "
        "killed, the engine core, its workers, their memory and a GPU stay taken until somebody finds them."
    ),
    verified="EngineCoreProc.run_engine_core",
    snippets=("signal.signal(signal.SIGTERM, signal_handler)",),
)
