"""Qwen3.5, most of whose layers keep a state: what vLLM's hook sets, what is refused, where stock vLLM fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dense_engine import ENVIRONMENT
from oracle.micro_model import write_micro_model, write_micro_selector
from runner import IS_V2, ON_GPU

from vllm_prune import engine_args

STATES = "keep one state of all tokens so far"
STOCK: dict[str, Any] = {
    "max_model_len": 512,
    "dtype": "bfloat16",
    "enforce_eager": True,
    "limit_mm_per_prompt": {"video": 1, "image": 0},
}


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.long)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp(request.param) / "micro", family=request.param))


def configure(model: str, config: Any, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    os.environ["HF_HUB_OFFLINE"] = "1"
    return EngineArgs(**engine_args(model, config, **(STOCK | options))).create_engine_config()


def test_states_have_the_precision_that_the_checkpoint_asks_for(model):
    """vLLM's hook for the architecture says so; were ours in its place, states would be in bfloat16."""
    cache = configure(model, "stage1_only").cache_config
    assert cache.mamba_ssm_cache_dtype == "float32"
    assert cache.mamba_cache_mode == "align"


IMAGES: dict[str, Any] = {"preset": "stage1_only", "image": {"method": "attention", "keep_ratio": 0.5}}


@pytest.mark.parametrize(
    "config", ["default", "fastv", {"method": "attention", "keep_ratio": 0.5, "layers": [2]}, IMAGES]
)
def test_a_question_inside_the_decoder_beside_cached_states_ends_the_start(model, config):
    with pytest.raises(Exception, match=rf"method='attention': .*{STATES}.*--no-enable-prefix-caching"):
        configure(model, config, enable_prefix_caching=True)


OF_LAYER_1 = r"layers=\[1\]: .* layers with attention, which in this decoder are 2; .*state"


def test_without_prefix_caching_it_chooses_behind_layers_with_attention(model):
    assert configure(model, "default", enable_prefix_caching=False).cache_config.mamba_cache_mode == "none"
    assert configure(model, IMAGES, enable_prefix_caching=False).cache_config.mamba_cache_mode == "none"
    with pytest.raises(Exception, match=OF_LAYER_1):
        configure(model, "fastv", enable_prefix_caching=False)
    with pytest.raises(Exception, match=rf"image\.{OF_LAYER_1}"):
        configure(model, IMAGES | {"image": IMAGES["image"] | {"layers": [1]}}, enable_prefix_caching=False)


@pytest.mark.parametrize("cached", [True, False])
def test_a_selector_that_reads_where_a_state_is_kept_ends_the_start(model, cached):
    selector = [str(write_micro_selector(Path(model), place=1))]
    with pytest.raises(Exception, match=rf"reads the output of layer 1, behind which no token .*{OF_LAYER_1}"):
        configure(model, "stage1_only", selector=selector, enable_prefix_caching=cached)


def test_a_selector_inside_the_decoder_beside_cached_states_ends_the_start(model):
    selector = [str(write_micro_selector(Path(model), place=2))]
    with pytest.raises(Exception, match=rf"reads the output of layer 2: .*{STATES}.*--no-enable-prefix-caching"):
        configure(model, "stage1_only", selector=selector, enable_prefix_caching=True)
    assert configure(model, "stage1_only", selector=selector, enable_prefix_caching=False)


def test_a_server_may_let_requests_choose_anything_else(model):
    assert configure(model, "stage1_only", override="any").cache_config.enable_prefix_caching


OWN = {"method": "mtp", "num_speculative_tokens": 2}
NGRAMS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
UNCACHED = {"enable_prefix_caching": False}
DRAFTS = pytest.mark.parametrize("drafts", [OWN, NGRAMS], ids=["own", "ngrams"])


@pytest.mark.parametrize("method", ["mtp", "qwen3_5_mtp"])
def test_a_checkpoint_without_draft_layers_cannot_draft_by_them(model, method):
    """vLLM would, by a layer of whatever is in its memory."""
    with pytest.raises(Exception, match=r"method='mtp': the checkpoint has no layers to draft by \(mtp_num_hidden_l"):
        configure(model, "stage1_only", speculative_config=OWN | {"method": method}, **UNCACHED)


@pytest.mark.skipif(ON_GPU or IS_V2, reason="the kernel runs")
@DRAFTS
def test_drafts_need_a_kernel_beside_cached_prefixes(model, drafts):
    with pytest.raises(Exception, match=r"hybrid, and with prefix caching .* a Triton kernel, which a CPU cannot run"):
        configure(model, "stage1_only", speculative_config=drafts)


@DRAFTS
def test_drafts_beside_a_dense_prefix_are_refused(model, drafts):
    for config, override in (("default", "tighten"), ("stage1_only", "any")):
        with pytest.raises(Exception, match=r'cannot be combined with method "attention", or with .*-override any'):
            configure(model, config, override=override, speculative_config=drafts, **UNCACHED)


@pytest.mark.skipif(not IS_V2, reason="let in on this runner")
def test_ngrams_are_refused_on_the_v2_runner(model):
    with pytest.raises(Exception, match=r"'ngram': .* hybrid, on which n-grams have been compared on vLLM's V1"):
        configure(model, "stage1_only", speculative_config=NGRAMS, **UNCACHED)


def test_drafts_are_let_in(drafting):
    drafts = OWN if IS_V2 else NGRAMS
    config = configure(drafting, "stage1_only", speculative_config=drafts, **UNCACHED)
    assert config.speculative_config.method == drafts["method"]


@pytest.mark.skipif(IS_V2, reason="let in on this runner")
def test_own_layers_are_refused_on_the_v1_runner(drafting):
    with pytest.raises(Exception, match=r"'mtp': vLLM's V1 model runner .* is no index once there is"):
        configure(drafting, "stage1_only", speculative_config=OWN, **UNCACHED)


@pytest.fixture
def drafting(model, tmp_path) -> str:
    """The model, in a folder that says that it has draft layers; no weights are read."""
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@DRAFTS
def test_drafts_need_a_vllm_that_keeps_the_states(model, monkeypatch, drafts):
    import vllm

    if IS_V2 and drafts is NGRAMS:
        pytest.skip("refused on this runner")
    monkeypatch.setattr(vllm, "__version__", "0.31.4")
    with pytest.raises(Exception, match=r"hybrid, and this vLLM takes a stale state .* \(vllm#39273\); use vLLM 0\.32"):
        configure(model, "stage1_only", speculative_config=drafts, **UNCACHED)


FAILS = """
import sys
from dense_cases import VIDEO, chat, video
from dense_engine import OPTIONS, options_of
from vllm import LLM, SamplingParams
llm = LLM(model=sys.argv[1], video_pruning_rate=0.5, **OPTIONS, **options_of(sys.argv[1]))
prompt = {"prompt": chat(VIDEO + "How many?"), "multi_modal_data": {"video": [video(2)]}}
llm.generate([prompt], SamplingParams(max_tokens=1))
"""


@pytest.mark.long
def test_stock_vllm_fails_at_the_first_video_that_it_prunes(model):
    """vllm#54170. `test_family_exactness.py` has what is answered here, `evs` among it."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests / "dense"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", FAILS, model],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "object has no attribute 'video_pruning_method'" in done.stderr
