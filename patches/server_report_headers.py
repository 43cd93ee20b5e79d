"""Put what pruning did into the headers of chat completions too."""

from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.entrypoints.openai.chat_completion.api_router"
_TARGET = f"{_MODULE}:JSONResponse"
_MARK = "_vllm_prune_adds_headers"


def _router() -> Any:
    from vllm.entrypoints.openai.chat_completion import api_router

    return api_router


def _verify() -> None:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    makes = (
        "handler.create_chat_completion(request, raw_request)",
        "return JSONResponse(",
        "return StreamingResponse(",
    )
    require_source(_router().create_chat_completion, makes, f"{_MODULE}:create_chat_completion")
    # Where the prompt is known, in the request's own task and before either response is made.
    serving = getattr(OpenAIServingChat, "_create_chat_completion", OpenAIServingChat.create_chat_completion)
    target = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.create_chat_completion"
    require_source(serving, ("mm_token_counts = _get_mm_token_counts(engine_input)",), target)


def _install() -> None:
    from vllm_prune.serving.api.headers import with_headers

    router = _router()
    router.JSONResponse = with_headers(router.JSONResponse)
    router.StreamingResponse = with_headers(router.StreamingResponse)
    setattr(router, _MARK, True)


PATCH = Patch(
    name="server_report_headers",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "Several clients (LangChain, LiteLLM's proxy with streams) drop fields of a response that they do not know and "
        "hand on its headers. vLLM has no hook for headers."
    ),
    how=(
        "The two classes that the route of chat completions makes its responses of get the headers of the request "
        "under way. Other requests get none."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_router(), _MARK),
    verify=_verify,
    install=_install,
)
