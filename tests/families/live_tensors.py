"""How many bytes of tensors are there at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts storages that operators make in the meantime, until the last tensor that looks at them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in known - self._known.keys():
                self._see(leaf)
        self.peak = max(self.peak, self._now)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        key = _storage(tensor)
        if key not in self._known:
            self._known[key] = 0
            self._now += tensor.untyped_storage().nbytes()
        self._known[key] += 1
        weakref.finalize(tensor, self._forget, key, tensor.untyped_storage().nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known[key] -= 1
        if not self._known[key]:
            del self._known[key]
            self._now -= size


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
