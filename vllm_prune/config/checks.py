"""Checks of single values, and the limits of every value that a request can bring; docs/limits.md lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vllm_prune.config.errors import PruneConfigError, brief

MAX_INTEGER = 2**31 - 1
"""Token counts, layers and whole numbers of methods."""
MAX_LAYERS = 128
"""Entries of `layers`, and of the lists with a value for each of them."""
MAX_TEXT = 16_384
"""Characters of a configuration given as JSON text."""
MAX_NAME = 128
"""Characters of a name: of a preset, a method, a parameter."""
MAX_PARAM_VALUES = 256
"""Values in `params`, those within lists and objects too."""
MAX_PARAM_TEXT = 4096
"""Characters of all texts in `params` together."""
MAX_PARAM_DEPTH = 8
"""Lists and objects within one another in `params`."""
MAX_PARAM_INTEGER = 2**63 - 1
"""Absolute value of an integer in `params`; most methods allow less."""


def require_ratio(field: str, value: object) -> float:
    """Returns `value` as a float in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PruneConfigError(f"{field}={brief(value)}: must be a number above 0 and at most 1")
    if not 0 < value <= 1:  # NaN is not, either
        raise PruneConfigError(f"{field}={brief(value)}: must be above 0 and at most 1")
    return float(value)


def require_int(field: str, value: object, minimum: int) -> int:
    """Returns `value` if it is an integer from `minimum` to MAX_INTEGER."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PruneConfigError(f"{field}={brief(value)}: must be an integer of {minimum} or more")
    if value < minimum:
        raise PruneConfigError(f"{field}={brief(value)}: must be {minimum} or more")
    if value > MAX_INTEGER:
        raise PruneConfigError(f"{field}={brief(value)}: must be {MAX_INTEGER} or less")
    return value


def require_bool(field: str, value: object) -> bool:
    """Returns `value` if it is true or false."""
    if not isinstance(value, bool):
        raise PruneConfigError(f"{field}={brief(value)}: must be true or false")
    return value


def require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses what is not one of `choices`."""
    if value not in choices:
        raise PruneConfigError(f"{field}={brief(value)}: must be one of {', '.join(choices)}")


def require_known_keys(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses any key that is not among `known`."""
    for key in given:
        if key not in known:
            raise PruneConfigError(f"{where}: unknown key {brief(key)}; known keys: {', '.join(known)}")


def require_params(params: object) -> dict[str, Any]:
    """Returns a copy of a method's parameters if they are JSON of a bounded size."""
    if not isinstance(params, Mapping):
        raise PruneConfigError(f"params={brief(params)}: must be an object")
    waiting: list[tuple[str, object, int]] = [("params", dict(params), 0)]
    values = characters = 0
    while waiting:
        field, part, depth = waiting.pop()
        if isinstance(part, dict | list | tuple):
            values += len(part)
            if values > MAX_PARAM_VALUES:
                raise PruneConfigError(f"{field}={brief(part)}: params must have {MAX_PARAM_VALUES} values or fewer")
            if depth == MAX_PARAM_DEPTH:
                raise PruneConfigError(f"{field}={brief(part)}: params must not nest more than {MAX_PARAM_DEPTH} deep")
        if isinstance(part, dict):
            for name, value in part.items():
                if not isinstance(name, str):
                    raise PruneConfigError(f"{field}: the name {brief(name)} must be a string")
                characters += len(name)
                waiting.append((_param(name) if depth == 0 else field, value, depth + 1))
        elif isinstance(part, list | tuple):
            waiting += [(field, value, depth + 1) for value in part]
        elif isinstance(part, str):
            characters += len(part)
        else:
            _require_plain(field, part)
        if characters > MAX_PARAM_TEXT:
            raise PruneConfigError(f"{field}={brief(part)}: params must have {MAX_PARAM_TEXT} characters or fewer")
    return dict(params)


def _param(name: str) -> str:
    return f"params.{name}" if name.isidentifier() and len(name) <= MAX_NAME else f"params[{brief(name)}]"


def _require_plain(field: str, value: object) -> None:
    """Refuses what is neither a number that JSON can hold nor true, false or null."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_PARAM_INTEGER:
            raise PruneConfigError(f"{field}={brief(value)}: must lie between -(2**63 - 1) and 2**63 - 1")
    elif not isinstance(value, float):
        raise PruneConfigError(f"{field}={brief(value)}: must be a number, text, true, false, null, list or object")
    elif not math.isfinite(value):
        raise PruneConfigError(f"{field}={brief(value)}: must be a finite number")
