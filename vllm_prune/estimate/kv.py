"""The KV cache of one request."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_prune.estimate.text_dims import TextDims


@dataclass(frozen=True)
class KVNeed:
    """What a prompt holds. `bytes` are those of its blocks, the last of which may be part empty."""

    tokens: int
    blocks: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {"tokens": self.tokens, "blocks": self.blocks, "bytes": self.bytes}


def token_bytes(text: TextDims, dtype_bytes: int) -> int:
    """Keys and values of one token in all layers that keep them; states, which do not grow, are left out."""
    return 2 * text.keyed_layers * text.kv_heads * text.head_dim * dtype_bytes


def kv_need(text: TextDims, dtype_bytes: int, tokens: int, block_size: int) -> KVNeed:
    """Blocks of `block_size` tokens and their bytes, for a prompt of `tokens`.

    >>> from vllm_prune.estimate.dims import read_dims
    >>> kv_need(read_dims("embedded").text, 2, tokens=100, block_size=16).blocks
    7
    """
    blocks = -(-tokens // block_size)
    return KVNeed(tokens, blocks, blocks * block_size * token_bytes(text, dtype_bytes))
