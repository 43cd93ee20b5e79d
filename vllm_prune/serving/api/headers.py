"""What pruning did, as headers of a chat completion: for clients that drop fields which they do not know.

What is known when the prompt has been processed is in the headers of a stream too; the whole report is only there where
the answer is complete before the headers are sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from vllm_prune.serving.api.prompt_facts import IMAGE, PromptFacts
from vllm_prune.serving.api.report import RequestReport, preset_of

PREFIX = "vllm-prune-"
REPORT_BYTES = 2048
"""Of a report in a header; a longer one is left out, as proxies refuse long headers."""

# A request's own: it is handled in a task of its own, from the prompt to its response.
_of_request: ContextVar[Mapping[str, str]] = ContextVar("vllm_prune_headers", default={})  # noqa: B039 (never changed)


def tell_prompt(facts: PromptFacts | None) -> None:
    """The request under way has a processed prompt. `facts`: None if that has no videos."""
    _of_request.set({} if facts is None else _of_prompt(facts))


def tell_report(report: RequestReport) -> None:
    """The request under way is answered."""
    headers = _of_prompt(report.facts)
    text = json.dumps(report.to_dict(), separators=(",", ":"))  # ASCII
    if len(text) <= REPORT_BYTES:
        headers[f"{PREFIX}report"] = text
    _of_request.set(headers)


def _of_prompt(facts: PromptFacts) -> dict[str, str]:
    headers = {f"{PREFIX}method": facts.config.method, f"{PREFIX}preset": preset_of(facts.config.of_videos)}
    if facts.config.image is not None and facts.numbered(IMAGE):
        headers[f"{PREFIX}image-method"] = facts.config.image.method
    for modality in facts.modalities:
        counts = facts.counts(modality)
        headers[f"{PREFIX}{modality}-tokens-before"] = str(sum(each.total for each in counts))
        headers[f"{PREFIX}{modality}-tokens-kept"] = str(sum(each.kept for each in counts))
    return headers


def with_headers(response: Callable[..., Any]) -> Callable[..., Any]:
    """Makes what `response`, a class of Starlette's, makes, with the headers of the request under way."""

    def make(*args: Any, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        return response(*args, headers={**(headers or {}), **_of_request.get()}, **kwargs)

    return make
