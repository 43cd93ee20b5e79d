"""Which parameters a method takes, and what it can be combined with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_prune.config.checks import require_choice, require_known_keys
from vllm_prune.config.errors import PruneConfigError, brief, shorten

NO_METHOD = "none"
ATTENTION = "attention"
QUESTION = "question"

ATTENTION_PARAMS: Mapping[str, tuple[str, ...]] = {
    "relevance": ("attention", "learned"),
    "text": ("max", "mean", "last"),
    "heads": ("max", "mean"),
    "selector": ("topk", "dpp"),
    "quota": ("global", "segment", "frame"),
    "scope": ("video", "segment", "frame"),
}
"""Parameters of method "attention" with their values, the default first; and `exponent`, a number.

relevance: by the attention that the question pays each token; or by a learned selector that reads hidden states.
text, heads: how weights are reduced over the text's positions, then over heads.
selector: the most important tokens; or a conditional DPP over hidden states, per frame where attention says what is
relevant.
scope, exponent: of learned relevance, as of method "question".
quota: tokens compete within the whole video; or, after stage 1, within the static and the dynamic part of each segment,
which share the budget by size; or, as in PruneVid's code, within the static part of each segment and the dynamic part
of each frame.
"""

_OF_ATTENTION, _OF_LEARNED = ("text", "heads", "quota"), ("scope", "exponent")

QUESTION_PARAMS: Mapping[str, tuple[str, ...]] = {
    "relevance": ("learned", "text"),
    "text": ("mean", "max"),
    "selector": ("dpp", "topk"),
    "scope": ("video", "segment", "frame"),
}
"""Parameters of method "question" with their values, the default first; and `exponent`, a number.

relevance: by the server's learned selector; or by the cosine similarity to the embeddings of the question's tokens.
text: of that similarity, the mean or the largest over these tokens.
selector: a conditional DPP, or the most relevant tokens.
scope: what is one set: the whole video, each segment or each frame.
exponent: how much relevance counts beside diversity in the DPP; 0: not at all.
"""
EXPONENTS: Mapping[str, float] = {"learned": 0.25, "text": 1.0}
"""Default exponent by relevance: of exp(score), or of the similarity stretched to 0..1."""
MAX_EXPONENT = 16.0

_SAID = 300  # characters of a method's own message


def check_attention(params: Mapping[str, Any], *, finds_segments: bool) -> None:
    """Refuses unusable parameters of method "attention". `finds_segments`: whether stage 1 cuts the video into some."""
    require_known_keys('params of method "attention"', params, (*ATTENTION_PARAMS, "exponent"))
    _check_named(params, ATTENTION_PARAMS)
    learned = params.get("relevance") == "learned"
    for name in _OF_ATTENTION if learned else _OF_LEARNED:
        if name in params:
            needed = "attention" if learned else "learned"
            raise PruneConfigError(f'params.{name}: needs relevance "{needed}"; leave it out')
    _check_exponent(params, "topk")
    quota = params.get("quota", "global")
    if quota == "global":
        return
    if not finds_segments:
        raise PruneConfigError(
            f'params.quota="{quota}": needs stage1 with where="encoder" and method="prunevid", which finds the segments'
        )
    if params.get("selector") == "dpp":
        raise PruneConfigError(f'params.quota="{quota}": the selector "dpp" shares the budget among frames by itself')


def check_question(params: Mapping[str, Any]) -> None:
    """Refuses unusable parameters of method "question"."""
    require_known_keys('params of method "question"', params, (*QUESTION_PARAMS, "exponent"))
    _check_named(params, QUESTION_PARAMS)
    _check_exponent(params, "dpp")
    if "text" in params and params.get("relevance") != "text":
        raise PruneConfigError('params.text: needs relevance "text"; leave it out, or give "relevance": "text"')


def _check_named(params: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    for name, values in known.items():
        if name in params:
            require_choice(f"params.{name}", params[name], values)


def _check_exponent(params: Mapping[str, Any], default_selector: str) -> None:
    exponent = params.get("exponent", 0)
    is_number = isinstance(exponent, int | float) and not isinstance(exponent, bool)
    if not is_number or not 0 <= exponent <= MAX_EXPONENT:
        raise PruneConfigError(f"params.exponent={brief(exponent)}: must be a number from 0 to {MAX_EXPONENT:g}")
    if "exponent" in params and params.get("selector", default_selector) == "topk":
        raise PruneConfigError('params.exponent: has no effect with selector "topk"; leave it out, or take "dpp"')


def check_query_free(method: str, params: Mapping[str, Any], *, merged_before: bool) -> None:
    """Refuses an unknown method, parameters it does not take, and stage 1 before a method that needs every token."""
    # Imported here so that a configuration without a method does not import torch.
    from vllm_prune.methods import registry

    try:
        registry.create(method, **params)
    except (TypeError, ValueError, OverflowError) as error:
        if method not in registry.names():
            known = (*registry.served(), ATTENTION, QUESTION, NO_METHOD)
            raise PruneConfigError(f"method={brief(method)}: unknown; known: {', '.join(known)}") from error
        raise PruneConfigError(f"method={brief(method)}: {shorten(str(error), _SAID)}") from error
    kind = registry.load(method)
    if getattr(kind, "relevance", "unused") == "required":
        raise PruneConfigError(
            f"method={brief(method)}: needs relevance to the question, which only the methods "
            f'"attention" and "question" have; use one of them'
        )
    if merged_before and getattr(kind, "needs_every_token", False):
        raise PruneConfigError(
            f"method={brief(method)}: needs every token of the video, and stage1 merges before it; give "
            f'"stage1": false, or choose another method'
        )


def check_known_for_images(method: object) -> None:
    """Refuses a name that nothing has, naming what takes images."""
    from vllm_prune.methods import registry

    if isinstance(method, str) and method not in (*registry.names(), ATTENTION, QUESTION, NO_METHOD):
        raise PruneConfigError(f"method={brief(method)}: unknown; {_known_for_images()}")


def _known_for_images() -> str:
    from vllm_prune.methods import registry

    return f"known for images: {', '.join((*registry.for_images(), ATTENTION, QUESTION, NO_METHOD))}"


def check_takes_images(method: str, *, some_cells: bool) -> None:
    """Refuses a method that takes videos only, or whole pictures where it gets `some_cells` of them."""
    if method in (NO_METHOD, ATTENTION, QUESTION):
        return
    from vllm_prune.methods import registry

    reason = registry.refuses_images(method)
    if reason:
        raise PruneConfigError(f"method={brief(method)}: takes videos only: {reason}; {_known_for_images()}")
    if some_cells and getattr(registry.load(method), "needs_every_token", False):
        raise PruneConfigError(
            f"method={brief(method)}: needs every token of the image, and same_within leaves out some; leave "
            f"same_within out, or choose another method"
        )


def image_params(method: str) -> Mapping[str, Any]:
    """Parameters of a query-free method whose defaults are others for images."""
    if method in (NO_METHOD, ATTENTION, QUESTION):
        return {}
    from vllm_prune.methods import registry

    return registry.image_params(method)


def check_has_rows(method: str, flat: str) -> None:
    """Refuses a method that looks at rows and columns, of images that have none. `flat`: why they have none."""
    if method in (NO_METHOD, ATTENTION, QUESTION):
        return
    from vllm_prune.methods import registry

    if registry.is_spatial(method):
        raise PruneConfigError(f"method={brief(method)}: looks at rows and columns, but {flat}; choose another method")


def check_work(method: str, params: Mapping[str, Any], num_tokens: int, budget: int) -> None:
    """Refuses a video of `num_tokens` of which a method would take too long to keep `budget`."""
    if method in (NO_METHOD, ATTENTION, QUESTION):
        return
    from vllm_prune.methods import registry

    check = getattr(registry.create(method, **params), "check_work", None)
    if check is None:
        return
    try:
        check(num_tokens, budget)
    except ValueError as error:
        raise PruneConfigError(f"method={brief(method)}: {shorten(str(error), _SAID)}") from error
