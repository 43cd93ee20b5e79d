"""vLLM's own Qwen3-VL, small and random, in this process: q/k norms, interleaved M-RoPE, deepstack, experts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from oracle.micro_model import COPIED, EMBEDDED_MODEL, QWEN3_EXPERTS, QWEN3_TEXT, randomize, transpose_experts
from safetensors.torch import save_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_prune.serving.worker.dense.paged_cache import make_metadata_builder

WIDTH, LEVELS, LAYERS, BLOCK_SIZE, NUM_BLOCKS = 128, 3, 6, 32, 24
TEXT: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    **QWEN3_TEXT,
}
VISION = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "deepstack_visual_indexes": [0, 1, 2],
}


def write_checkpoint(folder: Path, experts: bool) -> Any:
    """Writes a checkpoint with random weights; Hugging Face's model, whose attention is spelled out."""
    folder.mkdir()
    for name in COPIED:
        shutil.copy(EMBEDDED_MODEL / name, folder)
    kind = "Qwen3VLMoe" if experts else "Qwen3VL"
    config = getattr(transformers, f"{kind}Config")(
        text_config=TEXT | (QWEN3_EXPERTS if experts else {}), vision_config=VISION, dtype="float32"
    )
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    randomize(model, 0)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "model.safetensors")
    transpose_experts(folder / "model.safetensors")
    return model


@contextlib.contextmanager
def serving(folder: Path, kind: type[Served] | None = None, **more: Any) -> Iterator[Any]:
    """vLLM's model with the checkpoint in `folder`, in a group of one process; `kind`: of what holds it."""
    options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "block_size": BLOCK_SIZE, **more}
    config = EngineArgs(str(folder), max_model_len=512, **options).create_engine_config()
    try:
        with set_current_vllm_config(config):
            parallel_state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
            parallel_state.ensure_model_parallel_initialized(1, 1)
            served = (kind or Served)(config)
        yield served
    finally:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


class Served:
    """vLLM's model and a paged cache."""

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self.model = initialize_model(config).eval()
        get_model_loader(config.load_config).load_weights(self.model, config.model_config)
        process_weights_after_loading(self.model, config.model_config, torch.device("cpu"))
        self.place_caches()

    def place_caches(self) -> None:
        """Makes a cache for every layer."""
        self.attention = [layer.self_attn.attn for layer in self.model.language_model.model.layers]
        self.place_keys()

    def place_keys(self) -> None:
        """Makes one for all of `attention`."""
        for attention in self.attention:
            shape = (NUM_BLOCKS, attention.num_kv_heads, BLOCK_SIZE, 2 * attention.head_size)
            attention.kv_cache = torch.randn(shape)  # what earlier requests left
            # The CPU's builder tells its layer what the processor can do, as vLLM's runner has it told.
            self._builder = make_metadata_builder(self.config, attention, BLOCK_SIZE)

    @contextlib.contextmanager
    def step(self, contexts: list[int], lengths: list[int], tables: list[list[int]]) -> Iterator[None]:
        """A step with `lengths` rows of requests that have `contexts` tokens in the blocks of `tables`."""
        metadata = self._metadata(contexts, lengths, tables)
        names = [attention.layer_name for attention in self.attention]
        slots = dict.fromkeys(names, metadata.slot_mapping)
        with (
            torch.no_grad(),
            set_current_vllm_config(self.config),
            set_forward_context(dict.fromkeys(names, metadata), self.config, sum(lengths), slot_mapping=slots),
        ):
            yield

    def _metadata(self, contexts: list[int], lengths: list[int], tables: list[list[int]]) -> Any:
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        seq_lens = torch.tensor([a + b for a, b in zip(contexts, lengths, strict=True)], dtype=torch.int32)
        width = max(map(len, tables))
        table = torch.tensor([blocks + [0] * (width - len(blocks)) for blocks in tables], dtype=torch.int32)
        slots = [
            blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            for blocks, context, length in zip(tables, contexts, lengths, strict=True)
            for place in range(context, context + length)
        ]
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=seq_lens,
            num_reqs=len(lengths),
            num_actual_tokens=sum(lengths),
            max_query_len=max(lengths),
            max_seq_len=int(seq_lens.max()),
            block_table_tensor=table,
            slot_mapping=torch.tensor(slots),
            causal=True,
            seq_lens_cpu_upper_bound=seq_lens,
        )
        return self._builder.build(common_prefix_len=0, common_attn_metadata=common)

    def forward(self, embeds: torch.Tensor, positions: torch.Tensor, levels: list[torch.Tensor]) -> torch.Tensor:
        """vLLM's own forward: hidden states [n, C] of embeds [n, C] at positions [3, n]."""
        self.set_levels(levels)
        return self.model(None, positions, None, embeds)

    def set_levels(self, levels: list[torch.Tensor]) -> None:
        """As `embed_input_ids` leaves them."""
        self.model._set_deepstack_input_embeds(torch.stack(levels))
