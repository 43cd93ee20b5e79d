"""Check the patches: needed here, applied, and their targets as expected."""

from functools import partial

from vllm_prune.cli.checks.alone import alone
from vllm_prune.cli.checks.check import Check, fail, ok
from vllm_prune.cli.checks.remedies import set_up
from vllm_prune.patches.base import Patch, PatchError, State
from vllm_prune.patches.registry import load_patches


def check_patches() -> list[Check]:
    """Check each patch in this process, in which the plugin has been registered."""
    return [check for patch in load_patches() for check in alone(f"patch {patch.name}", partial(_check_patch, patch))]


def _check_patch(patch: Patch) -> Check:
    name = f"patch {patch.name}"
    try:
        state = patch.state()
        if state is State.NOT_NEEDED:
            return ok(name, "not needed here")
        patch.verify()
    except PatchError as error:
        return fail(name, str(error), f"install supported versions: {set_up()}")
    if state is State.PENDING:
        return fail(name, f"needed, but not applied to {patch.target}", "mend the start-up file and the plugin, above")
    return ok(name, f"applied; {patch.target} is as expected")
