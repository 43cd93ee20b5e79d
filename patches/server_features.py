"""Answer /pooling with features: read the fields `prune` and `features`, and say what the rows are."""

import functools
import json
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.entrypoints.pooling.pooling.serving"
_TARGET = f"{_MODULE}:ServingPooling"
_MARK = "_vllm_prune_hands_out_features"


def _serving() -> type[Any]:
    from vllm.entrypoints.pooling.pooling.serving import ServingPooling

    return ServingPooling


def _verify() -> None:
    serving = _serving()
    require_leading(serving._init_ctx, ("self", "io_processor", "request"), f"{_TARGET}._init_ctx")
    reads = ("validate_request_mm_kwargs(", "create_pooling_params(request)", 'k in ("mm_processor_kwargs"')
    require_source(serving._init_ctx, reads, f"{_TARGET}._init_ctx")
    queued = ('engine_input["prompts"]', 'engine_input["params"]', "self.engine_client.encode(")
    require_source(serving._prepare_generators, queued, f"{_TARGET}._prepare_generators")
    answer = serving.request_output_to_pooling_json_response
    require_leading(answer, ("self", "final_res_batch"), f"{_TARGET}.request_output_to_pooling_json_response")
    written = ("response = PoolingResponse(", "return ")
    require_source(answer, written, f"{_TARGET}.request_output_to_pooling_json_response")


def _install() -> None:
    serving = _serving()
    init_ctx, prepare = serving._init_ctx, serving._prepare_generators
    answer = serving.request_output_to_pooling_json_response

    @functools.wraps(init_ctx)
    async def init(self: Any, io_processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.features import hands_out_features

        if not hands_out_features(self.model_config):
            return await init_ctx(self, io_processor, request, *args, **kwargs)
        from vllm_prune.serving.api.feature_fields import put_back, take_fields

        taken = take_fields(self.model_config, self.renderer, request)
        ctx = await init_ctx(self, io_processor, request, *args, **kwargs)
        put_back(ctx, taken)
        return ctx

    @functools.wraps(prepare)
    async def prepare_generators(self: Any, ctx: Any) -> None:
        from vllm_prune.serving.api.feature_fields import check_prompts

        check_prompts(self.model_config, ctx)
        await prepare(self, ctx)

    @functools.wraps(answer)
    def respond(self: Any, final_res_batch: Any, *args: Any, **kwargs: Any) -> Any:
        response = answer(self, final_res_batch, *args, **kwargs)
        report = getattr(final_res_batch[0], "prune", None)
        if report is None or report.features is None:
            return response
        from fastapi.responses import Response

        # At the end of the object that vLLM wrote, which may be of many megabytes.
        added = json.dumps({"prune": report.to_dict(), "features": report.features}, separators=(",", ":"))
        body = b"%b,%b" % (response.body[: response.body.rindex(b"}")], added[1:].encode())
        return Response(body, media_type="application/json")

    setattr(init, _MARK, True)
    serving._init_ctx, serving._prepare_generators = init, prepare_generators
    serving.request_output_to_pooling_json_response = respond


PATCH = Patch(
    name="server_features",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "vLLM's /pooling answers with rows of numbers alone: which of them are a video's tokens and where in the video "
        "they lie is not said, and a request cannot ask for a layer or for its own pruning."
    ),
    how=(
        "On a server of a pruning variant with --runner pooling the fields `prune` and `features` of a request are "
        "read before vLLM checks the rest, and what depends on the processed prompt is checked before it is queued "
        "(behind that, vLLM takes an error for its own: 500). Its JSON answer gets the same two, with the report and "
        "the description of the rows. Other servers are not changed."
    ),
    upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/pooling/pooling/serving.py",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_serving()._init_ctx, _MARK),
    verify=_verify,
    install=_install,
)
