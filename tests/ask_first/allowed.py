"""A configuration in which the question chooses before the first layer, and all that it allows, for one engine."""

from __future__ import annotations

from typing import Any

import runner
from host_offload import CONNECTOR

LEARNED: dict[str, Any] = {"method": "question", "stage1": None, "keep_ratio": 0.3}
DRAFTS: dict[str, Any] = {
    "speculative_config": {
        "method": "ngram_gpu" if runner.IS_V2 else "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
}
MOST_TOKENS = 6144
EVERYTHING: dict[str, Any] = {
    "max_model_len": MOST_TOKENS,
    "enable_lora": True,
    "max_loras": 2,
    "max_lora_rank": 8,
    "kv_transfer_config": CONNECTOR,
    "long_prefill_token_threshold": 48,
    "scheduling_policy": "priority",
    "mm_processor_cache_type": "shm",
    **DRAFTS,
}
