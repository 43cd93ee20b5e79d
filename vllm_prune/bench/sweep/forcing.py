"""Makes vLLM say a given answer, so that its log-probability can be read.

The log-probabilities that vLLM reports are those of the model, before any processor of logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from vllm_prune.hook import Hooked, hook

_KEY = "vllm_prune_answer"


class AnswerForcer(Hooked, AdapterLogitsProcessor):
    """A logits processor for `vllm.LLM(logits_processors=[...])`; it touches only requests of `forced`."""

    @classmethod
    @hook
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Any request will do."""

    @hook
    def is_argmax_invariant(self) -> bool:
        return False

    @hook
    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        answer = (params.extra_args or {}).get(_KEY)
        return None if answer is None else _Force(answer)


class _Force:
    """Leaves one token at every place of the answer."""

    def __init__(self, answer: list[int]) -> None:
        self._answer = answer

    def __call__(self, said: list[int], logits: torch.Tensor) -> torch.Tensor:
        token = self._answer[min(len(said), len(self._answer) - 1)]
        only = torch.full_like(logits, -torch.inf)
        only[token] = 0.0
        return only


def forced(answer: list[int]) -> SamplingParams:
    """Sampling that says the tokens `answer` and tells their log-probabilities."""
    return SamplingParams(
        temperature=0.0, max_tokens=len(answer), logprobs=0, ignore_eos=True, extra_args={_KEY: list(answer)}
    )
