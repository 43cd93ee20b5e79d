"""Answer chat completions with the report of what pruning did, as the field `prune`."""

import functools
from collections.abc import AsyncIterator
from typing import Any

from vllm_prune.patches.base import Patch, PatchError
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.entrypoints.openai.chat_completion.serving"
_TARGET = f"{_MODULE}:OpenAIServingChat"
_MARK = "_vllm_prune_adds_report"


def _serving() -> type[Any]:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    return OpenAIServingChat


def _verify() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

    serving = _serving()
    full, stream = "chat_completion_full_generator", "chat_completion_stream_generator"
    # Where the stream is written by one function and made by another, the outputs are read in the latter.
    reader = f"{stream}_raw" if hasattr(serving, f"{stream}_raw") else stream
    for name, snippet in (
        (full, "async for res in result_generator"),
        (reader, "async for res in result_generator"),
        (stream, 'yield f"data: {data}\\n\\n"'),
    ):
        function, target = getattr(serving, name), f"{_TARGET}.{name}"
        require_leading(function, ("self", "request", "result_generator"), target)
        require_source(function, (snippet,), target)
    if ChatCompletionResponse.model_config.get("extra") != "allow":
        raise PatchError(f"{_MODULE}:ChatCompletionResponse", "a model that allows extra fields", "one that does not")


def _install() -> None:
    serving = _serving()
    full, stream = serving.chat_completion_full_generator, serving.chat_completion_stream_generator

    @functools.wraps(full)
    async def full_generator(self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

        from vllm_prune.serving.api.headers import tell_report
        from vllm_prune.serving.api.response import FIELD, WatchedOutputs

        outputs = WatchedOutputs(result_generator)
        response = await full(self, request, outputs, *args, **kwargs)
        if outputs.report is not None and isinstance(response, ChatCompletionResponse):
            setattr(response, FIELD, outputs.report.to_dict())
            tell_report(outputs.report)
        return response

    @functools.wraps(stream)
    async def stream_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[str]:
        from vllm_prune.serving.api.response import WatchedOutputs, add_to_chunk

        outputs = WatchedOutputs(result_generator)
        async for chunk in stream(self, request, outputs, *args, **kwargs):
            yield add_to_chunk(chunk, outputs.report)

    setattr(full_generator, _MARK, True)
    serving.chat_completion_full_generator = full_generator
    serving.chat_completion_stream_generator = stream_generator


PATCH = Patch(
    name="server_prune_response",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "A client cannot see what pruning did to its request: `usage` has room for numbers of tokens by modality, and "
        "vLLM has no hook for anything else in a response."
    ),
    how=(
        "Wraps the two generators of chat completions; the response, or the last chunks of a stream, get the field "
        "`prune`. Responses to requests without videos are not touched."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_serving().chat_completion_full_generator, _MARK),
    verify=_verify,
    install=_install,
)
