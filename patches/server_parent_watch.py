"""Let API servers end with the process that started them (`--api-server-count`)."""

from vllm_prune.patches.child_main import child_main_patch

PATCH = child_main_patch(
    name="server_parent_watch",
    target="vllm.v1.utils:run_api_server_worker_proc",
    process="API server",
    why=(
        "With several API servers, these and the engine core are children of the process that was started. Where that "
        "is killed, they go on listening, so that the next start finds its port taken."
    ),
    verified="APIServerProcessManager.__init__",
    snippets=("target=target_server_fn or run_api_server_worker_proc",),
)
