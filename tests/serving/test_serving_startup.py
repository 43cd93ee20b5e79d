"""A wrong server configuration ends the start before a model is loaded, in words that say what to change."""

from __future__ import annotations

import subprocess
import time

import pytest
from serving_server import OPTIONS, environment, serve_command

from vllm_prune import PruneConfig, engine_args

STAGE1, QUESTION = "stage1_only", "default"


def configure(model: str, prune: object = STAGE1, override: str = "tighten", **others: object):
    """What every vLLM process does before it starts workers."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = engine_args(model, prune, override=override, max_model_len=1024, enforce_eager=True, **others)
    return EngineArgs(**arguments).create_engine_config()


@pytest.mark.parametrize(
    ("prune", "override", "others", "said"),
    [
        (STAGE1, "tighten", {"mm_processor_kwargs": {"prune": {}}}, r"mm_processor_kwargs\.prune: is for requests"),
        (STAGE1, "tighten", {"video_pruning_rate": 0.3}, "video_pruning_rate=0.3: .*leave it out"),
        (STAGE1, "tighten", {"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: .*use tensor parallelism"),
        (STAGE1, "tighten", {"compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder: a captured"),
        ({"method": "attention", "layers": [9]}, "tighten", {}, r"layers=\[9\]: must lie between 0 and 4"),
        (QUESTION, "tighten", {"enable_lora": True}, "lora_config: .*choose a query-free method"),
    ],
)
def test_what_cannot_be_combined(model, prune, override, others, said):
    with pytest.raises(ValueError, match=said):
        configure(model, prune, override, **others)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"config": {"keep_ratio": 3}}, "keep_ratio=3: must be above 0 and at most 1"),
        ({"config": "magic"}, "preset='magic'"),
        ({"override": "all"}, "override='all'"),
        ({"konfig": {}}, "unknown key 'konfig'"),
        ("default", "must be an object"),
    ],
)
def test_settings_written_by_hand(model, value, said):
    from vllm.engine.arg_utils import EngineArgs

    overrides = {**engine_args(model, PruneConfig())["hf_overrides"], "vllm_prune": value}
    with pytest.raises(ValueError, match=said):
        EngineArgs(model=model, hf_overrides=overrides).create_engine_config()


def test_a_server_that_can_never_prune_runs_plain_vllm(model):
    """No hook of vLLM's pruning is switched on, so nothing is computed twice."""
    config = configure(model, "baseline", "tighten")
    assert not config.model_config.get_multimodal_config().is_multimodal_pruning_enabled()
    assert configure(model, "baseline", "any").model_config.get_multimodal_config().is_multimodal_pruning_enabled()
    assert configure(model, STAGE1, "none").model_config.get_multimodal_config().is_multimodal_pruning_enabled()


def test_the_server_stops_before_it_loads_the_model(model):
    started = time.monotonic()
    command = serve_command(model, "--prune", STAGE1, "--mm-processor-kwargs", '{"prune": {}}', *OPTIONS)
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert process.returncode != 0
    assert "mm_processor_kwargs.prune: is for requests; use --prune for the whole server" in process.stderr
    assert "Starting to load model" not in process.stdout + process.stderr
    assert time.monotonic() - started < 200
