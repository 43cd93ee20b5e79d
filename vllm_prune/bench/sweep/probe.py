"""One engine in this process that is asked one question about one video, under any configuration."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.engine import CPU_CACHE_GIB, engine_arguments
from vllm_prune.bench.accuracy.questions import Question, video_of
from vllm_prune.config import PruneConfig


@dataclass(frozen=True, kw_only=True)
class Said:
    """A greedy answer and what it took."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    video_tokens: int


class Probe:
    """Asks; every request has a video of its own as far as any cache can tell, unless it says otherwise."""

    def __init__(
        self,
        model: Path,
        question: Question,
        *,
        max_frames: int,
        max_tokens: int,
        on_cpu: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        frames = video_of(question, "bench sweep").frames(max_frames)
        from vllm import LLM, SamplingParams

        from vllm_prune.bench.sweep.forcing import AnswerForcer
        from vllm_prune.engine import engine_args

        options = engine_arguments(on_cpu, arguments)
        self._llm = LLM(
            **engine_args(str(model), "baseline", override="any", logits_processors=[AnswerForcer], **options)
        )
        content = [{"type": "video"}, {"type": "text", "text": question.prompt()}]
        text = self._llm.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self._prompt = {"prompt": text, "multi_modal_data": {"video": [(frames.pixels, frames.metadata())]}}
        self._first = SamplingParams(temperature=0.0, max_tokens=1)
        self._whole = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        self._names = itertools.count()
        self._generate(PruneConfig(), self._first)  # whatever is done once, is done

    def time_first_token(self, config: PruneConfig) -> float:
        """Seconds from decoded frames to the first token: preprocessing, encoder, prefill."""
        begin = time.perf_counter()
        self._generate(config, self._first)
        return time.perf_counter() - begin

    def answer(self, config: PruneConfig) -> Said:
        """What the model says."""
        output = self._generate(config, self._whole)
        said = output.outputs[0]
        return Said(
            text=said.text.strip(),
            token_ids=tuple(said.token_ids),
            prompt_tokens=len(output.prompt_token_ids),
            video_tokens=output.prune.kept,
        )

    def log_probability(self, config: PruneConfig, answer: tuple[int, ...]) -> float:
        """Natural logarithm of the probability that the model gives to an answer of these tokens."""
        from vllm_prune.bench.sweep.forcing import forced

        said = self._generate(config, forced(list(answer))).outputs[0]
        assert tuple(said.token_ids) == answer, "the engine did not say what it was made to say"
        return float(sum(place[token].logprob for place, token in zip(said.logprobs, said.token_ids, strict=True)))

    def _generate(self, config: PruneConfig, sampling: Any) -> Any:
        request = {
            **self._prompt,
            "multi_modal_uuids": {"video": [f"sweep-{next(self._names)}"]},
            "mm_processor_kwargs": {"prune": {"preset": "baseline", **config.to_dict()}},
        }
        return self._llm.generate([request], sampling, use_tqdm=False)[0]
