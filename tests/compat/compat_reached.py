"""Attributes that the plugin reaches of objects which vLLM hands to it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

from compat_tree import Tree
from compat_uses import PACKAGE

_CONFIG, _REQUEST = "vllm.config:VllmConfig", "vllm.v1.request:Request"
_MODEL_CONFIG, _FEATURE = "vllm.config:ModelConfig", "vllm.multimodal.inputs:MultiModalFeatureSpec"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_ENCODER_CACHE = "vllm.v1.core.encoder_cache_manager:EncoderCacheManager"
_STEP, _INPUTS = "vllm.v1.core.sched.output:SchedulerOutput", "vllm.multimodal.processing.inputs:ProcessorInputs"

# File below serving/ -> variable -> its class; only variables that mean the same in the whole file.
_VARIABLES = {
    "config_hook": {"vllm_config": _CONFIG, "model_config": _MODEL_CONFIG, "scheduler": "vllm.config:SchedulerConfig"},
    "worker/dense/drop": {"attention": "vllm.model_executor.models.qwen2:Qwen2Attention"},
    "worker/dense/key_reader": {"layer": "vllm.model_executor.layers.attention:Attention"},
    "core/failures": {
        "cache": _ENCODER_CACHE,
        "cached": "vllm.v1.core.sched.output:CachedRequestData",
        "feature": _FEATURE,
        "new": "vllm.v1.core.sched.output:NewRequestData",
        "request": _REQUEST,
        "scheduler": _SCHEDULER,
        "step": _STEP,
    },
    "api/metrics": {"vllm_config": _CONFIG},
    "worker/model": {"vllm_config": _CONFIG, "feature": _FEATURE},
    "worker/encoder_attention": {
        "attention": "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention",
        "encoder": "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer",
    },
    "worker/partial_encoder": {"encoder": "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer"},
    "api/processor": {"inputs": _INPUTS},
    "core/report": {"feature": _FEATURE, "scheduler": _SCHEDULER, "step": _STEP},
    "api/request_reports": {
        "cache": "vllm.config:CacheConfig",
        "worker/model": _MODEL_CONFIG,
        "output": "vllm.v1.engine:EngineCoreOutput",
        "state": "vllm.v1.engine.output_processor:RequestState",
        "stats": "vllm.v1.metrics.stats:RequestStateStats",
        "vllm_config": _CONFIG,
    },
    "core/spans": {"feature": _FEATURE, "request": _REQUEST},
    "core/scheduling": {"request": _REQUEST, "scheduler": _SCHEDULER},
}

_LEADS_TO = {
    "block_pool": "vllm.v1.core.block_pool:BlockPool",
    "cache_config": "vllm.config:CacheConfig",
    "encoder_cache_manager": _ENCODER_CACHE,
    "get_multimodal_config": "vllm.config:MultiModalConfig",
    "kv_cache_manager": "vllm.v1.core.kv_cache_manager:KVCacheManager",
    "mm_position": "vllm.multimodal.inputs:PlaceholderRange",
    "model_config": _MODEL_CONFIG,
    "parallel_config": "vllm.config:ParallelConfig",
    "scheduler_config": "vllm.config:SchedulerConfig",
}


@functools.cache
def reached() -> dict[tuple[str, str], str]:
    """Class and attribute -> where one of the uses is."""
    found: dict[tuple[str, str], str] = {}
    for file, variables in _VARIABLES.items():
        path = PACKAGE / "serving" / f"{file}.py"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name, *attributes = _chain(node)
                where = f"serving/{file}.py:{node.lineno}"
                found |= dict.fromkeys(_follow(variables.get(name, ""), attributes), where)
    return found


def _chain(node: ast.AST) -> list[str]:
    """Names of `a.b().c`; calls are passed over. What does not begin with a name begins with ""."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return [node.id if isinstance(node, ast.Name) else "", *reversed(parts)]


def _follow(owner: str, attributes: list[str]) -> Iterator[tuple[str, str]]:
    for attribute in attributes:
        if not owner or attribute.startswith("__"):
            return
        yield owner, attribute
        owner = _LEADS_TO.get(attribute, "")


def missing(base: Tree, other: Tree) -> Iterator[tuple[str, str, str]]:
    """Class, attribute and a use of each that is in `base` and not in `other`."""
    for (owner, attribute), where in reached().items():
        if _has(base, owner, attribute) and not _has(other, owner, attribute):
            yield owner, attribute, where


def found_in(tree: Tree) -> int:
    """How many there are; the others are no matter of vLLM's classes."""
    return sum(_has(tree, owner, attribute) for owner, attribute in reached())


def _has(tree: Tree, owner: str, attribute: str) -> bool:
    cls = tree.find(owner)
    if cls is None:
        return False
    if tree.member(cls, attribute) is not None:
        return True
    stored = (node for base in tree.bases(cls) for node in ast.walk(base.node) if isinstance(node, ast.Attribute))
    return any(
        node.attr == attribute and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        for node in stored
    )
