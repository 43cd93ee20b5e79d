"""CUDA tensors on a machine without a GPU: they refuse what CUDA would, and count what the CPU would wait for.

    with emulate() as counts:
        y = to_cuda(x) * 2
        y.tolist()
    counts.syncs  # [Sync("tolist", "test_x.py:12", announced=False)]

An emulated tensor holds a CPU tensor and says that it is on "cuda:0". An operation of CPU and CUDA tensors raises as it
would there. Counted are kernel launches, and waits of the host for the device: reading a value or a size that depends
on values, and copies in either direction, unless they are non-blocking and the host's side is pinned.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from vllm.utils import gpu_sync_debug

CUDA = torch.device("cuda", 0)
_PINNED = "_emulated_pinned"
# fmt: off
_NO_LAUNCH = {
    "alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "reshape", "select", "slice", "split",
    "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "_reshape_alias", "_unsafe_view", "empty",
    "empty_like", "empty_strided", "new_empty", "new_empty_strided",
}
_SYNCS = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount",
}
# fmt: on


class Sync(NamedTuple):
    """A wait of the host for the device."""

    kind: str
    place: str
    """The line of vllm_prune, or of the caller."""
    announced: bool
    """Whether it is inside vLLM's `gpu_sync_allowed`, without which VLLM_GPU_SYNC_CHECK=error ends the engine."""


@dataclass
class Counts:
    """What happened since the last `reset`."""

    syncs: list[Sync] = field(default_factory=list)
    launches: int = 0

    def reset(self) -> None:
        """Begins anew."""
        self.syncs.clear()
        self.launches = 0

    def sync(self, kind: str) -> None:
        """Notes a wait."""
        self.syncs.append(Sync(kind, _place(), gpu_sync_debug._allow_depth.get() > 0))

    def describe(self) -> str:
        """The waits by place, most frequent first."""
        by_place = collections.Counter(self.syncs).most_common()
        return "\n".join(f"{number:4} x {sync.kind}: {sync.place}" for sync, number in by_place)


def _place() -> str:
    frame = caller = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "vllm_prune" in path.parts:
            return f"{path.name}:{frame.f_lineno}"
        if path != Path(__file__) and "torch" not in path.parts and caller.f_code.co_filename == __file__:
            caller = frame
        frame = frame.f_back
    return f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"


_counts = Counts()


class EmulatedTensor(torch.Tensor):
    """A tensor on "cuda:0"."""

    on_host: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> EmulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device="cpu"
        )
        made.on_host = real
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **kwargs: Any) -> str:
        return f"EmulatedTensor({self.on_host})"

    def __len__(self) -> int:
        return len(self.on_host)

    def tolist(self) -> Any:
        _counts.sync("tolist")
        return self.on_host.tolist()

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.to("cpu")

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def untyped_storage(self) -> Any:
        return self.on_host.untyped_storage()

    def data_ptr(self) -> int:
        return self.on_host.data_ptr()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            if self.numel():
                _counts.sync("copy to the host")
            return self.on_host.to(dtype or self.dtype, copy=True)
        if dtype is None or dtype == self.dtype:
            return self
        _counts.launches += 1
        return EmulatedTensor(self.on_host.to(dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Event:
    """`torch.cuda.Event`."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def record(self) -> None:
        pass


class _Factories(TorchDispatchMode):
    """Sees the operations that make CUDA tensors from nothing, or from CPU tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def to_cuda(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a CUDA tensor that shares its memory."""
    return EmulatedTensor(tensor)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The CPU tensor behind an emulated one, or the tensor itself; not counted."""
    return tensor.on_host if isinstance(tensor, EmulatedTensor) else tensor


@contextlib.contextmanager
def emulate() -> Iterator[Counts]:
    """Makes device="cuda" work for emulated tensors, and counts."""
    _counts.reset()
    make, convert = torch.tensor, torch.as_tensor

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return _upload(make(data, **kwargs), device)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        if isinstance(data, EmulatedTensor):
            return data if dtype is None else data.to(dtype)
        return _upload(convert(data, dtype=dtype), device)

    def pin_memory(self: torch.Tensor, *args: Any) -> torch.Tensor:
        pinned = self.clone()
        setattr(pinned, _PINNED, True)
        return pinned

    with (
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch, "as_tensor", as_tensor),
        mock.patch.object(torch.Tensor, "pin_memory", pin_memory),
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "Event", _Event),
        mock.patch.object(gpu_sync_debug, "_SYNC_CHECK_MODE", "error"),
        _Factories(),
    ):
        yield _counts


def _upload(made: torch.Tensor, device: Any) -> torch.Tensor:
    if device is None or torch.device(device).type == "cpu":
        return made
    _counts.sync("copy to the device")
    return EmulatedTensor(made)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    emulated = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor)]
    device = kwargs.get("device")
    makes_cuda = device is not None and torch.device(device).type == "cuda"
    if not emulated and not makes_cuda:
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if name == "_to_copy" and not emulated:
        return _copy_to_device(func, args[0], kwargs)
    _check_devices(name, args, tensors)
    _count(name, args, kwargs)
    if makes_cuda:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(to_host, args), **tree_map(to_host, kwargs))
    # In-place operations return the argument itself.
    known = {id(tensor.on_host): tensor for tensor in emulated}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else EmulatedTensor(value)

    return tree_map(wrap, result)


def _copy_to_device(func: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    if source.numel() and not (kwargs.get("non_blocking") and hasattr(source, _PINNED)):
        _counts.sync("copy to the device")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    return EmulatedTensor(func(source, **kwargs).clone())


def _check_devices(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raises where CUDA would: of CPU tensors it takes scalars, sources of a copy, and indices of its own tensors."""
    allowed = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor) or tensor.dim() == 0]
    if name == "copy_":
        return
    if _is_indexing(name, args) and isinstance(args[0], EmulatedTensor):
        allowed += [index for index in args[1] if index is not None]
    wrong = [tuple(tensor.shape) for tensor in tensors if not any(tensor is one for one in allowed)]
    if wrong:
        raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, of shapes {wrong}, at {_place()}")


def _is_indexing(name: str, args: Any) -> bool:
    return name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


def _count(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name in _SYNCS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _counts.sync(name)
    elif name == "copy_" and not all(isinstance(tensor, EmulatedTensor) for tensor in args[:2]):
        _counts.sync("copy")
    elif _is_indexing(name, args):
        _count_indices(name, args)
    if name not in _NO_LAUNCH:
        _counts.launches += 1


def _count_indices(name: str, args: Any) -> None:
    """A mask has to be counted, except where one number is written; an index on the CPU has to be copied."""
    one_number = name != "index" and args[2].numel() == 1 and not isinstance(args[2], EmulatedTensor)
    for index in args[1]:
        if index is not None and index.dtype == torch.bool and not one_number:
            _counts.sync("mask as index")
        if index is not None and not isinstance(index, EmulatedTensor):
            _counts.sync("index on the CPU")
