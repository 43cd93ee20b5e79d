"""What choices before the first layer cannot be combined with, and selector files that fit no server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import runner
from allowed import DRAFTS, EVERYTHING, LEARNED
from oracle.micro_model import write_micro_model, write_micro_selector

from vllm_prune import engine_args

TEXT: dict[str, Any] = {**LEARNED, "params": {"relevance": "text"}}
UNIFORM: dict[str, Any] = {"method": "uniform", "keep_ratio": 0.5}
STOCK: dict[str, Any] = {
    "max_model_len": 512,
    "dtype": "float32",
    "enforce_eager": True,
    "limit_mm_per_prompt": {"video": 1, "image": 0},
}


def connector(name: str) -> dict[str, Any]:
    return {"kv_transfer_config": {"kv_connector": name, "kv_role": "kv_both"}}


def configure(model: str, config: Any, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    os.environ["HF_HUB_OFFLINE"] = "1"
    return EngineArgs(**engine_args(model, config, **(STOCK | options))).create_engine_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: .*first stage only, which alone has the encoder's"),
        (connector("ExampleConnector"), "kv_connector='ExampleConnector': .*depend on the question"),
        (connector("LMCacheConnectorV1"), "kv_connector='LMCacheConnectorV1': .*use OffloadingConnector"),
        ({"kv_offloading_size": 0.1, "kv_offloading_backend": "lmcache"}, "kv_offloading_backend='lmcache': "),
        ({"enable_lora": True, "enable_tower_connector_lora": True}, "enable_tower_connector_lora: vLLM takes"),
        ({"override": "any", "enable_lora": True}, "lora_config: .*--prune-override any"),
        ({"override": "any", **DRAFTS}, "--prune-override any"),
    ],
)
def test_combinations(micro, options, message):
    with pytest.raises(Exception, match=message):
        configure(micro, TEXT, **options)


def test_drafters_of_another_runner(micro):
    """vLLM has one drafter from n-grams for each of its runners."""
    other = "ngram" if runner.IS_V2 else "ngram_gpu"
    drafts = {"speculative_config": {**DRAFTS["speculative_config"], "method": other}}
    with pytest.raises(Exception, match=rf"speculative_config\.method='{other}': has not been tried .* model runner"):
        configure(micro, TEXT, **drafts)


@pytest.mark.parametrize("method", ["mtp", "eagle3", "draft_model"])
def test_drafters_that_see_the_video(micro, method):
    """Checkpoints of these exist for few models; their configuration is made from the one that is allowed."""
    from vllm_prune.serving.combinations import check_pruning
    from vllm_prune.serving.wire.settings import read_settings

    config = configure(micro, TEXT, **DRAFTS)
    settings = read_settings(config.model_config.hf_config)
    check_pruning(config, settings)
    config.speculative_config.method = method
    with pytest.raises(ValueError, match=rf"method='{method}': of drafters .* only a Qwen3.5's own MTP"):
        check_pruning(config, settings)


@pytest.mark.parametrize("config", [TEXT, UNIFORM], ids=["question", "query-free"])
def test_what_is_allowed(micro, config):
    configure(micro, config, **(EVERYTHING | DRAFTS))
    configure(micro, config, kv_offloading_size=0.1, kv_cache_dtype="fp8")


def test_query_free_methods_need_no_key_of_the_question(micro):
    configure(micro, UNIFORM, **connector("ExampleConnector"))


def test_selectors_of_other_models(micro, tmp_path):
    other = write_micro_selector(write_micro_model(tmp_path / "other", family="qwen2_vl"))
    with pytest.raises(Exception, match=r"--prune-selector: .*'Qwen2VLForConditionalGeneration' where it was trained"):
        configure(micro, LEARNED, selector=str(other))


def inside(**fields: Any) -> dict[str, Any]:
    return {"method": "attention", "keep_ratio": 0.3, "params": {"relevance": "learned"}, **fields}


@pytest.mark.parametrize(
    ("config", "places", "said"),
    [
        (inside(), ["input"], r"reads the output of layer 2, and this server has one that reads what enters layer 0;"),
        (inside(layers=[3]), [2], r"output of layer 3, .*has one that reads the output of layer 2; .*--layer 3` makes"),
        (inside(layers=[2, 3]), [2], "reads the output of layer 3, and this server has one that reads the output of l"),
        (inside(), [], "reads the output of layer 2, and this server has no selector; start it with --prune-selector"),
        (LEARNED, [2], "reads what enters layer 0, and this server has one that reads the output of layer 2; "),
        (inside(), [2, 2], r"--prune-selector: .*match-2\.safetensors and .* both read the output of layer 2"),
    ],
    ids=["before", "other layer", "one of two", "none", "inside", "twice"],
)
def test_selectors_that_read_elsewhere(micro, config, places, said):
    files = [str(write_micro_selector(Path(micro), place=place)) for place in places]
    with pytest.raises(Exception, match=said):
        configure(micro, config, selector=files)


@pytest.mark.parametrize(
    ("family", "place", "said"),
    [
        ("qwen2_5_vl", 5, r"layer 5, behind which no token can be dropped: layers=\[5\]: must lie between 0 and 4"),
        ("qwen3_vl", 0, r"layer 0, behind which no token can be dropped: layers=\[0\]: .* 1 and 4 .*deepstack"),
        ("qwen3_5", 1, r"layer 1, behind which no token can be dropped: layers=\[1\]: .* with attention, .* are 2;"),
        ("qwen3_5", 2, "layer 2: the model's decoder is a hybrid, .*; start with --no-enable-prefix-caching, or"),
    ],
)
def test_selectors_that_read_where_nothing_can_be_chosen(tmp_path, family, place, said):
    """Whatever the configuration: no request could ever ask for them."""
    model = write_micro_model(tmp_path / "micro", family=family)
    files = [str(write_micro_selector(model, place=place))]
    with pytest.raises(
        Exception, match=rf"--prune-selector: .*(match-{place}\.safetensors|one) reads the output of {said}"
    ):
        configure(str(model), UNIFORM, selector=files)


def test_selectors_that_images_need(micro):
    image = {"method": "attention", "params": {"relevance": "learned"}}
    with pytest.raises(Exception, match=r'image\.params\.relevance="learned": needs a selector .* layer 2'):
        configure(micro, {"image": image}, selector=str(write_micro_selector(Path(micro))))
    configure(micro, {"image": image}, selector=str(write_micro_selector(Path(micro), place=2)))


def test_selectors_of_all_places_that_are_needed(micro):
    files = [str(write_micro_selector(Path(micro), place=place)) for place in (2, 3, "input")]
    for config in (inside(), inside(layers=[2, 3]), LEARNED):
        configure(micro, config, selector=files)


def test_a_configuration_that_needs_no_selector_may_have_one(micro):
    configure(micro, UNIFORM, selector=str(write_micro_selector(Path(micro), place=2)))


@pytest.mark.parametrize("damage", ["truncated", "text", "missing", "nothing"])
def test_damaged_selectors(micro, selector, tmp_path, damage):
    """Also beside a good one."""
    path = tmp_path / "selector.safetensors"
    content = write_micro_selector(Path(micro), place=2, into=tmp_path).read_bytes()
    written = {"truncated": content[:-9], "text": b"{}", "nothing": b""}.get(damage)
    if written is not None:
        path.write_bytes(written)
    for config, files in ((inside(), [str(path)]), (LEARNED, [selector, str(path)])):
        with pytest.raises(Exception, match=f"--prune-selector: .*{path.name}"):
            configure(micro, config, selector=files)


@pytest.mark.parametrize("place", ["input", 2])
def test_selectors_that_hold_no_numbers(micro, tmp_path, place):
    file = write_micro_selector(Path(micro), bias=float("nan"), place=place, into=tmp_path)
    with pytest.raises(Exception, match=r"--prune-selector: .*tensor 'bias' holds NaN or Inf"):
        configure(micro, LEARNED if place == "input" else inside(), selector=str(file))


def test_another_file_on_another_node_is_refused_there(micro, selector, tmp_path):
    from vllm_prune.serving.wire.selector_file import load_checked_selectors

    path = str(shutil.copy(selector, tmp_path))
    config = configure(micro, LEARNED, selector=path)
    (loaded,) = load_checked_selectors(config.model_config).values()
    shutil.copy(write_micro_selector(Path(micro), "joint"), path)
    with pytest.raises(ValueError, match=f"--prune-selector .*{loaded.digest[:16]}.* where the server was started"):
        load_checked_selectors(config.model_config)
    Path(path).unlink()
    with pytest.raises(ValueError, match=r"--prune-selector: .*No such file"):
        load_checked_selectors(config.model_config)


@pytest.mark.parametrize("exponent", [float("nan"), float("inf"), -1, 17, 1e9, True, "x", None, [1]])
def test_exponents_out_of_range(exponent):
    with pytest.raises(ValueError, match=r"params\.exponent="):
        engine_args("unused", {**TEXT, "params": {"relevance": "text", "exponent": exponent}})
