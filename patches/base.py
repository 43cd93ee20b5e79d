"""What a patch is: a record of what, why and until when, and four small functions that `apply` puts together."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from vllm_prune.patches.after_import import run_after_import
from vllm_prune.supported import SUPPORTED_VLLM


class PatchError(RuntimeError):
    """A patch's target is not what the patch was written for, so the patch refuses to touch it."""

    def __init__(self, target: str, expected: str, found: str) -> None:
        self.target, self.expected, self.found = target, expected, found
        super().__init__(
            f"cannot patch {target}: expected {expected}, found {found}. "
            f"Install the versions that `vllm-prune doctor` names as supported, or update vllm-prune."
        )


class State(Enum):
    """Where a patch stands in this process."""

    APPLIED = "applied"
    NOT_NEEDED = "not needed"
    PENDING = "needed, not applied"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One change to somebody else's code.

    The four functions take no arguments and import their target themselves. `needed` is false where the original works;
    `applied` is true where this process has the change; `verify` raises PatchError unless the target still reads as it
    did when the patch was written; `install` makes the change and checks nothing.
    """

    name: str  # the module's name in this folder
    target: str  # "module:attribute"
    library: str = (
        f"vllm{SUPPORTED_VLLM}"  # requirement whose versions the patch is for; another one only with a reason
    )
    process: str  # where it runs: every Python process of the environment, API server, engine core, worker
    trigger: str | None  # the module after whose import it is applied; None: at interpreter start
    why: str
    how: str
    upstream: tuple[str, ...]  # where the fault is discussed
    remove_when: str  # "vllm>=X": look at this file again once the lowest supported version is X
    needed: Callable[[], bool] = field(repr=False)
    applied: Callable[[], bool] = field(repr=False)
    verify: Callable[[], None] = field(repr=False)
    install: Callable[[], None] = field(repr=False)

    def state(self) -> State:
        """Say where the patch stands in this process. May import the target."""
        needed = self.needed()  # first: if this imports the trigger, an armed patch is applied meanwhile
        if self.applied():
            return State.APPLIED
        return State.PENDING if needed else State.NOT_NEEDED

    def apply(self) -> State:
        """Make the change if it is needed and not there yet.

        Raises:
            PatchError: the target does not look as expected.
        """
        state = self.state()
        if state is State.PENDING:
            self.verify()
            self.install()
            state = State.APPLIED
        return state

    def arm(self) -> None:
        """Apply the patch as soon as its trigger has been imported, which may be now.

        Raises:
            PatchError: Nothing will ever import the trigger, as its package is there and has no such module.
        """
        if self.trigger is None:
            self.apply()
        else:
            if _is_gone(self.trigger):
                raise PatchError(self.target, f"a module {self.trigger}", "none")
            run_after_import(self.trigger, self.apply)


def _is_gone(module: str) -> bool:
    """Whether the package of a module has no file for it. Imports nothing, as `find_spec` would for a module in it."""
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return False
    path = Path(spec.submodule_search_locations[0], *names)
    return not path.is_dir() and not path.with_suffix(".py").exists()
