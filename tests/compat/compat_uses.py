"""What the plugin uses of vLLM: names it imports, methods its classes override, functions it relies on."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vllm_prune
from vllm_prune.hook import is_hook, is_vllms

PACKAGE = Path(vllm_prune.__file__).parent

RELIED_UPON = (
    "vllm.config.vllm:VllmConfig.use_v2_model_runner",
    "vllm.config.multimodal:MultiModalConfig.is_multimodal_pruning_enabled",
    "vllm.model_executor.models.interfaces:supports_multimodal_pruning",
    "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_input_ids",
    "vllm.model_executor.models.qwen2:Qwen2Attention.forward",
    "vllm.model_executor.models.qwen2:Qwen2DecoderLayer.forward",
    "vllm.model_executor.models.qwen2:Qwen2Model.forward",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionAttention.forward",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer.forward",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer.get_rope_by_thw",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer.prepare_encoder_metadata",
    "vllm.model_executor.models.qwen2_vl:Qwen2VisionTransformer.compute_attn_mask_seqlen",
    "vllm.model_executor.models.qwen2_vl:Qwen2VisionTransformer.forward",
    "vllm.model_executor.models.qwen2_vl:Qwen2VisionTransformer.prepare_encoder_metadata",
    "vllm.model_executor.models.qwen2_vl:Qwen2VisionTransformer.rot_pos_emb",
    "vllm.model_executor.models.vision:run_dp_sharded_mrope_vision_model",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._cached_apply_hf_processor",
    "vllm.transformers_utils.processors.internvl:video_to_pixel_values_internvl",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build",
    "vllm.v1.attention.backends.flash_attn:FlashAttentionImpl.do_kv_cache_update",
    "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadata",
    "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadataBuilder.build",
    "vllm.v1.attention.backends.gdn_attn:GDNAttentionMetadata",
    "vllm.v1.attention.backends.gdn_attn:GDNAttentionMetadataBuilder.build",
    "vllm.v1.attention.backends.triton_attn:TritonAttentionImpl.do_kv_cache_update",
    "vllm.v1.attention.backends.triton_attn:TritonAttentionMetadata",
    "vllm.v1.attention.backends.triton_attn:TritonAttentionMetadataBuilder.build",
    "vllm.v1.core.block_pool:BlockPool._maybe_evict_cached_block",
    "vllm.v1.core.encoder_cache_manager:EncoderCacheManager.free",
    "vllm.v1.core.encoder_cache_manager:EncoderCacheManager.free_encoder_input",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.truncate_computed_blocks",
    "vllm.v1.worker.gpu.mm.rope_state:RopeState",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._gather_mm_embeddings",
)
"""Neither wrapped nor overridden, but called, or what a call of ours comes from."""

# Searched for calls of our hooks; names that everything has are left out.
_CALLERS = ("vllm/v1", "vllm/multimodal", "vllm/model_executor/models/interfaces.py", "vllm/plugins")
_COMMON = {"forward", "apply", "init_state"}


@dataclass(frozen=True)
class Hook:
    """A method of ours, and the class of vLLM's in which to look for its original."""

    ours: str
    name: str
    base: str
    """ "module:Class"."""
    signature: inspect.Signature

    @property
    def target(self) -> str:
        return f"{self.base}.{self.name}"


@functools.cache
def imports() -> tuple[tuple[str, str, str], ...]:
    """Module, name and place of everything that is imported from vLLM; the name is "" for a whole module."""
    return tuple(_find_imports())


def _find_imports() -> Iterator[tuple[str, str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")) + sorted((PACKAGE / "patches").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                yield from ((node.module or "", alias.name, where) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((a.name, "", where) for a in node.names if a.name.partition(".")[0] == "vllm")


def our_classes() -> set[type]:
    """Classes of the plugin with a base of vLLM's, the lowest of each line."""
    packages = [importlib.import_module(f"vllm_prune.{name}") for name in ("serving", "page", "bench.sweep")]
    names = [module.name for p in packages for module in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    found = {thing for module in modules for thing in vars(module).values() if isinstance(thing, type)}
    ours = {cls for cls in found if cls.__module__.startswith("vllm_prune.") and any(map(is_vllms, cls.__mro__))}
    return {cls for cls in ours if not any(cls is not other and issubclass(other, cls) for other in ours)}


@functools.cache
def hooks() -> list[Hook]:
    """All overriding methods of `our_classes`."""
    found = []
    for cls in sorted(our_classes(), key=lambda cls: cls.__name__):
        for owner in cls.__mro__:
            for name, attribute in vars(owner).items():
                if is_hook(attribute):
                    base = next(base for base in filter(is_vllms, cls.__mro__) if hasattr(base, name))
                    signature = inspect.signature(getattr(attribute, "__func__", attribute))
                    where = f"{base.__module__}:{base.__qualname__}"
                    found.append(Hook(f"{cls.__name__}.{name}", name, where, signature))
    return found


def calls(folder: Path, names: set[str]) -> dict[str, set[str]]:
    """How vLLM calls methods of these names: for each, the texts of the calls."""
    found: dict[str, set[str]] = {name: set() for name in names - _COMMON}
    for part in _CALLERS:
        for path in [folder / part] if part.endswith(".py") else sorted((folder / part).rglob("*.py")):
            text = path.read_text()
            if any(f".{name}(" in text for name in found):
                for call in ast.walk(ast.parse(text)):
                    name = _called(call)
                    if name in found:
                        found[name].add(ast.unparse(call))
    return found


def _called(node: Any) -> str:
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
