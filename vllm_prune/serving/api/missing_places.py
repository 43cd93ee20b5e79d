"""A prompt without a place for one of its media is the request's mistake. Runs in the API server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_VLLMS = "Failed to apply prompt replacement"


@contextlib.contextmanager
def told_as_a_mistake_of_the_client() -> Iterator[None]:
    """Turns vLLM's assertion, which would be an HTTP 500, into a ValueError, which is a 400."""
    try:
        yield
    except AssertionError as error:
        if _VLLMS not in str(error):
            raise
        raise ValueError(
            f"{error}: its place is not in the prompt; leave out truncate_prompt_tokens, or give more, and see that "
            f"the prompt has a placeholder for each medium"
        ) from error
