"""What a dense prefix cannot be combined with, each with its reason.

Checked twice: as the configuration is made (API server), so that a mistake ends the start before a model is loaded, and
in every worker, where vLLM has resolved what it decides after that, also from environment variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import vllm.envs as envs
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_prune.config import PruneConfigError


@dataclass(frozen=True)
class Refusal:
    """One option that is refused where `present` holds."""

    field: str
    present: bool
    reason: str


def check_requested(vllm_config: VllmConfig) -> None:
    """Raises for what is wrong already as the configuration is made.

    Raises:
        PruneConfigError: Names the field, the reason and the remedy.
    """
    _check(_requested(vllm_config))


def check_resolved(vllm_config: VllmConfig) -> None:
    """Raises for what is wrong in the configuration that a worker runs with.

    Raises:
        PruneConfigError: Names the field, the reason and the remedy.
    """
    _check(_requested(vllm_config))
    _check(_resolved(vllm_config))


def hidden_encoder(vllm_config: VllmConfig) -> str:
    """Why methods cannot look at the attention inside this vision encoder; "" if they can."""
    mm_config = vllm_config.model_config.get_multimodal_config()
    needs = "the method needs the attention inside the vision encoder, which"
    if vllm_config.parallel_config.tensor_parallel_size > 1 and mm_config.mm_encoder_tp_mode == "data":
        return f'{needs} one rank alone knows with mm_encoder_tp_mode="data"; use "weights", or another method'
    if vllm_config.compilation_config.compile_mm_encoder:
        return f"{needs} a compiled one does not show; leave out compile_mm_encoder, or choose another method"
    if mm_config.mm_encoder_attn_backend == AttentionBackendEnum.FLASHINFER:
        return f'{needs} mm_encoder_attn_backend="FLASHINFER" lays out otherwise; choose another one of the two'
    return ""


def undivided_decoder(vllm_config: VllmConfig) -> str:
    """Why the question cannot choose inside this decoder; "" if it can."""
    if not vllm_config.model_config.is_hybrid or not vllm_config.cache_config.enable_prefix_caching:
        return ""
    return (
        "the model's decoder is a hybrid, most layers of which keep one state of all tokens so far, and vLLM's prefix "
        "cache has such states at the ends of blocks of the pruned prompt, where layers before the choice, which have "
        'more rows, have none; start with --no-enable-prefix-caching, or choose a query-free method, or "question", '
        "which chooses before the first layer"
    )


def check_windows(attention: Mapping[int, Any]) -> None:
    """Raises for layers with a sliding window, as a checkpoint may have them.

    Args:
        attention: vLLM's `Attention` of the decoder's layers, by their index.

    Raises:
        PruneConfigError: Names the window, the layers, the reason and the remedy.
    """
    windows = {index: layer.sliding_window for index, layer in attention.items() if layer.sliding_window is not None}
    if windows:
        sizes, layers = (", ".join(map(str, sorted(set(found)))) for found in (windows.values(), windows))
        raise PruneConfigError(
            f"sliding_window={sizes} in the checkpoint, in layers {layers}: cannot be combined with method "
            f'"attention", or with --prune-override any, which allows it: vLLM frees blocks outside the window, whose '
            f"keys the question has to see; start with --disable-sliding-window, which limits --max-model-len to the "
            f"window, or choose a query-free method and --prune-override tighten"
        )


def _check(refusals: Iterator[Refusal]) -> None:
    for refusal in refusals:
        if refusal.present:
            raise PruneConfigError(
                f'{refusal.field}: cannot be combined with method "attention", or with --prune-override any, which '
                f"allows it: {refusal.reason}; leave it out, or choose a query-free method and --prune-override tighten"
            )


def _requested(vllm_config: VllmConfig) -> Iterator[Refusal]:
    precision = str(vllm_config.model_config.dtype).removeprefix("torch.")
    parallel, cache, compilation = (
        vllm_config.parallel_config,
        vllm_config.cache_config,
        vllm_config.compilation_config,
    )
    yield Refusal(
        "lora_config", vllm_config.lora_config is not None, "layers called one by one have no adapter mapping"
    )
    connector = "a connector may hand over blocks that end between a video and its question"
    yield Refusal("kv_transfer_config", vllm_config.kv_transfer_config is not None, connector)
    yield Refusal("kv_offloading_size", getattr(cache, "kv_offloading_size", None) is not None, connector)
    yield Refusal(
        "prefill_context_parallel_size",
        getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "a dense prefix is computed whole on every rank",
    )
    yield Refusal(
        "decode_context_parallel_size",
        parallel.decode_context_parallel_size > 1,
        "the compacted keys and values are written to every rank's cache",
    )
    yield Refusal(
        "cache_dtype",
        cache.cache_dtype not in ("auto", precision),
        "importance reads keys back from the cache at the model's precision",
    )
    yield Refusal(
        "long_prefill_token_threshold",
        vllm_config.scheduler_config.long_prefill_token_threshold > 0,
        "a video and its question would wait for ever for a step that may hold both",
    )
    yield Refusal(
        "mm_processor_cache_type",
        vllm_config.model_config.get_multimodal_config().mm_processor_cache_type == "shm",
        "the engine core has to see which videos the question prunes, and shared memory is open to workers only",
    )
    yield Refusal(
        "data_parallel_size",
        parallel.data_parallel_size > 1 and vllm_config.model_config.is_moe,
        "the ranks of a mixture of experts tell each other beforehand how many rows they have, and a dense prefix has "
        "more; a server for each rank can be used",
    )
    yield Refusal("enable_dbo", parallel.enable_dbo, "a dense prefix is not split into micro-batches")
    yield Refusal(
        "compilation_config.cudagraph_mode",
        compilation.cudagraph_mode == CUDAGraphMode.FULL,
        "a captured graph of a mixed batch cannot hold a dense prefix; FULL_AND_PIECEWISE can be used",
    )
    yield Refusal(
        "compilation_config.mode",
        compilation.mode == CompilationMode.STOCK_TORCH_COMPILE,
        "it compiles the whole model as one graph, which cannot hold a dense prefix; VLLM_COMPILE can be used",
    )
    yield from _offloading(vllm_config)


def _offloading(vllm_config: VllmConfig) -> Iterator[Refusal]:
    offload = vllm_config.offload_config
    prefetches = offload.offload_backend == "prefetch" or (
        offload.offload_backend == "auto" and offload.prefetch.offload_group_size > 0
    )
    yield Refusal(
        "offload_config.prefetch",
        prefetches,
        "a layer's weights are fetched while the one before it runs, which has not been tried where layers are called "
        "one by one; --cpu-offload-gb can be used",
    )
    yield Refusal(
        "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA",
        not prefetches and offload.uva.cpu_offload_gb > 0 and envs.VLLM_WEIGHT_OFFLOADING_DISABLE_UVA,
        "without unified addressing a layer's weights are copied by its forward, which has not been tried where layers "
        "are called one by one",
    )


def _resolved(vllm_config: VllmConfig) -> Iterator[Refusal]:
    """What vLLM derives after the model's own hook, such as FULL from `splitting_ops` or `fuse_attn_quant`."""
    mode = vllm_config.compilation_config.cudagraph_mode
    yield Refusal(
        "compilation_config.cudagraph_mode",
        mode is not None and mode.mixed_mode() == CUDAGraphMode.FULL,
        f"vLLM chose {mode and mode.name}, and a captured graph of a mixed batch cannot hold a dense prefix; "
        f"FULL_AND_PIECEWISE, with splitting_ops and pass_config.fuse_attn_quant left out, can be used",
    )
