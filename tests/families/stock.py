"""What stock vLLM answers, in a process of its own: `python stock.py REQUESTS ANSWERS MODEL`."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dense_engine import ENVIRONMENT, OPTIONS


@dataclasses.dataclass(frozen=True)
class StockAnswer:
    prompt: list[int]
    token_ids: list[int]
    logprobs: np.ndarray
    """[generated, vocabulary]"""


def answer_by_stock(model: str, cases: Sequence[Any], folder: Path, max_tokens: int = 4) -> list[StockAnswer]:
    """The answers to all cases in one batch, without what they ask of pruning."""
    prompts = [{**case.prompt(), "mm_processor_kwargs": {}} for case in cases]
    requests, answers = folder / "requests.pickle", folder / "answers.pickle"
    requests.write_bytes(pickle.dumps((prompts, max_tokens)))
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1] / "dense")]))
    command = [sys.executable, __file__, str(requests), str(answers), model]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [StockAnswer(*fields) for fields in pickle.loads(answers.read_bytes())]


def _answer(prompts: Sequence[Mapping[str, Any]], model: str, max_tokens: int) -> list[Any]:
    from vllm import LLM, SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=-1, ignore_eos=True)
    outputs = LLM(model=model, **OPTIONS).generate([dict(prompt) for prompt in prompts], params, use_tqdm=False)
    found = []
    for output in outputs:
        (completion,) = output.outputs
        logprobs = [[step[token].logprob for token in range(len(step))] for step in completion.logprobs]
        found.append((list(output.prompt_token_ids), list(completion.token_ids), np.array(logprobs)))
    return found


if __name__ == "__main__":
    requests, answers, model = sys.argv[1:]
    prompts, max_tokens = pickle.loads(Path(requests).read_bytes())
    Path(answers).write_bytes(pickle.dumps(_answer(prompts, model, max_tokens)))
