"""Waits between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from logstore._core.backoff import Backoff


def test_doubles_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 1.0, lambda: 0.5)
    assert [round(backoff.delay(failures), 3) for failures in (1, 2, 3, 4, 5, 6)] == [
        0.1,
        0.2,
        0.4,
        0.8,
        1.0,
        1.0,
    ]


@given(st.integers(1, 2**31), st.floats(0, 1, exclude_max=True))
def test_stays_within_a_fifth_of_the_longest(failures: int, random: float) -> None:
    assert 0.08 <= Backoff(0.1, 1.0, lambda: random).delay(failures) <= 1.2
