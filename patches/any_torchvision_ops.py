"""Let a CUDA build of torchvision be imported beside a CPU build of torch."""

import importlib.util
import re
from pathlib import Path

from vllm_prune.patches.base import Patch, PatchError

# Signatures from torchvision/csrc/ops/nms.cpp and quantized/cpu/qnms_kernel.cpp.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A registration at the left margin runs at import, whether or not the operator exists.
_UNGUARDED = re.compile(r'^@torch\.library\.register_fake\("torchvision::(\w+)"\)', re.MULTILINE)

_libraries: list[object] = []  # a torch.library.Library takes its definitions with it when it is collected


def _unguarded_registrations() -> set[str]:
    """Read, without importing, the operators for which torchvision registers a shape function in any case."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return set()
    source = Path(spec.submodule_search_locations[0], "_meta_registrations.py")
    return set(_UNGUARDED.findall(source.read_text())) if source.exists() else set()


def _needed() -> bool:
    if not (unguarded := _unguarded_registrations()):
        return False
    import torch
    from torchvision import extension

    return not extension._has_ops() and any(not hasattr(torch.ops.torchvision, name) for name in unguarded)


def _verify() -> None:
    if (found := _unguarded_registrations()) != set(_SCHEMAS):
        raise PatchError(
            "torchvision._meta_registrations",
            f"shape functions registered unconditionally for {sorted(_SCHEMAS)}",
            f"{sorted(found)}",
        )


def _install() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        library.define(schema)
    _libraries.append(library)


PATCH = Patch(
    name="any_torchvision_ops",
    target="torchvision._meta_registrations:register_fake",
    library="torchvision>=0.28,<0.30",
    process="every Python process of the environment",
    trigger="torchvision.extension",
    why=(
        "The x86 wheels of torchvision on PyPI are CUDA builds. Beside a CPU build of torch their library does not "
        "load, and `import torchvision` (so `import vllm`) fails with `operator torchvision::nms does not exist`."
    ),
    how=(
        "Defines the schemas of the two operators, without kernels, before torchvision registers shape functions for "
        "them. Transforms work, which is all vLLM uses; calling the operators still raises torchvision's own error."
    ),
    upstream=("https://github.com/pytorch/vision/issues/9085", "https://github.com/vllm-project/vllm/issues/15372"),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=lambda: bool(_libraries),
    verify=_verify,
    install=_install,
)
