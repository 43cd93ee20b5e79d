"""The identity that a request gives its own trace, so that whoever sent it, and nobody else, can ask for the trace."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_prune.config import PruneConfigError, brief

FIELD = "trace_key"
"""Key of a request's `prune`, beside those of a configuration."""
_FORM = re.compile("[0-9a-f]{32}")


def split_trace_key(request: object) -> tuple[object, str | None]:
    """A request's `prune` without its trace key, and that key; None in place of what it did not give.

    Raises:
        PruneConfigError: The key is not 32 lower-case hexadecimal digits.

    >>> split_trace_key({"keep_ratio": 0.2, "trace_key": "0" * 32})
    ({'keep_ratio': 0.2}, '00000000000000000000000000000000')
    >>> split_trace_key("default")
    ('default', None)
    """
    if not isinstance(request, Mapping) or FIELD not in request:
        return request, None
    rest = {key: value for key, value in request.items() if key != FIELD}
    return rest or None, checked(request[FIELD])


def checked(key: object) -> str:
    """`key` itself.

    Raises:
        PruneConfigError: It is not 32 lower-case hexadecimal digits, and so might be guessed, or name another file.
    """
    if not isinstance(key, str) or not _FORM.fullmatch(key):
        raise PruneConfigError(f"prune.{FIELD}={brief(key)}: must be 32 lower-case hexadecimal digits, drawn at random")
    return key


def file_name(key: str) -> str:
    """Of the trace of the request that gave `key`, in the server's folder."""
    return f"asked-{key}.npz"
