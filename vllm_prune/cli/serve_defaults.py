"""Options that `vllm-prune serve` adds for a question-aware configuration, where vLLM's own defaults would not do.

Nothing is added that the user gave, nor for query-free configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_prune.gpus import Gpu

_GIB = 1 << 30
_STEP_TOKENS = 8192
"""Tokens of a step: what vLLM itself takes on an H100, and enough for 32,000 video tokens of which `default`
keeps a fifth. On smaller cards it takes 2,048."""
_LARGE_CARD_GIB = 70
_HOLDERS = ("--config",)
_HOLDERS_OF = {"--attention-backend": ("--attention-config", "-ac")}
_FLASHINFER_FIRST = 10
"""Major compute capability on which vLLM prefers FLASHINFER, whose cache is not written apart from attention."""


@dataclass(frozen=True)
class AddedOption:
    """One option of `vllm serve`, and why it is added."""

    name: str
    value: str
    reason: str


def added_options(may_query: bool, given: Sequence[str], gpus: Sequence[Gpu]) -> list[AddedOption]:
    """What to add.

    Args:
        may_query: Whether the configuration, or one that requests may ask for, is question-aware.
        given: The user's own options of `vllm serve`.
        gpus: Of this machine.
    """
    if not may_query or not gpus:
        return []
    return [option for option in _wanted(gpus) if not is_given(option.name, given)]


def _wanted(gpus: Sequence[Gpu]) -> Iterator[AddedOption]:
    smallest = min(gpus, key=lambda gpu: gpu.memory)
    if smallest.memory < _LARGE_CARD_GIB * _GIB or "a100" in smallest.name.lower():
        reason = f"a video of more tokens than a step takes several, and vLLM's default on {smallest.name} is 2048"
        yield AddedOption("--max-num-batched-tokens", str(_STEP_TOKENS), reason)
    if any(gpu.capability[0] == _FLASHINFER_FIRST for gpu in gpus):
        reason = "vLLM's default on this GPU, FLASHINFER, cannot hold a dense prefix"
        yield AddedOption("--attention-backend", "FLASH_ATTN", reason)


def is_given(name: str, given: Sequence[str]) -> bool:
    """Whether the user gave an option, in any spelling, or what may hold it: a configuration, a configuration file."""
    heads = {option.partition("=")[0].partition(".")[0].replace("_", "-") for option in given}
    return not heads.isdisjoint({name, *_HOLDERS, *_HOLDERS_OF.get(name, ())})
