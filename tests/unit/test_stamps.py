"""Time stamps written down where they change: the same as a plain list of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.arrays import Int8Array
from logstore._core.stamps import Stamps

NUMBERS = st.lists(st.integers(0, 3) | st.integers(0, 2**50), min_size=1, max_size=200)
REPEATED = st.lists(st.tuples(st.integers(0, 2**50), st.integers(1, 50)), min_size=1, max_size=5).map(
    lambda runs: [number for number, count in runs for _ in range(count)]
)


def stamps_of(numbers: list[int]) -> Stamps:
    changes = [
        (index, number) for index, number in enumerate(numbers) if not index or numbers[index - 1] != number
    ]
    return Stamps(changes, len(numbers))


@given(NUMBERS | REPEATED, st.integers(0, 200), st.integers(0, 200))
def test_it_is_the_list(numbers: list[int], start: int, stop: int) -> None:
    stamps = stamps_of(numbers)
    assert list(stamps) == numbers
    assert stamps == numbers
    assert len(stamps) == len(numbers)
    assert [stamps[index] for index in range(len(numbers))] == numbers
    assert stamps[start:stop] == numbers[start:stop]
    assert stamps.highest() == max(numbers)
    assert stamps.constant or len(set(numbers)) > 1
    assert Int8Array(stamps).encode() == Int8Array(numbers).encode()


def test_what_an_interrupt_may_leave_does_no_harm() -> None:
    """A change without its record: the next one at that place counts, one beyond the end does not."""
    stamps = Stamps([(0, 5), (2, 6), (2, 7), (3, 8)], 3)
    assert list(stamps) == [5, 5, 7]
    assert stamps.highest() == 7
    with pytest.raises(IndexError):
        stamps[3]
