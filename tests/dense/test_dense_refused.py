"""What a dense prefix cannot be combined with is refused with its reason, before a model is loaded."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest
from dense_cases import VIDEO, Case, chat, compare, video
from dense_engine import RemoteEngine, RemoteError

from vllm_prune import engine_args

STOCK: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_batched_tokens": 512,
    "dtype": "bfloat16",
    "enforce_eager": True,
    "limit_mm_per_prompt": {"video": 1, "image": 0},
}
CONNECTOR = {"kv_connector": "SharedStorageConnector", "kv_role": "kv_both"}
REFUSED = [
    ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: vLLM recomputes"),
    ({"enable_lora": True}, "lora_config: .*no adapter mapping"),
    (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "speculative_config.method='ngram': cannot be combined",
    ),
    ({"kv_transfer_config": CONNECTOR}, "kv_transfer_config: .*a connector may hand over"),
    ({"kv_cache_dtype": "fp8"}, "cache_dtype: .*importance reads keys back"),
    ({"kv_offloading_size": 1.0}, "kv_offloading_size: .*a connector may hand over"),
    ({"enforce_eager": False, "compilation_config": {"mode": 1}}, "compilation_config.mode: .*as one graph"),
    ({"enforce_eager": False, "compilation_config": {"cudagraph_mode": "FULL"}}, "cudagraph_mode: .*mixed batch"),
    ({"offload_group_size": 2, "offload_num_in_group": 1}, "offload_config.prefetch: .*called one by one"),
    ({"video_pruning_rate": 0.5}, "video_pruning_rate=0.5: selects vLLM's own pruning"),
    ({"dense_tokens": 511}, "dense_tokens=511: is below a step's own tokens, 512; .*--prune-dense-tokens 512"),
    ({"dense_tokens": 0}, "dense_tokens=0: must be an integer of 1 or more"),
    ({"hf_config": {"layers": [5]}}, "layers=.5.: must lie between 0 and 4"),
]


def configure(model: str, config: Any, override: str, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    os.environ["HF_HUB_OFFLINE"] = "1"
    return EngineArgs(**engine_args(model, config, override=override, **{**STOCK, **options})).create_engine_config()


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message.partition(":")[0] for _, message in REFUSED])
def test_refused(micro, options, message):
    options = dict(options)
    changes = options.pop("hf_config", None)
    config = {"method": "attention", "keep_ratio": 0.4, **(changes or {})}
    with pytest.raises(Exception, match=message):
        configure(micro, config, "tighten", **options)


@pytest.mark.parametrize("config", ["default", {"method": "uniform", "keep_ratio": 0.5}])
def test_not_refused(micro, config):
    configure(micro, config, "tighten")


def test_what_requests_may_ask_for_counts_too(micro):
    query_free = {"method": "uniform", "keep_ratio": 0.5}
    configure(micro, query_free, "tighten", enable_lora=True)
    with pytest.raises(Exception, match="lora_config"):
        configure(micro, query_free, "any", enable_lora=True)


@pytest.mark.parametrize(("mode", "refused"), [("FULL", True), ("FULL_AND_PIECEWISE", False), ("PIECEWISE", False)])
def test_what_vllm_chooses_for_graphs_is_looked_at_in_the_worker(micro, mode, refused):
    from vllm.config import CUDAGraphMode

    from vllm_prune.serving.refusals import check_resolved

    config = configure(micro, "default", "tighten")
    config.compilation_config.cudagraph_mode = CUDAGraphMode[mode]
    if refused:
        with pytest.raises(ValueError, match=r"compilation_config.cudagraph_mode: .*mixed batch"):
            check_resolved(config)
    else:
        check_resolved(config)


def test_adapters_of_the_vision_encoder_are_refused_for_any_pruning(micro):
    query_free = {"method": "uniform", "keep_ratio": 0.5}
    with pytest.raises(Exception, match=r"enable_tower_connector_lora: vLLM takes"):
        configure(micro, query_free, "tighten", enable_lora=True, enable_tower_connector_lora=True)


def test_weights_that_forward_would_copy_are_refused(micro, monkeypatch):
    configure(micro, "default", "tighten", cpu_offload_gb=0.1)
    monkeypatch.setenv("VLLM_WEIGHT_OFFLOADING_DISABLE_UVA", "1")
    with pytest.raises(Exception, match=r"VLLM_WEIGHT_OFFLOADING_DISABLE_UVA: .*copied by its forward"):
        configure(micro, "default", "tighten", cpu_offload_gb=0.1)


@pytest.fixture
def windowed(micro, tmp_path) -> str:
    """The model with a sliding window in every layer; vLLM itself refuses one in some."""
    folder = shutil.copytree(micro, tmp_path / "windowed")
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"] |= {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0}
    del fields["text_config"]["layer_types"]
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def test_layers_with_a_sliding_window_are_refused_in_the_worker(windowed):
    message = r"sliding_window=512 in the checkpoint, in layers 0, 1, 2, 3, 4, 5: .*--disable-sliding-window"
    with RemoteEngine(windowed, "default") as engine, pytest.raises(RemoteError, match=message):
        engine.call("free_blocks")


def test_without_their_windows_they_answer(windowed, oracle):
    case = Case(chat(VIDEO + "What colour is the flash?"), (video(1),))
    with RemoteEngine(windowed, "default", max_model_len=512, disable_sliding_window=True) as engine:
        compare([case], engine.run([case.prompt()]), oracle)
