"""The fields of a /pooling request that are about features, between its arrival and its processing."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api.features import begin_request, parse_request
from vllm_prune.serving.api.metrics import observe_refusal
from vllm_prune.serving.api.placement import FIELD, place_prune
from vllm_prune.serving.api.prompt_facts import facts_of
from vllm_prune.serving.wire.features import KEY
from vllm_prune.serving.wire.settings import read_settings

_JSON_FORMATS = ("float", "base64")


class TakenFields(NamedTuple):
    """What vLLM's own checks do not see."""

    prune: Any
    features: Any


def take_fields(model_config: Any, renderer: Any, request: Any) -> TakenFields:
    """Checks a request's `prune` and `features`, and takes them out of it.

    Args:
        model_config: vLLM's `ModelConfig`.
        renderer: vLLM's `BaseRenderer`.
        request: vLLM's pooling request, changed in place.

    Raises:
        PruneConfigError: One is wrong, or the answer is wanted in a form that has no room for what the rows are.
    """
    try:
        place_prune(request, getattr(request, "messages", ()))
        options = dict(request.mm_processor_kwargs or {})
        prune, features = options.pop(FIELD, None), (request.model_extra or {}).get(KEY)
        (renderer.mm_processor or read_settings(model_config.hf_config)).resolve(prune)
        parse_request(model_config, features)
        if request.encoding_format not in _JSON_FORMATS:
            raise PruneConfigError(
                f"encoding_format={request.encoding_format!r}: has no room for what the rows are; use base64"
            )
    except PruneConfigError as error:
        observe_refusal(error)
        raise
    request.mm_processor_kwargs = options or None
    return TakenFields(prune, features)


def check_prompts(model_config: Any, ctx: Any) -> None:
    """Refuses features that the processed prompts of a request have not. `ctx`: vLLM's `PoolingServeContext` of it.

    Raises:
        PruneConfigError: See `begin_request`.
    """
    for engine_input in ctx.engine_inputs or ():
        prompt = engine_input["prompts"]
        try:
            begin_request(model_config, engine_input["params"], prompt, facts_of(prompt))
        except PruneConfigError as error:
            observe_refusal(error)
            raise


def put_back(ctx: Any, taken: TakenFields) -> None:
    """Hands them on. `ctx`: vLLM's `PoolingServeContext` of the request."""
    if taken.prune is not None:
        options = ctx.prompt_extras.get("mm_processor_kwargs", {})
        ctx.prompt_extras["mm_processor_kwargs"] = {**options, FIELD: taken.prune}
    ctx.pooling_params.extra_kwargs = {**(ctx.pooling_params.extra_kwargs or {}), KEY: taken.features}
