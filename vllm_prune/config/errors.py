"""The error of everything that comes from outside, and how values are shown in it."""

from __future__ import annotations

import reprlib
from collections.abc import Sized

_SHOWN = 200  # characters of a value in a message
_SHOWN_BITS = 256  # of an integer


class PruneConfigError(ValueError):
    """A configuration that cannot be used; the message names field, value and remedy."""


class _Brief(reprlib.Repr):
    """Looks at the beginning of a value only, so that showing a value of megabytes costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 16
        self.maxstring = self.maxlong = self.maxother = _SHOWN

    def repr_tuple(self, x: tuple[object, ...], level: int) -> str:
        # JSON knows lists only.
        return self.repr_list(list(x), level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return repr(x) if x.bit_length() <= _SHOWN_BITS else f"<integer of {x.bit_length()} bits>"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """`value` for a message, which must not repeat whatever a client sends at full length.

    >>> brief([0.5, "a"]), brief("x" * 10**6)[-10:], brief(10**5000)
    ("[0.5, 'a']", "xxxxxxxxx'", '<integer of 16610 bits>')
    """
    return shorten(_BRIEF.repr(value), _SHOWN)


def shorten(text: str, limit: int) -> str:
    """The first `limit` characters of `text`, and "..." in place of the rest."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def require_length(field: str, value: Sized, limit: int, unit: str) -> None:
    """Refuses a value of more than `limit` characters or entries."""
    if len(value) > limit:
        raise PruneConfigError(f"{field}={brief(value)}: has {len(value)} {unit}; use {limit} or fewer")
