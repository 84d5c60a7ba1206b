"""How long a program wants to wait, checked before anything is done."""

from __future__ import annotations

from math import isnan

from logstore.errors import InvalidArgumentError

__all__ = ["milliseconds", "seconds"]


def milliseconds(timeout_ms: object) -> float:
    """``timeout_ms``, in seconds."""
    return _number("timeout_ms", timeout_ms, "a number of milliseconds") / 1000


def seconds(timeout: object) -> float | None:
    """``timeout``; None is one that has no end of its own."""
    return None if timeout is None else _number("timeout", timeout, "a number of seconds, or None")


def _number(name: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value):
        raise InvalidArgumentError(f"{name} is {wanted}, not {value!r}.")
    return value
