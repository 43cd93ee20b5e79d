"""Which parameters a method takes, and what it can be combined with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_prune.config.checks import require_known_keys
from vllm_prune.config.errors import PruneConfigError, brief, shorten

NO_METHOD = "none"
ATTENTION = "attention"

ATTENTION_PARAMS: Mapping[str, tuple[str, ...]] = {
    "text": ("max", "mean", "last"),
    "heads": ("max", "mean"),
    "selector": ("topk", "dpp"),
    "quota": ("global", "segment", "frame"),
}
"""Parameters of method "attention" with their values, the default first.

text, heads: how weights are reduced over the text's positions, then over heads.
selector: the most important tokens; or a conditional DPP per frame, with importance as relevance and hidden states as
features.
quota: tokens compete within the whole video; or, after stage 1, within the static and the dynamic part of each segment,
which share the budget by size; or, as in PruneVid's code, within the static part of each segment and the dynamic part
of each frame.
"""

_SAID = 300  # characters of a method's own message


def check_attention(params: Mapping[str, Any], *, finds_segments: bool) -> None:
    """Refuses unusable parameters of method "attention". `finds_segments`: whether stage 1 cuts the video into some."""
    require_known_keys('params of method "attention"', params, tuple(ATTENTION_PARAMS))
    for name, value in params.items():
        if value not in ATTENTION_PARAMS[name]:
            raise PruneConfigError(f"params.{name}={brief(value)}: must be one of {', '.join(ATTENTION_PARAMS[name])}")
    quota = params.get("quota", "global")
    if quota == "global":
        return
    if not finds_segments:
        raise PruneConfigError(
            f'params.quota="{quota}": needs stage1 with where="encoder" and method="prunevid", which finds the segments'
        )
    if params.get("selector") == "dpp":
        raise PruneConfigError(f'params.quota="{quota}": the selector "dpp" shares the budget among frames by itself')


def check_query_free(method: str, params: Mapping[str, Any], *, merged_before: bool) -> None:
    """Refuses an unknown method, parameters it does not take, and stage 1 before a method that needs every token."""
    # Imported here so that a configuration without a method does not import torch.
    from vllm_prune.methods import registry

    try:
        registry.create(method, **params)
    except (TypeError, ValueError, OverflowError) as error:
        known = (*registry.names(), ATTENTION, NO_METHOD)
        if method not in known:
            raise PruneConfigError(f"method={brief(method)}: unknown; known: {', '.join(known)}") from error
        raise PruneConfigError(f"method={brief(method)}: {shorten(str(error), _SAID)}") from error
    kind = registry.load(method)
    if getattr(kind, "relevance", "unused") == "required":
        raise PruneConfigError(
            f'method={brief(method)}: needs relevance to the question, which only method "attention" has; use that'
        )
    if merged_before and getattr(kind, "needs_every_token", False):
        raise PruneConfigError(
            f"method={brief(method)}: needs every token of the video, and stage1 merges before it; give "
            f'"stage1": false, or choose another method'
        )


def check_work(method: str, params: Mapping[str, Any], num_tokens: int, budget: int) -> None:
    """Refuses a video of `num_tokens` of which a method would take too long to keep `budget`."""
    if method in (NO_METHOD, ATTENTION):
        return
    from vllm_prune.methods import registry

    check = getattr(registry.create(method, **params), "check_work", None)
    if check is None:
        return
    try:
        check(num_tokens, budget)
    except ValueError as error:
        raise PruneConfigError(f"method={brief(method)}: {shorten(str(error), _SAID)}") from error
