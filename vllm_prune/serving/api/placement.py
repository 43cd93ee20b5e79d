"""Where a request asks for its pruning: `prune`, beside `messages` or in `mm_processor_kwargs`, and nowhere else.

A request that puts it elsewhere would be answered with the server's configuration and look as if it had been heard, so
it is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_prune.config import ImageConfig, PruneConfigError, brief

FIELD = "prune"
_IMAGE_KEYS = frozenset(field.name for field in dataclasses.fields(ImageConfig) if field.init)
_PLACE = 'put {"prune": {...}} beside `messages`, or into `mm_processor_kwargs`'
_OUR_KEYS = frozenset(
    {"keep_ratio", "target_token_num", "stage1", "cluster_ratio", "temporal_segment_ratio", "same_within"}
)
"""Keys of a configuration that are nobody else's."""
_IMAGE = "image"
_URLS = ("video_url", "image_url")
_LIKE_OURS = re.compile(r"(vllm[_-]?)?prun(e|ing)", re.IGNORECASE)
_CLIENTS_ARGUMENT = "extra_body"
"""Of the `openai` package, which puts what it holds into the body; other clients send it as it is."""
_OTHER_OBJECTS = ("media_io_kwargs", "chat_template_kwargs", "vllm_xargs", _CLIENTS_ARGUMENT)


def place_prune(request: Any, messages: Sequence[Any]) -> None:
    """Move a request's field `prune` to where the processor reads it.

    Args:
        request: vLLM's request, whose unknown fields are in `model_extra`.
        messages: its turns.

    Raises:
        PruneConfigError: Something of pruning stands where nothing reads it, or two places contradict each other.
    """
    given = {name: value for name, value in (getattr(request, "model_extra", None) or {}).items() if value is not None}
    options = getattr(request, "mm_processor_kwargs", None) or {}
    misplaced = next(_misplaced(request, given, options, messages), None)
    if misplaced is not None:
        raise PruneConfigError(f"{misplaced}: nothing reads it there; {_PLACE}")
    if FIELD not in given:
        return
    if options.get(FIELD) is not None and options[FIELD] != given[FIELD]:
        raise PruneConfigError(
            f"prune={brief(given[FIELD])}: mm_processor_kwargs has another, {brief(options[FIELD])}; give one of them"
        )
    request.mm_processor_kwargs = {**options, FIELD: given[FIELD]}


def _misplaced(
    request: Any, given: Mapping[str, Any], options: Mapping[str, Any], messages: Sequence[Any]
) -> Iterator[str]:
    yield from (name for name, value in given.items() if name != FIELD and (_is_ours(name) or _is_images(name, value)))
    yield from (
        f"mm_processor_kwargs.{name}"
        for name, value in options.items()
        if name != FIELD and (_is_ours(name) or _is_images(name, value))
    )
    for place in _OTHER_OBJECTS:
        held = given.get(place, getattr(request, place, None))
        yield from (f"{place}.{name}" for name in held or () if _is_ours(name))
    if "mm_processor_kwargs" in (given.get(_CLIENTS_ARGUMENT) or ()):
        yield f"{_CLIENTS_ARGUMENT}.mm_processor_kwargs"
    for number, part in enumerate(_parts(messages)):
        inner = [part.get(kind) for kind in _URLS]
        for held in (part, *(url for url in inner if isinstance(url, Mapping))):
            ours = (name for name, value in held.items() if _is_ours(name) or _is_images(name, value))
            yield from (f"content part {number}, {name}" for name in ours)


def _parts(messages: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, Mapping))


def _is_images(name: Any, value: Any) -> bool:
    """Whether it looks like the part of a configuration that is about images."""
    return name == _IMAGE and isinstance(value, Mapping) and not _IMAGE_KEYS.isdisjoint(value)


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and (name in _OUR_KEYS or _LIKE_OURS.match(name) is not None)
