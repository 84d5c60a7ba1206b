"""A call: one SQL text with its arguments and what its answer means, independent of any driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Call", "Row", "quoted"]

T = TypeVar("T")

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One statement for a driver to run.

    The text serves every driver: parameters are written ``$n`` and each carries a cast, so that its type
    never depends on the Python value.  Arrays are :class:`~logstore._core.arrays.ArrayParameter`; JSON
    travels as text.
    """

    sql: str
    args: tuple[Any, ...]
    decode: Callable[[Sequence[Row]], T]
    name: str
    """The SQL function, for messages and metrics."""
    writes: bool = False
    """It commits something: if the connection is lost before the answer, the outcome is unknown."""
    prepared: bool = True
    """Its text comes again: sessions keep it, and the memory that takes."""


def quoted(identifier: str) -> str:
    """``identifier`` as a quoted SQL name, safe whatever it contains."""
    return '"' + identifier.replace('"', '""') + '"'
