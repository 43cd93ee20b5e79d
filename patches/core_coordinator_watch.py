"""Let the coordinator of data-parallel engines end with the process that started it."""

from vllm_prune.patches.child_main import child_main_patch

PATCH = child_main_patch(
    name="core_coordinator_watch",
    target="vllm.v1.engine.coordinator:DPCoordinatorProc.run_coordinator",
    process="coordinator of data-parallel engines",
    why=(
        "The coordinator waits for its engines' messages and never looks whether anybody is left: where the server was "
        "killed, it stays."
    ),
    verified="DPCoordinator.__init__",
    snippets=("target=DPCoordinatorProc.run_coordinator",),
)
