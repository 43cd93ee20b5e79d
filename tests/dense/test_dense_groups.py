"""Layers whose keys and values are in blocks of their own: vLLM's KV-cache groups, and blocks split for a kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import small_decoder
import small_step
import torch
from emulated_cuda import Counts
from small_decoder import DIM, KV_HEADS, NUM_BLOCKS
from small_step import DECODING, PADDING, SmallStep, alone

CONFIG = {"preset": "default", "layers": [1, 2], "keep_ratio": [0.6, 0.5]}


class _ByRow(SmallStep):
    """The keys and values are those of the step's rows, wherever they lie."""

    def __init__(self) -> None:
        super().__init__(lambda tensor: tensor, Counts(), CONFIG)

    def _keys_and_values(self, slots: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([self._rows_of(layer, slots[layer.layer_name]) for layer in self._model.layers])

    def _rows_of(self, layer: Any, slots: torch.Tensor) -> torch.Tensor:
        return layer.kv_cache.transpose(1, 2).flatten(0, 1)[slots[:-PADDING]]


class _TwoGroups(_ByRow):
    """Every second layer has larger blocks, and other ones."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self._model.layers[1::2]:
            layer.kv_cache = torch.zeros(NUM_BLOCKS, 32, KV_HEADS, 2 * DIM).transpose(1, 2)
            layer.get_kv_cache_spec = lambda _: SimpleSpec(block_size=64)

    def _groups(self) -> list[list[Any]]:
        return [self._model.layers[::2], self._model.layers[1::2]]


class SimpleSpec(SimpleNamespace):
    """Blocks that the kernels see in two halves."""

    def __hash__(self) -> int:
        return self.block_size

    def copy_with_new_block_size(self, block_size: int) -> SimpleSpec:
        return SimpleSpec(block_size=block_size)


def test_every_group_has_its_own_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_step, "GRID", (4, 6, 6))
    monkeypatch.setattr(small_decoder, "LAYERS", 4)
    with torch.no_grad(), alone():
        one, two = _ByRow().run(), _TwoGroups().run()
    assert len(one.values["hidden"]) > len(DECODING) + 50
    for what, value in one.values.items():
        torch.testing.assert_close(two.values[what], value, rtol=1e-6, atol=1e-6, msg=what)
