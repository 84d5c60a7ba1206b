"""The bucket as a function of the time: against a plain model, and what it promises."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.lengths import examples
from tests.support.sqllog import Session, rows

many = settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
rates = st.one_of(st.integers(1, 100_000), st.integers(1, 10**12))
charges = st.lists(
    st.tuples(st.integers(0, 5_000), st.one_of(st.integers(0, 10_000), st.integers(0, 2**31))),
    min_size=1,
    max_size=20,
)
"""After how many ms, and how many bytes."""

START_MS = 1_800_000_000_000
HOUR_MS = 3_600_000

STEPS = """
    WITH RECURSIVE
    charge AS (SELECT * FROM unnest(%s::int8[], %s::int8[]) WITH ORDINALITY c (now_ms, bytes, n)),
    step AS (
        SELECT 0::int8 AS n, null::int8 AS used_until, 0 AS told
        UNION ALL
        SELECT c.n, u.used_until, throttle_ms(u.used_until, c.now_ms)
        FROM step s JOIN charge c ON c.n = s.n + 1
        CROSS JOIN LATERAL (
            SELECT quota_used_until(s.used_until, c.now_ms, c.bytes, %s) AS used_until) u)
    SELECT told FROM step WHERE n > 0 ORDER BY n"""


def told(session: Session, steps: list[tuple[int, int]], rate: int) -> list[int]:
    """What the bucket says after each charge; ``steps``: at which ms, and how many bytes."""
    found: list[tuple[Any, ...]] = rows(
        session, STEPS, [at for at, _ in steps], [size for _, size in steps], rate
    )
    return [each for (each,) in found]


@many
@given(rate=rates, steps=charges)
def test_it_is_a_leaky_bucket_of_one_second(
    session: Session, rate: int, steps: list[tuple[int, int]]
) -> None:
    at, level, expected, times = START_MS, Fraction(0), [], []
    for pause, size in steps:
        at += pause
        level = max(Fraction(0), level - Fraction(rate * pause, 1000))
        level = min(level + size, Fraction(rate * (HOUR_MS + 1000), 1000))
        expected.append(max(Fraction(0), (level - rate) * 1000 / rate))
        times.append((at, size))
    for found, model in zip(told(session, times, rate), expected, strict=True):
        assert model - 1 <= found <= model + 2


@many
@given(
    rate=st.integers(1_000, 1_000_000),
    clients=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 50_000), min_size=5, max_size=30),
)
def test_clients_that_keep_to_it_keep_the_rate_together(
    session: Session, rate: int, clients: int, sizes: list[int]
) -> None:
    """Each sends as soon as it may; together they send no more than the rate, but for one second's worth and
    one request each, and no less."""
    free = [START_MS] * clients
    steps: list[tuple[int, int]] = []
    for size in sizes:
        who = min(range(clients), key=free.__getitem__)
        at = max([free[who], *(each for each, _ in steps[-1:])])
        steps.append((at, size))
        free[who] = at + told(session, steps, rate)[-1]
    for first in range(len(steps)):
        for last in range(first, len(steps)):
            sent = sum(size for _, size in steps[first : last + 1])
            seconds = (steps[last][0] - steps[first][0]) / 1000
            assert sent <= rate * (seconds + 1) + (clients + 1) * max(sizes)
    # Nobody is told to wait for longer than what was sent takes.
    everything = sum(sizes)
    assert max(free) - START_MS <= everything * 1000 / rate + 2 * len(sizes)


@many
@given(rate=rates, steps=charges)
def test_more_bytes_never_mean_less_waiting(
    session: Session, rate: int, steps: list[tuple[int, int]]
) -> None:
    at, times = START_MS, []
    for pause, size in steps:
        at += pause
        times.append((at, min(size, rate)))
    more = [(when, size + min(rate, 100)) for when, size in times]
    assert all(
        less <= other
        for less, other in zip(told(session, times, rate), told(session, more, rate), strict=True)
    )


@pytest.mark.parametrize("size", [None, -1, 0])
def test_no_bytes_change_nothing(session: Session, size: int | None) -> None:
    ((used_until,),) = rows(session, "SELECT quota_used_until(null, %s, %s, 10)", START_MS, size)
    assert used_until == (START_MS - 1000) * 1_000_000
