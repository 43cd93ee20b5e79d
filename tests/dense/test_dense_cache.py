"""The paged cache through the backend of this machine: keys read back, and attention over a scratch cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backends import cpu_attn

from vllm_prune.serving.worker.dense.key_reader import KeyReader
from vllm_prune.serving.worker.dense.scratch import ScratchCache

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the CPU's backend")
HEADS, GROUPS = 6, 2
PACKED = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _backend(monkeypatch):
    torch.cpu._init_amx()
    config = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
    monkeypatch.setattr(cpu_attn, "get_current_vllm_config", lambda: config)


def make_layer(dtype: torch.dtype, block_size: int, dim: int, num_blocks: int = 12) -> SimpleNamespace:
    """As much of vLLM's `Attention` as the dense prefix touches; the cache is full of what an earlier request left."""
    return SimpleNamespace(
        impl=cpu_attn.CPUAttentionBackendImpl(HEADS, dim, dim**-0.5, GROUPS, None, None, "auto"),
        isa=cpu_attn._get_attn_isa(dtype, block_size, dim, "auto"),
        kv_cache=torch.randn(num_blocks, GROUPS, block_size, 2 * dim).to(dtype),
        num_kv_heads=GROUPS,
        head_size=dim,
        _k_scale_float=1.0,
        _v_scale_float=1.0,
    )


class Builder:
    """vLLM's builder without an engine."""

    def __init__(self, layer: SimpleNamespace, dtype: torch.dtype) -> None:
        self.layer, self.dtype = layer, dtype

    def build(self, common_prefix_len: int, common_attn_metadata) -> cpu_attn.CPUAttentionMetadata:
        common = common_attn_metadata
        schedule = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=common.num_reqs,
            num_heads=HEADS,
            num_kv_heads=GROUPS,
            head_dim=self.layer.head_size,
            seq_lens=common.seq_lens,
            dtype=self.dtype,
            query_start_loc=common.query_start_loc,
            causal=True,
            sliding_window_size=-1,
            isa=self.layer.isa,
            enable_kv_split=True,
            dynamic_causal=None,
            kv_cache_dtype="auto",
        )
        return cpu_attn.CPUAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=schedule,
            causal=True,
        )


def write(layer: SimpleNamespace, table: list[int], block_size: int, key: torch.Tensor, value: torch.Tensor) -> None:
    slots = torch.tensor(
        [table[i // block_size] * block_size + i % block_size for i in range(len(key))], dtype=torch.long
    )
    layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, slots)


@pytest.mark.parametrize("dtype", [*PACKED, torch.float16])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("dim", [32, 64, 80, 128])
def test_keys_read_back_are_those_written(dtype, block_size, dim):
    layer = make_layer(dtype, block_size, dim)
    length = 2 * block_size + 5
    key, value = (torch.randn(length, GROUPS, dim).to(dtype) for _ in range(2))
    write(layer, [7, 2, 4], block_size, key, value)
    found = KeyReader(layer, block_size).read(layer, torch.tensor([7, 2, 4, 0, 0], dtype=torch.int32), length)
    assert torch.equal(found, key)


def test_reading_leaves_the_cache_alone():
    layer = make_layer(torch.bfloat16, 32, 64)
    before = layer.kv_cache.clone()
    KeyReader(layer, 32).read(layer, torch.tensor([3]), 5)
    assert torch.equal(layer.kv_cache, before)


def attend_naive(query, keys, values, dim):
    shared = HEADS // GROUPS
    keys, values = (x.float().repeat_interleave(shared, 1).transpose(0, 1) for x in (keys, values))
    scores = query.float().transpose(0, 1) @ keys.mT * dim**-0.5
    total, rows = keys.shape[1], len(query)
    seen = torch.arange(total) <= torch.arange(total - rows, total)[:, None]
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("contexts", [[0], [45], [0, 33, 64, 7]])
def test_scratch_attention_sees_contexts_and_earlier_rows(monkeypatch, dtype, block_size, contexts):
    dim, lengths = 64, [50, 41, 3, 90][: len(contexts)]
    _poison_new_memory(monkeypatch)
    layer = make_layer(dtype, block_size, dim, num_blocks=20)
    tables, context_kv = [], []
    for i, context in enumerate(contexts):
        table = [(5 * i + j) % 20 for j in range(4)]
        context_kv.append([torch.randn(context, GROUPS, dim).to(dtype) for _ in range(2)])
        write(layer, table, block_size, *context_kv[-1])
        tables.append(torch.tensor(table, dtype=torch.int32))
    before = layer.kv_cache.clone()
    scratch = ScratchCache(Builder(layer, dtype), layer.kv_cache, block_size, contexts, tables)
    # As after a drop: laid out anew, shorter.
    for shrink in (1, 2):
        own = [-(-n // shrink) for n in lengths]
        scratch.lay_out(own)
        query = torch.randn(sum(own), HEADS, dim).to(dtype)
        key, value = (torch.randn(sum(own), GROUPS, dim).to(dtype) for _ in range(2))
        found = scratch.attend(layer, query, key, value).float().split(own)
        parts = zip(*(x.split(own) for x in (query, key, value)), context_kv, strict=True)
        for rows, (q, k, v, (context_key, context_value)) in zip(found, parts, strict=True):
            expected = attend_naive(q, torch.cat((context_key, k)), torch.cat((context_value, v)), dim)
            torch.testing.assert_close(rows, expected, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-2)
    assert torch.equal(layer.kv_cache, before)


def _poison_new_memory(monkeypatch) -> None:
    """What `empty_like` gives may hold anything; here it holds NaN."""
    empty_like = torch.empty_like

    def poisoned(tensor, **options):
        new = empty_like(tensor, **options)
        return new.fill_(torch.nan) if new.is_floating_point() else new

    monkeypatch.setattr(torch, "empty_like", poisoned)
