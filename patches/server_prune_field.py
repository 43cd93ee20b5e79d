"""Read a request's field `prune`, and refuse pruning that stands where nothing reads it."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.renderers.online_renderer"
_TARGET = f"{_MODULE}:OnlineRenderer.preprocess_chat"
_MARK = "_vllm_prune_reads_field"


def _renderer() -> type[Any]:
    from vllm.renderers.online_renderer import OnlineRenderer

    return OnlineRenderer


def _verify() -> None:
    function = _renderer().preprocess_chat
    require_leading(function, ("self", "request", "messages"), _TARGET)
    reads = ('getattr(request, "mm_processor_kwargs", None)', 'for k in ("mm_processor_kwargs"')
    require_source(function, reads, _TARGET)
    of_text = _renderer().preprocess_cmpl
    require_leading(of_text, ("self", "request", "prompts"), f"{_MODULE}:OnlineRenderer.preprocess_cmpl")
    require_source(of_text, reads, f"{_MODULE}:OnlineRenderer.preprocess_cmpl")


def _install() -> None:
    chat, text = _renderer().preprocess_chat, _renderer().preprocess_cmpl

    @functools.wraps(chat)
    async def preprocess_chat(self: Any, request: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        _place(self.model_config, request, messages)
        return await chat(self, request, messages, *args, **kwargs)

    @functools.wraps(text)
    async def preprocess_cmpl(self: Any, request: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        _place(self.model_config, request, ())
        return await text(self, request, prompts, *args, **kwargs)

    setattr(preprocess_chat, _MARK, True)
    _renderer().preprocess_chat, _renderer().preprocess_cmpl = preprocess_chat, preprocess_cmpl


def _place(model_config: Any, request: Any, messages: Any) -> None:
    from vllm_prune.serving.wire.architectures import is_variant

    if is_variant(model_config.architecture):
        from vllm_prune.config import PruneConfigError
        from vllm_prune.serving.api.metrics import observe_refusal
        from vllm_prune.serving.api.placement import place_prune

        try:
            place_prune(request, messages)
        except PruneConfigError as error:
            observe_refusal(error)
            raise


PATCH = Patch(
    name="server_prune_field",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "The response has a field `prune`, so people send one; vLLM passes over fields that it does not know, and the "
        "request is answered as if it had asked for nothing."
    ),
    how=(
        "Wraps the preprocessing of a chat, and of a prompt of text: on a server of a pruning variant the field goes "
        "to `mm_processor_kwargs`, where a configuration is read and checked, and what is misplaced is refused."
    ),
    upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/serve/engine/protocol.py",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_renderer().preprocess_chat, _MARK),
    verify=_verify,
    install=_install,
)
