"""The options that every server of a run gets, so that only pruning differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_MODEL_LEN = 8192  # tokens
VIDEOS_ONLY = json.dumps({"video": 1, "image": 0})
MAX_FPS = 30  # vLLM samples frames by rate: at the highest rate it takes every frame of the prepared clips

# The machine's memory may grow on demand, and vLLM checks what is free at start: hence the small share. KV blocks must
# be multiples of 32 tokens on the CPU; the smallest shows best how many a request holds.
CPU_ARGUMENTS = ("--gpu-memory-utilization", "0.3", "--block-size", "32")
# AOT-compiled models of vLLM 0.32 do not load again under torch 2.13 on the CPU ("no attribute finalize_loading"), so
# that every start would compile anew; the ordinary compilation cache works and gives the same code.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_USE_AOT_COMPILE": "0"}


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What all servers of a run have in common."""

    model: Path
    dummy_weights: bool
    media_folder: Path
    on_cpu: bool
    extra_arguments: Sequence[str] = ()

    def arguments(self, port: int) -> list[str]:
        """Options of `vllm serve`.

        The prefix cache and the multimodal processor cache are off: with both off vLLM gives each request media keys of
        its own, so that no request finds prefill, preprocessing or encoder output of an earlier one.
        """
        arguments = ["--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
        arguments += ["--max-model-len", str(MAX_MODEL_LEN), "--limit-mm-per-prompt", VIDEOS_ONLY]
        arguments += ["--allowed-local-media-path", str(self.media_folder)]
        arguments += ["--media-io-kwargs", json.dumps({"video": {"fps": MAX_FPS}})]
        if self.dummy_weights:
            arguments += ["--load-format", "dummy"]
        if self.on_cpu:
            arguments += CPU_ARGUMENTS
        return [*arguments, *self.extra_arguments]

    def environment(self) -> dict[str, str]:
        """Environment variables on top of the caller's."""
        return dict(CPU_ENVIRONMENT) if self.on_cpu else {}
