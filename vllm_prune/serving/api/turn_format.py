"""How a model's chat template ends a question and begins the reply, found out by rendering it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_prune.spans import TurnFormat

_QUESTION, _REPLY = "<<the question>>", "<<the reply>>"
"""Text that no template has of its own."""


def derive_turn_format(tokenizer: Any, processor: Any, reply_header: str | None = None) -> TurnFormat | None:
    """The format of turns; None where there is no template, or none by which a reply's beginning can be told.

    Args:
        tokenizer: The model's.
        processor: Hugging Face's; its template, if it has one, comes before the tokenizer's, as in vLLM.
        reply_header: What stands between a question and the reply, for a family whose template does not tell.
    """
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if reply_header is None:
        reply_header = _read_header(tokenizer, template)
    if not reply_header.strip():
        return None
    start = tokenizer.encode(reply_header.rstrip(), add_special_tokens=False)
    header = tokenizer.encode(reply_header, add_special_tokens=False)
    special = tuple(sorted(tokenizer.all_special_ids))
    turn = TurnFormat(reply_start=tuple(start), num_more=len(header) - len(start), special=special)
    return turn if _is_found(turn, tokenizer, f"a question?{reply_header}a reply") else None


def _read_header(tokenizer: Any, template: Any) -> str:
    """What stands between question and reply, both where the reply is asked for and where it is past."""
    question = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}
    past = [question, {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]}, question]
    asked = _render(tokenizer, template, [question], add_generation_prompt=True).partition(_QUESTION)[2]
    behind = _render(tokenizer, template, past, add_generation_prompt=False).partition(_QUESTION)[2]
    between = behind.partition(_REPLY)[0] if _REPLY in behind else asked
    length = next((i for i, (one, other) in enumerate(zip(asked, between, strict=False)) if one != other), None)
    return asked[: min(len(asked), len(between)) if length is None else length]


def _render(
    tokenizer: Any, template: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    """The template with `messages`, their contents as parts or, where it takes none, as text; "" if neither works."""
    as_text = [{**message, "content": message["content"][0]["text"]} for message in messages]
    for form in (messages, as_text):
        try:
            text = tokenizer.apply_chat_template(
                list(form), chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception:  # a template is a program of the model's authors, and raises what it likes
            continue
        if f"{{'type': 'text', 'text': '{_QUESTION}'}}" not in text:  # else it printed the parts as they are
            return text
    return ""


def _is_found(turn: TurnFormat, tokenizer: Any, text: str) -> bool:
    """Whether the reply's start has the same token ids within a text."""
    ids, start = tokenizer.encode(text, add_special_tokens=False), list(turn.reply_start)
    return any(ids[i : i + len(start)] == start for i in range(len(ids) - len(start) + 1))
