"""The time stamps of a batch's records, which repeat: thousands of records are sent in one millisecond."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import overload

__all__ = ["Stamps"]


class Stamps(Sequence[int]):
    """``count`` numbers, written down where they change: ``changes`` are (index of the first, number).

    The first change is at index 0, and of two changes at one index the later counts.
    """

    __slots__ = ("_count", "_numbers", "_starts")

    def __init__(self, changes: Iterable[tuple[int, int]], count: int) -> None:
        final = {start: number for start, number in changes if start < count}
        self._starts = list(final)
        self._numbers = list(final.values())
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(repeat(number, length) for number, length in self.runs())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return list(self)[index]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._numbers[bisect_right(self._starts, index) - 1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def runs(self) -> list[tuple[int, int]]:
        """Each number with how often it repeats."""
        ends = [*self._starts[1:], self._count]
        return [
            (number, end - start)
            for number, start, end in zip(self._numbers, self._starts, ends, strict=True)
        ]

    def highest(self) -> int:
        """The largest of them."""
        return max(self._numbers)

    @property
    def constant(self) -> bool:
        """All are the same."""
        return len(self._numbers) == 1
