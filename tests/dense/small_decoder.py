"""A decoder of plain PyTorch operations with the parts of vLLM's Qwen2 that a dense step uses, and a model around it.

vLLM's own layers run kernels for one kind of device. These run on emulated CUDA tensors too, with keys and values in a
paged cache of FlashAttention's layout.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.worker.dense.prefix import DensePrefix
from vllm_prune.serving.worker.encoder_rows import EncoderRows
from vllm_prune.serving.worker.model import PruningModelMixin

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

    def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
        block, row = slots.clamp(min=0) // BLOCK_SIZE, slots.clamp(min=0) % BLOCK_SIZE
        at = cache.transpose(1, 2)
        new = torch.where((slots >= 0)[:, None, None], torch.cat((key, value), dim=2), at[block, row])
        at.index_put_((block, row), new)

    def forward(
        self, layer: Any, query: Tensor, key: Any, value: Any, cache: Tensor, metadata: Any, out: Tensor
    ) -> None:
        for index, length in enumerate(metadata.lengths):
            start, stop = metadata.starts[index : index + 2]
            blocks = metadata.block_table[index, : -(-length // BLOCK_SIZE)].long()
            rows = cache.transpose(1, 2)[blocks].flatten(0, 1)[:length].repeat_interleave(HEADS // KV_HEADS, 1)
            keys, values = rows.transpose(0, 1).split(DIM, dim=2)
            place = torch.arange(length, device=query.device)
            hidden = place > place[length - (stop - start) :, None]
            scores = (query[start:stop].transpose(0, 1) @ keys.mT * DIM**-0.5).masked_fill(hidden, -torch.inf)
            out[start:stop] = (scores.softmax(2) @ values).transpose(0, 1)


class _Attention:
    num_heads, num_kv_heads, head_size = HEADS, KV_HEADS, DIM

    def __init__(self, index: int, place: Any) -> None:
        self.layer_name, self.impl = f"layer {index}", _Backend()
        self.kv_cache = place(torch.zeros(NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, 2 * DIM)).transpose(1, 2)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = get_forward_context()
        key, value = k.view(-1, KV_HEADS, DIM), v.view(-1, KV_HEADS, DIM)
        self.impl.do_kv_cache_update(self, key, value, self.kv_cache, context.slot_mapping[self.layer_name])
        out = torch.zeros_like(q).view(-1, HEADS, DIM)
        metadata = context.attn_metadata[self.layer_name]
        self.impl.forward(self, q.view(-1, HEADS, DIM), key, value, self.kv_cache, metadata, out)
        return out.flatten(1)


class _SelfAttention:
    q_size, kv_size, num_heads, total_num_heads = HEADS * DIM, KV_HEADS * DIM, HEADS, HEADS
    num_kv_heads, head_dim, scaling = KV_HEADS, DIM, DIM**-0.5

    def __init__(self, index: int, weights: _Weights, place: Any) -> None:
        self.qkv_proj = _Linear(weights, WIDTH, (HEADS + 2 * KV_HEADS) * DIM)
        self.o_proj = _Linear(weights, HEADS * DIM, WIDTH)
        self.attn = _Attention(index, place)

    def rotary_emb(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        angle = (positions.float() * torch.arange(1, 4, device=q.device)[:, None]).sum(0)[:, None] * 1e-2
        return q * angle.cos(), k * angle.cos()


class _Layer:
    hidden_size = WIDTH

    def __init__(self, index: int, weights: _Weights, place: Any) -> None:
        self.self_attn = _SelfAttention(index, weights, place)
        self.input_layernorm, self.post_attention_layernorm = _Norm(weights), _Norm(weights)
        project = _Linear(weights, WIDTH, WIDTH)
        self.mlp = lambda x: project(x)[0]

    def __call__(self, positions: Tensor, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        hidden, residual = self.input_layernorm(hidden, residual)
        attention = self.self_attn
        qkv, _ = attention.qkv_proj(hidden)
        q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
        q, k = attention.rotary_emb(positions, q, k)
        hidden, _ = attention.o_proj(attention.attn(q, k.contiguous(), v.contiguous()))
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class _MetadataBuilder:
    kv_cache_spec = SimpleNamespace(block_size=BLOCK_SIZE)

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> SimpleNamespace:
        common = common_attn_metadata
        return SimpleNamespace(
            lengths=common.seq_lens_cpu_upper_bound.tolist(),
            starts=common.query_start_loc_cpu.tolist(),
            block_table=common.block_table_tensor,
        )


class _Embedding:
    """vLLM's side of the model: media in place of placeholders."""

    def iter_mm_grid_thw(self, features: list[MultiModalFeatureSpec]) -> Any:
        for feature in features:
            yield feature.mm_position.offset, *feature.data, 1.0

    def embed_input_ids(self, input_ids: Tensor, embeddings: Any = None, *, is_multimodal: Tensor) -> Tensor:
        found = self.embedding[input_ids]
        rows = is_multimodal.nonzero().squeeze(1).to(found.device)
        return found.index_copy(0, rows, torch.cat(list(embeddings)))


class SmallModel(PruningModelMixin, _Embedding):
    """Without `init_pruning`, which reads vLLM's configuration and asks for its backends."""

    def __init__(self, place: Any) -> None:
        """`place`: puts a CPU tensor where the model is."""
        weights = _Weights(place)
        layers = [_Layer(index, weights, place) for index in range(LAYERS)]
        self.embedding = weights(100, WIDTH)
        self._embed_width, self._max_dense_rows = WIDTH, 0
        self._dense_prefix = DensePrefix(
            None, SimpleNamespace(model=SimpleNamespace(layers=layers, norm=_Norm(weights))), None
        )
        self._dense_prefix._builder = _MetadataBuilder()
        self._encoder_rows, self.notes = EncoderRows(None), StepRecorder()
        self._gathered: list[Any] = []
        self._dense_videos: list[Any] = []
        self.layers = [layer.self_attn.attn for layer in layers]


def feature(offset: int, length: int, grid: tuple[int, int, int]) -> MultiModalFeatureSpec:
    """A video of `length` placeholders at `offset`, as vLLM names it to the model."""
    return MultiModalFeatureSpec(grid, "video", "", PlaceholderRange(offset=offset, length=length))
