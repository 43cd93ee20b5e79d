"""Rows of the encoder cache: features, positions and the number of their facts survive every precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_prune.serving.worker import carrier

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def read_info(rows: torch.Tensor) -> int:
    return carrier.read_parts([rows], torch.empty(0), [])[0][0].info


@given(st.integers(1, 60), st.data(), st.sampled_from(DTYPES), st.integers(0, 10000))
def test_round_trip(num_tokens, data, dtype, seed):
    num_rows = data.draw(st.integers(1, num_tokens))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_tokens, 5, generator=generator).to(dtype)
    cells, groups = torch.randint(0, 2**24, (2, num_tokens), generator=generator)
    rows = carrier.pack(features, cells, groups, num_rows, info=seed)
    assert len(rows) == num_rows
    assert rows.dtype == dtype
    found = carrier.unpack(rows, 5)
    for part, packed in zip(found, (features, cells, groups), strict=True):
        assert torch.equal(part[:num_tokens], packed)
    assert read_info(rows) == seed
    few = torch.randint(0, num_tokens, (data.draw(st.integers(0, 9)),), generator=generator)
    assert torch.equal(carrier.take(rows, 5, few), features[few])
    assert torch.equal(carrier.take(rows, 5, few, columns=3), features[few, :3])
    for tags, whole in zip(carrier.read_tags(rows, 5), found[1:], strict=True):
        assert torch.equal(tags, whole)


class Copies(TorchDispatchMode):
    """Counts the elements of the tensors that are made, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(
            isinstance(given, torch.Tensor) and given.untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
            for given in args
        ):
            self.elements += made.numel()
        return made


@pytest.mark.parametrize("num_rows", [1, 99, 250, 1000])
def test_packing_copies_features_once(num_rows):
    features, tags = torch.ones(1000, 512), torch.zeros(2, 1000, dtype=torch.int64)
    with Copies() as packing:
        carrier.pack(features, *tags, num_rows, info=1)
    assert packing.elements < 1000 * 512 * 1.2


def test_to_take_a_few_tokens_copies_no_others():
    rows = carrier.pack(torch.ones(1000, 64), *torch.zeros(2, 1000, dtype=torch.int64), 100, info=1)
    with Copies() as taking:
        carrier.take(rows, 64, torch.arange(0, 1000, 50))
    assert taking.elements < 20 * 64 * 1.2
    with Copies() as reading:
        carrier.read_tags(rows, 64)
    assert reading.elements < 1000 * 64
    with Copies() as unpacking:
        carrier.unpack(rows, 64)
    assert unpacking.elements > 1000 * 64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [7, 12])
def test_any_consecutive_rows(dtype, num_tokens):
    features, cells, groups = torch.randn(num_tokens, 4).to(dtype), *torch.randint(0, 70000, (2, num_tokens))
    rows = carrier.pack(features, cells, groups, 4, info=300)
    per_row = -(-num_tokens // 4)
    for start in range(4):
        for end in range(start + 1, 5):
            found = carrier.unpack(rows[start:end], 4)
            for part, packed in zip(found, (features, cells, groups), strict=True):
                there = packed[start * per_row : end * per_row]
                assert torch.equal(part[: len(there)], there)
            assert read_info(rows[start:end]) == 300


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 255, 256, 257, 65535, 65536, 2**24 - 1])
def test_integers_at_the_edges_of_digits(dtype, value):
    edge = torch.tensor([value])
    rows = carrier.pack(torch.ones(1, 2).to(dtype), edge, 2**24 - 1 - edge, 1, info=value)
    _, cells, groups = carrier.unpack(rows, 2)
    assert (cells.tolist(), groups.tolist()) == ([value], [2**24 - 1 - value])
    assert read_info(rows) == value
