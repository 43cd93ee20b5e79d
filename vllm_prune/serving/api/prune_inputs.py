"""A request on its way through the multimodal processor: what each medium's identity has of its `prune`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm.inputs import MultiModalHashes
from vllm.multimodal.processing.inputs import ProcessorInputs

from vllm_prune.config import PruneConfig
from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.wire.settings import REQUEST_KEY, SHARE_KEY, TRACE_KEY

_OUR_KEYS = (REQUEST_KEY, TRACE_KEY, SHARE_KEY)


def without_prune(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` as the Hugging Face processor knows them."""
    return {key: value for key, value in kwargs.items() if key not in _OUR_KEYS}


class ImageShares(NamedTuple):
    """What follows for the images of a request from a `total`, its own or the server's."""

    asked: float | None
    """`budget_images.total_share` of what the request asks for."""
    allowed: float | None
    """Of the server's own configuration."""
    configs: list[str]
    """Of every image, as JSON."""


class PruneInputs(Hooked, ProcessorInputs):
    """A request whose configuration, and trace key, are part of the identity of the media that it is about.

    What it says of videos is in theirs, what it says of images in those of images.
    """

    @hook
    def get_mm_hashes(self, *args: Any, **kwargs: Any) -> MultiModalHashes:
        options = without_prune(self.hf_processor_mm_kwargs)
        for scope, own in self._by_scope().items():
            scoped: Any = options.get(scope) or {}
            options[scope] = {**scoped, **own}
        plain = ProcessorInputs(**{**fields_of(self), "hf_processor_mm_kwargs": options})
        hashes = plain.get_mm_hashes(*args, **kwargs)
        shared: Any = self.hf_processor_mm_kwargs.get(SHARE_KEY)
        if shared is None:
            return hashes
        configs = [hashlib.sha256(config.encode()).hexdigest()[:16] for config in shared.configs]
        return {**hashes, "image": [f"{own}-{config}" for own, config in zip(hashes["image"], configs, strict=True)]}

    def _by_scope(self) -> dict[str, dict[str, str]]:
        """Ours of the processor's options, by the modality that they are about."""
        given: Mapping[str, Any] = self.hf_processor_mm_kwargs
        if REQUEST_KEY not in given:
            return {}
        config = request_config(given)
        trace = {TRACE_KEY: given[TRACE_KEY]} if TRACE_KEY in given else {}
        scopes: dict[str, dict[str, str]] = {}
        if not config.keeps_everything:
            scopes["videos_kwargs"] = {REQUEST_KEY: config.of_videos.to_json(), **trace}
        if config.image is not None and config.prunes_images:
            # With a total, an image's own configuration is added to its hash: it depends on the other images.
            image = "" if SHARE_KEY in given else json.dumps(config.image.to_dict(), sort_keys=True)
            scopes["images_kwargs"] = {REQUEST_KEY: image, **trace}
        return scopes


def request_config(kwargs: Mapping[str, Any]) -> PruneConfig:
    """The configuration of a request by its resolved `kwargs`."""
    resolved = kwargs.get(REQUEST_KEY)
    return PruneConfig() if resolved is None else PruneConfig.parse(resolved)


class ProfilingInputs(PruneInputs):
    """vLLM's own dummy request, which asks for the largest possible video and no question."""


def fields_of(inputs: ProcessorInputs) -> dict[str, Any]:
    """Its fields by name, to make another kind of inputs from."""
    return {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
