"""Methods and budgets, from names of configurations: `uniform@25%` is the method `uniform` at the budget `25%`."""

from __future__ import annotations

from collections.abc import Iterable


def method_of(name: str) -> str:
    """What stands before the last @.

    >>> method_of("uniform@25%"), method_of("stock")
    ('uniform', 'stock')
    """
    return name.rpartition("@")[0] or name


def budget_of(name: str) -> str | None:
    """What stands behind the last @; None without one.

    >>> budget_of("uniform@25%"), budget_of("stock")
    ('25%', None)
    """
    return name.rpartition("@")[2] if "@" in name else None


def methods(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by method, for the methods that have budgets."""
    found: dict[str, list[str]] = {}
    for name in names:
        if budget_of(name) is not None:
            found.setdefault(method_of(name), []).append(name)
    return found


def budgets(names: Iterable[str]) -> list[str]:
    """All budgets, in the order of their first appearance."""
    return list(dict.fromkeys(budget for name in names if (budget := budget_of(name)) is not None))
