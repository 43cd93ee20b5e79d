"""What a GPU attends with, as far as it runs without one.

A dense step through vLLM's Triton backend, and the metadata that FlashAttention's own builder makes of a scratch cache.
"""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import runner
import small_decoder
import small_step
import torch
from emulated_cuda import Counts
from small_decoder import DIM, HEADS, KV_HEADS
from small_step import Result, SmallStep, alone

from vllm_prune import engine_args
from vllm_prune.serving.worker.dense.paged_cache import make_metadata_builder
from vllm_prune.serving.worker.dense.scratch import ScratchCache

SEGMENTS = 16
CONFIGS = {
    "default": "default",
    "two layers": {"preset": "default", "layers": [0, 2], "keep_ratio": [0.6, 0.5]},
}


def _triton_metadata(**known: Any) -> Any:
    from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata

    names = {field.name for field in dataclasses.fields(TritonAttentionMetadata)}
    scratch = {
        "seq_threshold_3D": 64,
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty(64, HEADS, SEGMENTS, DIM),
        "softmax_segm_max": torch.empty(64, HEADS, SEGMENTS),
        "softmax_segm_expsum": torch.empty(64, HEADS, SEGMENTS),
        "causal": True,
    }
    unused = {"use_cascade": False, "common_prefix_len": 0}  # vLLM 0.31
    missing = dict.fromkeys(("cu_prefix_query_lens", "prefix_kv_lens", "suffix_kv_lens"))
    given = {**missing, **unused, **scratch, **known}
    return TritonAttentionMetadata(**{name: value for name, value in given.items() if name in names})


class _TritonBuilder:
    def __init__(self, *_: Any) -> None:
        pass

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> Any:
        common = common_attn_metadata
        return _triton_metadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
        )


class _TritonKind:
    @staticmethod
    def get_builder_cls() -> Any:
        return _TritonBuilder


class _TritonStep(SmallStep):
    """The small step whose layers attend through vLLM's Triton backend, other requests' rows included."""

    def __init__(self, config: Any) -> None:
        from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl

        super().__init__(lambda tensor: tensor, Counts(), config)
        for layer in self._model.layers:
            layer.attn_backend = _TritonKind
            layer.impl = TritonAttentionImpl(HEADS, DIM, DIM**-0.5, KV_HEADS, None, None, "auto")
            layer._q_scale = layer._k_scale = layer._v_scale = torch.ones(1)

    def _metadata(self, starts: list[int], lengths: list[int], table: torch.Tensor, slots: torch.Tensor) -> Any:
        return _triton_metadata(
            num_actual_tokens=starts[-1],
            max_query_len=max(stop - start for start, stop in itertools.pairwise(starts)),
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            max_seq_len=max(lengths),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_table=table,
            slot_mapping=slots,
        )


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little enough for an interpreter."""
    monkeypatch.setattr(small_step, "GRID", (4, 6, 6))
    monkeypatch.setattr(small_decoder, "LAYERS", 4)


@pytest.mark.skipif(not runner.IS_V2, reason=f"Triton's interpreter is set before any import; {runner.VARIABLE}=v2")
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # the interpreter's, in rows it masks
@pytest.mark.parametrize("name", CONFIGS)
def test_a_dense_step_through_vllms_triton_kernels(few_rows, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with torch.no_grad(), alone():
        expected: Result = SmallStep(lambda tensor: tensor, Counts(), CONFIGS[name]).run()
        found = _TritonStep(CONFIGS[name]).run()
    for what, value in expected.values.items():
        torch.testing.assert_close(found.values[what], value, rtol=1e-5, atol=1e-5, msg=what)


@pytest.fixture
def hopper(micro, monkeypatch) -> Any:
    """A builder of FlashAttention's metadata as on a Hopper GPU, where a schedule is made ahead of time."""
    from vllm.config import CUDAGraphMode
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    options = {"max_model_len": 512, "dtype": "bfloat16", "limit_mm_per_prompt": {"video": 1, "image": 0}}
    config = EngineArgs(**engine_args(micro, "default", **options)).create_engine_config()
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    config.compilation_config.max_cudagraph_capture_size = 512
    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    layer = SimpleNamespace(
        layer_name="layer",
        get_attn_backend=lambda: flash_attn.FlashAttentionBackend,
        get_kv_cache_spec=lambda _: spec,
        kv_cache=torch.empty(0),
    )
    asked: list[dict[str, Any]] = []

    def schedule(**arguments: Any) -> torch.Tensor:
        asked.append(arguments)
        return torch.arange(1 + 4 * -(-arguments["batch_size"] // 4), dtype=torch.int32)

    monkeypatch.setattr(flash_attn, "get_num_attention_heads_from_layers", lambda *_: 4)
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **_: 3)
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", schedule, raising=False)
    monkeypatch.setattr(flash_attn, "_get_sliding_window_configs", lambda _: {(-1, -1)})
    builder = make_metadata_builder(config, layer, 16)
    assert builder.aot_schedule
    return builder, asked


def test_flash_attentions_builder_takes_a_scratch_cache(hopper):
    builder, asked = hopper
    cache = torch.zeros(100, 16, 2, 128, dtype=torch.bfloat16).transpose(
        1, 2
    )  # [B, G, N, 2 D], in memory [B, N, G, 2 D]
    tables = [torch.arange(first, first + 10, dtype=torch.int32) for first in (10, 30)]
    scratch = ScratchCache(builder, cache, 16, [40, 0], tables)
    for lengths, seq_lens, second_table in (([100, 37], [140, 37], [9, 10, 11]), ([50, 20], [90, 20], [6, 7])):
        scratch.lay_out(lengths)
        metadata, _ = scratch._whole
        assert (metadata.num_actual_tokens, metadata.max_query_len) == (sum(lengths), max(lengths))
        assert metadata.query_start_loc.tolist() == [0, lengths[0], sum(lengths)]
        assert metadata.seq_lens.tolist() == seq_lens
        assert metadata.block_table[1, : len(second_table)].tolist() == second_table
        assert {metadata.query_start_loc.dtype, metadata.seq_lens.dtype, metadata.block_table.dtype} == {torch.int32}
        assert metadata.slot_mapping.dtype == torch.int64
        assert len(metadata.slot_mapping) == sum(lengths)
        schedule = asked[-1]
        assert (schedule["batch_size"], schedule["max_seqlen_q"], schedule["causal"]) == (2, max(lengths), True)
        assert schedule["cache_seqlens"].tolist() == seq_lens
