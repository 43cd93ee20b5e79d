"""Sample the frames of a request's videos by the tokens that are kept of them."""

import dataclasses
import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_keywords, require_leading, require_source

_MODULE = "vllm.renderers.hf"
_TARGET = f"{_MODULE}:HfRenderer.render_messages"
_MARK = "_vllm_prune_samples_frames"
_METHODS = ("render_messages", "render_messages_async")


def _class() -> Any:
    from vllm.renderers.hf import HfRenderer

    return HfRenderer


def _verify() -> None:
    from vllm.multimodal.media import video

    for name in _METHODS:
        method = getattr(_class(), name)
        require_leading(method, ("self", "messages", "params"), f"{_MODULE}:HfRenderer.{name}")
        passed_on = ("media_io_kwargs=params.media_io_kwargs", "mm_processor_kwargs=params.mm_processor_kwargs")
        require_source(method, passed_on, f"{_MODULE}:HfRenderer.{name}")
    media_io, target = video.VideoMediaIO, "vllm.multimodal.media.video:VideoMediaIO"
    require_keywords(media_io.__init__, ("num_frames",), f"{target}.__init__")
    require_source(media_io.__init__, ('kwargs.pop("video_backend", None)',), f"{target}.__init__")
    require_source(media_io.load_bytes, ("num_frames=self.num_frames, **self.kwargs",), f"{target}.load_bytes")


def _install() -> None:
    renderer = _class()
    renderer.render_messages = _rendered(renderer.render_messages)
    renderer.render_messages_async = _rendered_async(renderer.render_messages_async)


def _rendered(original: Any) -> Any:
    @functools.wraps(original)
    def render_messages(self: Any, messages: Any, params: Any) -> Any:
        return original(self, messages, _with_sampling(self, params))

    setattr(render_messages, _MARK, True)
    return render_messages


def _rendered_async(original: Any) -> Any:
    @functools.wraps(original)
    async def render_messages_async(self: Any, messages: Any, params: Any) -> Any:
        return await original(self, messages, _with_sampling(self, params))

    return render_messages_async


def _with_sampling(renderer: Any, params: Any) -> Any:
    """`params` with options for loading videos that sample them; the caller's own, which are hashed, stay."""
    from vllm_prune.config import PruneConfigError
    from vllm_prune.serving.api.metrics import observe_refusal
    from vllm_prune.serving.wire.architectures import is_variant

    if renderer.mm_processor is None or not is_variant(renderer.model_config.architecture):
        return params
    from vllm_prune.serving.api.frame_sampling import sampling_options

    default = renderer.model_config.get_multimodal_config().media_io_kwargs or {}
    given = params.media_io_kwargs or default
    try:
        options = sampling_options(
            renderer.mm_processor, given.get("video", {}), default.get("video", {}), params.mm_processor_kwargs or {}
        )
    except PruneConfigError as error:
        observe_refusal(error)
        raise
    return params if options is None else dataclasses.replace(params, media_io_kwargs={**given, "video": options})


PATCH = Patch(
    name="server_frames",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "vLLM decides how many frames of a video it samples before the multimodal processor knows how many tokens each "
        "takes and how many of them are kept; a server can give a rate, or one number for all videos."
    ),
    how=(
        "Wraps the rendering of a chat: where the request's configuration has `frames`, videos are loaded by a loader "
        "of ours, which runs vLLM's with the number of frames that fits. Other requests are rendered as before."
    ),
    upstream=("https://github.com/QwenLM/Qwen3-VL/issues/1795",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_class().render_messages, _MARK),
    verify=_verify,
    install=_install,
)
