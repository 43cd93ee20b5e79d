"""A request on its way through the multimodal processor: its `prune` counts for its videos and for nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm.inputs import MultiModalHashes
from vllm.multimodal.processing.inputs import ProcessorInputs

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.wire.settings import REQUEST_KEY, TRACE_KEY


def without_prune(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` as the Hugging Face processor knows them."""
    return {key: value for key, value in kwargs.items() if key not in (REQUEST_KEY, TRACE_KEY)}


class PruneInputs(Hooked, ProcessorInputs):
    """A request whose configuration, and trace key, are part of the identity of its videos, and of nothing else."""

    @hook
    def get_mm_hashes(self, *args: Any, **kwargs: Any) -> MultiModalHashes:
        options = without_prune(self.hf_processor_mm_kwargs)
        given = self.hf_processor_mm_kwargs
        if own := {key: given[key] for key in (REQUEST_KEY, TRACE_KEY) if key in given}:
            scoped: Any = options.get("videos_kwargs") or {}
            options["videos_kwargs"] = {**scoped, **own}
        plain = ProcessorInputs(**{**fields_of(self), "hf_processor_mm_kwargs": options})
        return plain.get_mm_hashes(*args, **kwargs)


class ProfilingInputs(PruneInputs):
    """vLLM's own dummy request, which asks for the largest possible video and no question."""


def fields_of(inputs: ProcessorInputs) -> dict[str, Any]:
    """Its fields by name, to make another kind of inputs from."""
    return {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
