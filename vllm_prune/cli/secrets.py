"""Command lines without the secrets in them, for printing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

MASK = "***"
_SECRET_OPTIONS = ("api-key", "hf-token", "watermark-config")
"""Options of `vllm serve` whose values its own log leaves out too."""
_SHORTEST_PREFIX = 3
"""Characters. argparse takes any beginning of a name that is no other option's; shorter ones always are."""
_SECRET_NAME = re.compile(
    r"secret|passw(or)?d|passphrase|credential|authorization"
    r"|(api|access|account|auth|bearer|hf|private|refresh|session)[-_.]?(key|token)s?$"
    r"|^(key|token)s?$",
    re.IGNORECASE,
)
"""Names, in JSON and URLs, of what is a secret whatever option it is in. A model's `eos_token` is none."""
_SECRET_WORD = re.compile("key|token|secret|passw|passphrase|credential|authorization", re.IGNORECASE)
"""In text whose names cannot be told from its values."""
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_IN_QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&#\s\"']+)")
_OPTIONAL_VALUE = "hf-token"
"""Without one, vLLM takes the token that the hub's own command has stored."""
_NO_SHORT_OPTION = re.compile(r"-[^-.=][^.=]{3,}")
"""vLLM's short options have fewer letters."""
_NEGATIVE_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")  # argparse takes it for a value


def masked(command: Sequence[str]) -> list[str]:
    """The words of a command line, `***` in the place of every secret.

    Secrets are the values of options that vLLM counts as such, in every spelling it takes, and what is named as one
    in JSON or in a URL.

    >>> masked(["vllm", "serve", "m", "--api_key=a", "--api-key", "b", "c", "--port", "1"])
    ['vllm', 'serve', 'm', '--api_key=***', '--api-key', '***', '***', '--port', '1']
    >>> masked(["--otlp-traces-endpoint", "https://me:pw@host/v1", "--x", '{"aws_secret": "s", "n": 1}'])
    ['--otlp-traces-endpoint', 'https://***@host/v1', '--x', '{"aws_secret": "***", "n": 1}']
    >>> masked(["serve", "--api-key", "-a", "--port", "1"])
    ['serve', '--api-key', '***', '--port', '1']
    >>> masked(["bench", "--server-args", "--api-key a --port 1", "--server-args=--api-key=a"])
    ['bench', '--server-args', "--api-key '***' --port 1", "--server-args='--api-key=***'"]
    """
    return list(_masked_words(command))


def _masked_words(command: Sequence[str]) -> Iterator[str]:
    inside = False  # the values of a secret option: all words up to the next option
    before = ""  # the option whose value a word is, whatever that begins with
    for word in command:
        if _is_value(word) or _is_hidden_value(before, word):
            yield MASK if inside else _without_embedded(word)
            before = ""
            continue
        name, equals, value = word.partition("=")
        inside = _is_secret(name)
        before = "" if equals else name
        yield f"{name}{equals}{MASK if inside and equals else _without_embedded(value)}"


def require_clear_values(options: Sequence[str]) -> None:
    """Refuse a secret whose value argparse would take for an option, and repeat in its own refusal.

    Raises:
        ValueError: There is one; the message does not have the value.
    """
    for name, word in pairwise([*options, ""]):
        if name.startswith("-") and "=" not in name and _is_hidden_value(name, word):
            raise ValueError(f"{name}: no value, or one that begins with -; write it as {name}=VALUE")


def _is_value(word: str) -> bool:
    """Whether argparse takes a word for a value of the option before it."""
    return not word.startswith("-") or " " in word.partition("=")[0] or bool(_NEGATIVE_NUMBER.match(word))


def _is_hidden_value(name: str, word: str) -> bool:
    """Whether a word that looks like an option is what `name` should be given, rather than the next option."""
    if not _is_secret(name) or _is_value(word):
        return False
    needs_value = not _OPTIONAL_VALUE.startswith(name.lstrip("-").replace("_", "-"))
    return needs_value or bool(_NO_SHORT_OPTION.match(word))


def _is_secret(option: str) -> bool:
    """Also of a beginning of its name, which argparse completes, and of a part of it (`--watermark-config.key`)."""
    name, *parts = option.lstrip("-").replace("_", "-").split(".")
    if any(_SECRET_NAME.search(part) for part in parts):
        return True
    return len(name) >= _SHORTEST_PREFIX and any(secret.startswith(name) for secret in _SECRET_OPTIONS)


def _without_embedded(value: str) -> str:
    if value.startswith("-") and not _NEGATIVE_NUMBER.match(value):  # options for somebody else, in one word
        return _masked_line(value)
    value = _USER_IN_URL.sub(MASK, value)
    value = _IN_QUERY.sub(lambda found: f"{found[1]}={MASK if _SECRET_NAME.search(found[1]) else found[2]}", value)
    if not value.lstrip().startswith(("{", "[")):
        return value
    try:
        parsed = json.loads(value)
        hidden = _hide(parsed)
    except (ValueError, RecursionError):  # vLLM will say what is wrong with it
        return MASK if _SECRET_WORD.search(value) else value
    return value if hidden == parsed else json.dumps(hidden)


def _masked_line(line: str) -> str:
    try:
        words = shlex.split(line)
    except ValueError:  # quotes that do not end
        return MASK if _SECRET_WORD.search(line) else line
    hidden = masked(words)
    return line if hidden == words else shlex.join(hidden)


def _hide(value: Any) -> Any:
    """A JSON value with the values of secret names replaced."""
    if isinstance(value, list):
        return [_hide(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: MASK if _hides(name, item) else _hide(item) for name, item in value.items()}


def _hides(name: str, item: Any) -> bool:
    """Whether a name in JSON is that of a secret; `"tokens": 4096` is a number of them."""
    return bool(item and _SECRET_NAME.search(name)) and not (name == "tokens" and type(item) is int)
