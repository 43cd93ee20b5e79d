"""A decoder of plain PyTorch operations with the parts of vLLM's Qwen2 that a dense step uses, and a model around it.

vLLM's own layers run kernels for one kind of device. These run on emulated CUDA tensors too, with keys and values in a
paged cache of FlashAttention's layout.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.attention.backend import AttentionType
from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.worker.dense.prefix import DensePrefix
from vllm_prune.serving.worker.encoder_rows import EncoderRows
from vllm_prune.serving.worker.model import PruningModelMixin
from vllm_prune.serving.worker.trace import TraceWriter

WIDTH, HEADS, KV_HEADS, DIM, BLOCK_SIZE, NUM_BLOCKS, LAYERS = 64, 4, 2, 16, 16, 200, 28


class _Weights:
    """Draws weights, and puts them where the decoder is."""

    def __init__(self, place: Any) -> None:
        self._random, self._place = torch.Generator().manual_seed(0), place

    def __call__(self, *shape: int) -> Tensor:
        return self._place(torch.randn(*shape, generator=self._random))


class _Norm:
    def __init__(self, weights: _Weights) -> None:
        self.weight = weights(WIDTH)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Any:
        added = x if residual is None else x + residual
        normed = added * (added.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.weight
        return normed if residual is None else (normed, added)


class _Linear:
    def __init__(self, weights: _Weights, width_in: int, width_out: int) -> None:
        self._weight = weights(width_in, width_out) * width_in**-0.5

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self._weight, None


class _Backend:
    """Attention and the writing of a paged cache [blocks, G, block size, 2 D]."""

    scale = DIM**-0.5

    def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
        block, row = slots.clamp(min=0) // cache.shape[2], slots.clamp(min=0) % cache.shape[2]
        at = cache.transpose(1, 2)
        new = torch.where((slots >= 0)[:, None, None], torch.cat((key, value), dim=2), at[block, row])
        at.index_put_((block, row), new)

    def forward(
        self, layer: Any, query: Tensor, key: Any, value: Any, cache: Tensor, metadata: Any, out: Tensor
    ) -> None:
        for index, length in enumerate(metadata.lengths):
            start, stop = metadata.starts[index : index + 2]
            blocks = metadata.block_table[index, : -(-length // cache.shape[2])].long()
            rows = cache.transpose(1, 2)[blocks].flatten(0, 1)[:length].repeat_interleave(HEADS // KV_HEADS, 1)
            keys, values = rows.transpose(0, 1).split(DIM, dim=2)
            place = torch.arange(length, device=query.device)
            hidden = place > place[length - (stop - start) :, None]
            scores = (query[start:stop].transpose(0, 1) @ keys.mT * DIM**-0.5).masked_fill(hidden, -torch.inf)
            out[start:stop] = (scores.softmax(2) @ values).transpose(0, 1)


class _CacheKind:
    """vLLM's `AttentionBackend`, as far as the metadata goes."""

    @staticmethod
    def get_name() -> str:
        return "SMALL"

    @staticmethod
    def get_builder_cls() -> Any:
        return _MetadataBuilder


def _make_attention(index: int, place: Any) -> Attention:
    """vLLM's module, without its constructor, which asks for a backend of the device."""
    attention = Attention.__new__(Attention)
    nn.Module.__init__(attention)
    attention.num_heads, attention.num_kv_heads = HEADS, KV_HEADS
    attention.head_size = attention.head_size_v = DIM
    attention.attn_type, attention.sliding_window, attention.use_mm_prefix = AttentionType.DECODER, None, False
    attention.kv_sharing_target_layer_name = None
    attention.layer_name, attention.impl, attention.attn_backend = f"layer {index}", _Backend(), _CacheKind
    attention.kv_cache = place(torch.zeros(NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, 2 * DIM)).transpose(1, 2)
    attention.get_kv_cache_spec = lambda _: FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=KV_HEADS, head_size=DIM, dtype=torch.float32
    )
    attention.forward = functools.partial(_attend, attention)
    return attention


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """vLLM's `Attention.forward`, without its operators."""
    context = get_forward_context()
    key, value = k.view(-1, KV_HEADS, DIM), v.view(-1, KV_HEADS, DIM)
    slots = context.slot_mapping[attention.layer_name]
    attention.impl.do_kv_cache_update(attention, key, value, attention.kv_cache, slots)
    out = torch.zeros_like(q).view(-1, HEADS, DIM)
    metadata = context.attn_metadata[attention.layer_name]
    attention.impl.forward(attention, q.view(-1, HEADS, DIM), key, value, attention.kv_cache, metadata, out)
    return out.flatten(1)


class _SelfAttention(nn.Module):
    def __init__(self, index: int, weights: _Weights, place: Any) -> None:
        super().__init__()
        self.qkv_proj = _Linear(weights, WIDTH, (HEADS + 2 * KV_HEADS) * DIM)
        self.o_proj = _Linear(weights, HEADS * DIM, WIDTH)
        self.attn = _make_attention(index, place)

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden)
        q, k, v = qkv.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1)
        angle = (positions.float() * torch.arange(1, 4, device=q.device)[:, None]).sum(0)[:, None] * 1e-2
        return self.o_proj(self.attn(q * angle.cos(), k * angle.cos(), v.contiguous()))[0]


class _Layer(nn.Module):
    def __init__(self, index: int, weights: _Weights, place: Any) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(index, weights, place)
        self.input_layernorm, self.post_attention_layernorm = _Norm(weights), _Norm(weights)
        project = _Linear(weights, WIDTH, WIDTH)
        self.mlp = lambda x: project(x)[0]

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual, hidden = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden, residual = self.input_layernorm(hidden_states, residual)
        hidden, residual = self.post_attention_layernorm(self.self_attn(positions, hidden), residual)
        return self.mlp(hidden), residual


class _MetadataBuilder:
    def __init__(self, *_: Any) -> None:
        pass

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> SimpleNamespace:
        common = common_attn_metadata
        return SimpleNamespace(
            lengths=common.seq_lens_cpu_upper_bound.tolist(),
            starts=common.query_start_loc_cpu.tolist(),
            block_table=common.block_table_tensor,
        )


class _Embedding:
    """vLLM's side of the model: media in place of placeholders."""

    def embed_input_ids(self, input_ids: Tensor, embeddings: Any = None, *, is_multimodal: Tensor) -> Tensor:
        found = self.embedding[input_ids]
        rows = is_multimodal.nonzero().squeeze(1).to(found.device)
        return found.index_copy(0, rows, torch.cat(list(embeddings)))


class SmallModel(PruningModelMixin, _Embedding):
    """Without `init_pruning`, which reads vLLM's configuration and asks for its backends."""

    def layout_of(self, feature: MultiModalFeatureSpec) -> MediumLayout:
        return MediumLayout(feature.data)

    def __init__(self, place: Any, trace: TraceWriter | None) -> None:
        """`place`: puts a CPU tensor where the model is."""
        weights = _Weights(place)
        layers = [_Layer(index, weights, place) for index in range(LAYERS)]
        self.embedding = weights(100, WIDTH)
        self._row_width = WIDTH
        self.language_model = SimpleNamespace(model=SimpleNamespace(layers=layers, norm=_Norm(weights)))
        self._dense_prefix = DensePrefix(VllmConfig(), self.decoder_view(), {}, trace)
        self._encoder_rows, self.notes = EncoderRows(trace, WIDTH, self.embed_input_ids), StepRecorder()
        self._gathered: list[Any] = []
        self._slots: list[Any] = []
        self._dense_videos: list[Any] = []
        self.layers = [layer.self_attn.attn for layer in layers]


def feature(offset: int, length: int, grid: tuple[int, int, int]) -> MultiModalFeatureSpec:
    """A video of `length` placeholders at `offset`, as vLLM names it to the model."""
    return MultiModalFeatureSpec(grid, "video", "", PlaceholderRange(offset=offset, length=length))
