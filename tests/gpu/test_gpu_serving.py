"""What only an NVIDIA GPU can show: the V2 runner, FlashAttention, compiled models and CUDA graphs.

    bash launch/test.sh -m gpu

The embedded model answers; precision is bf16, so answers are compared, not logits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

_ANSWER = """
import json, sys
from vllm import LLM, SamplingParams
from vllm_prune import engine_args
from vllm_prune.cli.chat import video_url
from vllm_prune.embedded import clips, model_path

config, eager, ranks = json.loads(sys.argv[1])
options = dict(max_model_len=2048, gpu_memory_utilization=0.2, enforce_eager=eager, dtype="bfloat16", seed=0)
if ranks:
    options |= dict(tensor_parallel_size=ranks, distributed_executor_backend="ray")
model = str(model_path())
llm = LLM(**(engine_args(model, config, override="any", **options) if config else dict(model=model, **options)))
asked = [(clip, question) for clip in clips() for question in clip.questions]
conversations = [
    [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": video_url(str(clip.path))}},
        {"type": "text", "text": question.question}]}]
    for clip, question in asked
]
outputs = llm.chat(conversations, SamplingParams(max_tokens=4, temperature=0.0), use_tqdm=False)
right = [out.outputs[0].text.strip() == question.answer for out, (_, question) in zip(outputs, asked)]
print("RESULT " + json.dumps({
    "tokens": [list(out.outputs[0].token_ids) for out in outputs],
    "prompt": [len(out.prompt_token_ids) for out in outputs],
    "right": sum(right) / len(right),
}))
"""


def answers(config: Any, *, eager: bool, ray_ranks: int = 0, **variables: str) -> dict[str, Any]:
    """What the embedded model says about its sample clips under `config` (None: stock vLLM).

    Args:
        config: For `engine_args`.
        eager: Without compilation and graphs.
        ray_ranks: Ranks of a Ray executor, if not 0.
        **variables: Of the engine's environment.
    """
    command = [sys.executable, "-c", _ANSWER, json.dumps([config, eager, ray_ranks])]
    # Ranks of a Ray executor compare what they keep.
    environment = {**os.environ, "VLLM_PRUNE_CHECK_RANKS": "1", **variables}
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    return answers(None, eager=True)


def test_stock_vllm_answers(stock):
    assert stock["right"] >= 0.9


@pytest.mark.parametrize("eager", [True, False])
def test_nothing_pruned_equals_stock(stock, eager):
    unpruned = answers("baseline", eager=eager)
    assert unpruned["prompt"] == stock["prompt"]
    assert unpruned["right"] == pytest.approx(stock["right"], abs=0.02)
    if eager:
        assert unpruned["tokens"] == stock["tokens"]


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("config", ["stage1_only", "stage2_only", "default"])
def test_pruned_prompts_are_answered(stock, config, eager):
    pruned = answers(config, eager=eager)
    assert all(few < many for few, many in zip(pruned["prompt"], stock["prompt"], strict=True))
    assert pruned["right"] >= stock["right"] - 0.15


def test_compiled_and_eager_agree():
    eager, compiled = (answers("default", eager=value) for value in (True, False))
    same = [a == b for a, b in zip(eager["tokens"], compiled["tokens"], strict=True)]
    assert sum(same) / len(same) >= 0.95


def test_no_wait_for_the_device_is_hidden_from_vllm():
    """With this, vLLM ends the engine at a wait in a step that is not announced to it."""
    checked = answers("default", eager=True, VLLM_GPU_SYNC_CHECK="error")
    assert checked["tokens"] == answers("default", eager=True)["tokens"]


@pytest.mark.parametrize("runner", ["0", "1"], ids=["V1", "V2"])
@pytest.mark.parametrize("variable", ["VLLM_USE_BREAKABLE_CUDAGRAPH", "VLLM_BATCH_INVARIANT"])
def test_graphs_of_the_whole_model_change_no_answer(variable, runner):
    set_ = {variable: "1", "VLLM_USE_V2_MODEL_RUNNER": runner}
    eager, replayed = (answers("default", eager=value, **set_) for value in (True, False))
    same = [a == b for a, b in zip(eager["tokens"], replayed["tokens"], strict=True)]
    assert sum(same) / len(same) >= 0.95


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
@pytest.mark.parametrize("ranks", [1, 2])
def test_rays_executor_answers_as_one_process_does(ranks):
    if ranks > torch.cuda.device_count():
        pytest.skip(f"needs {ranks} GPUs")
    alone, on_ray = answers("default", eager=True), answers("default", eager=True, ray_ranks=ranks)
    assert on_ray["prompt"] == alone["prompt"]
    same = [a == b for a, b in zip(on_ray["tokens"], alone["tokens"], strict=True)]
    assert sum(same) / len(same) >= (1 if ranks == 1 else 0.95)
