"""What no pruning can be combined with, and what choices by the question cannot, each with its reason.

`refusals.py` has what a dense prefix cannot be combined with, beyond this.
"""

from __future__ import annotations

import vllm
from packaging.version import Version
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

from vllm_prune.config import QUESTION, PruneConfigError
from vllm_prune.override import ServerSettings
from vllm_prune.serving.wire.features import served_layers
from vllm_prune.serving.wire.settings import read_settings

TOKEN_DRAFTERS = ("ngram", "ngram_gpu")
"""Methods of speculative decoding that draft from token ids alone."""
OWN_LAYERS = "mtp"
"""That drafts by layers of the checkpoint."""
KEEPS_STATES = (0, 32)
"""The first vLLM whose V1 runner counts a step without drafts among those that may follow accepted ones."""
KEYED_BY_BLOCK_HASHES = ("OffloadingConnector", "SimpleCPUOffloadConnector", "MooncakeStoreConnector")
"""KV connectors that find a block by vLLM's hash of it, of which the question is a part (`core/spans.py`)."""


def check_pruning(vllm_config: VllmConfig, settings: ServerSettings) -> None:
    """Raises for what would make pruning silently wrong.

    Raises:
        PruneConfigError: Names the field, the reason and the remedy.
    """
    _check_stages(vllm_config)
    _check_drafter(vllm_config, settings)
    if vllm_config.ec_transfer_config is not None:
        raise PruneConfigError(
            "ec_transfer_config: encoder rows of pruned videos are understood by the worker that made them only; "
            "leave it out"
        )
    if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        raise PruneConfigError(
            "enable_tower_connector_lora: vLLM takes the vision encoder's tokens to be as many as a video keeps, "
            "and would apply adapters to the wrong ones; leave it out"
        )
    if getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False):
        raise PruneConfigError(
            "compilation_config.cudagraph_mm_encoder: a captured graph of the vision encoder goes past the place "
            "where videos are pruned; leave it out"
        )
    if any(part.method == QUESTION for part in settings.config.parts):
        _check_connector(vllm_config)


def check_features(vllm_config: VllmConfig) -> None:
    """Raises for a server of features that cannot hand them out.

    Raises:
        PruneConfigError: Names the field, the reason and the remedy.
    """
    model = vllm_config.model_config
    if model.runner_type == "pooling":
        served_layers(read_settings(model.hf_config).feature_layers, model.get_total_num_hidden_layers())
        _check_stages(vllm_config)


def _check_stages(vllm_config: VllmConfig) -> None:
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        raise PruneConfigError(
            f"pipeline_parallel_size={stages}: vLLM recomputes the positions of pruned prompts on the first stage "
            f"only, which alone has the encoder's rows, and sends later stages hidden states without positions; use "
            f"tensor parallelism"
        )


def _check_drafter(vllm_config: VllmConfig, settings: ServerSettings) -> None:
    speculative = vllm_config.speculative_config
    if speculative is None:
        return
    field = f"speculative_config.method={speculative.method!r}:"
    tried = "ngram_gpu" if vllm_config.use_v2_model_runner else "ngram"
    if settings.may_query:
        raise PruneConfigError(
            f'{field} cannot be combined with method "attention", or with --prune-override any, which allows it: a '
            f"step that verifies drafts beside a dense prefix has not been tried; leave it out, or choose another "
            f"method and --prune-override tighten"
        )
    if vllm_config.model_config.is_hybrid:
        _check_drafts_of_a_hybrid(vllm_config, field)
        if speculative.method == OWN_LAYERS:
            _check_own_layers(vllm_config, field)
            return
    if speculative.method not in TOKEN_DRAFTERS:
        raise PruneConfigError(
            f"{field} of drafters that see the video, only a Qwen3.5's own MTP layers have been compared with pruning; "
            f'use "{tried}", or leave speculative_config out'
        )
    if speculative.method != tried:
        raise PruneConfigError(
            f"{field} has not been tried with pruning on vLLM's "
            f'{"V2" if vllm_config.use_v2_model_runner else "V1"} model runner; use "{tried}", or leave it out'
        )


def _check_own_layers(vllm_config: VllmConfig, field: str) -> None:
    """Refuses what vLLM does not: to draft by a layer without weights, and by slots that are other tokens'."""
    text = vllm_config.model_config.hf_text_config
    layers = getattr(text, "mtp_num_hidden_layers", None)
    if not layers:
        raise PruneConfigError(
            f"{field} the checkpoint has no layers to draft by (mtp_num_hidden_layers={layers}); use one that has "
            f"them, or leave speculative_config out"
        )
    if not vllm_config.use_v2_model_runner:
        raise PruneConfigError(
            f"{field} vLLM's V1 model runner takes a drafter's rows for the step's, and derives slots of a second "
            f"draft's keys and values from its M-RoPE position, which is no index once there is a video; set "
            f'VLLM_USE_V2_MODEL_RUNNER=1, or use "ngram", or leave it out'
        )


def _check_drafts_of_a_hybrid(vllm_config: VllmConfig, field: str) -> None:
    if vllm_config.use_v2_model_runner and vllm_config.speculative_config.method in TOKEN_DRAFTERS:
        raise PruneConfigError(
            f"{field} the model's decoder is a hybrid, on which n-grams have been compared on vLLM's V1 model runner "
            f'only; use "{OWN_LAYERS}" where the checkpoint has such layers, or set VLLM_USE_V2_MODEL_RUNNER=0 and use '
            f'"ngram", or leave it out'
        )
    if Version(vllm.__version__).release[:2] < KEEPS_STATES:
        raise PruneConfigError(
            f"{field} the model's decoder is a hybrid, and this vLLM takes a stale state of it in a step without "
            f"drafts after one that accepted some (vllm#39273); use vLLM {KEEPS_STATES[0]}.{KEEPS_STATES[1]} or "
            f"later, or leave it out"
        )
    if current_platform.is_cpu() and vllm_config.cache_config.enable_prefix_caching and not HAS_TRITON:
        raise PruneConfigError(
            f"{field} the model's decoder is a hybrid, and with prefix caching vLLM copies its states by a Triton "
            f"kernel, which a CPU cannot run; use --no-enable-prefix-caching, or leave it out"
        )


def _check_connector(vllm_config: VllmConfig) -> None:
    transfer = vllm_config.kv_transfer_config
    offloads_elsewhere = (
        getattr(vllm_config.cache_config, "kv_offloading_size", None) is not None
        and vllm_config.cache_config.kv_offloading_backend != "native"
    )
    if offloads_elsewhere:
        raise PruneConfigError(
            f"kv_offloading_backend={vllm_config.cache_config.kv_offloading_backend!r}: {_OTHER_KEYS} "
            f'use "native", or a query-free method'
        )
    connector = None if transfer is None else transfer.kv_connector
    if connector is not None and connector not in KEYED_BY_BLOCK_HASHES:
        raise PruneConfigError(
            f"kv_transfer_config.kv_connector={connector!r}: {_OTHER_KEYS} use {', '.join(KEYED_BY_BLOCK_HASHES)}, or "
            f"a query-free method"
        )


_OTHER_KEYS = (
    'with method "question" a video\'s keys and values depend on the question behind it, and only a connector that '
    "finds blocks by vLLM's own hashes tells two questions apart;"
)
