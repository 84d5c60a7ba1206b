"""When jobs are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from logstore.errors import ConfigurationError
from logstore.workers.schedule import JITTER, LONGEST_PAUSE_S, Cron, Every, pause_s, seconds, shown

SUNDAY = datetime(2026, 11, 22, 18, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "then"),
    [
        ("*/5 * * * *", "2026-11-22 18:35"),
        ("31 * * * *", "2026-11-22 18:31"),
        ("0 3 * * *", "2026-11-23 03:00"),
        # As in crontab, and not as APScheduler counts: Sunday is 0 and 7, Monday 1.
        ("0 20 * * 0", "2026-11-22 20:00"),
        ("0 20 * * 7", "2026-11-22 20:00"),
        ("0 20 * * 1", "2026-11-23 20:00"),
        ("0 20 * * sun", "2026-11-22 20:00"),
        ("0 20 * * 1-5", "2026-11-23 20:00"),
        ("0 20 * * 5-7", "2026-11-22 20:00"),
        ("0 20 * * 2,4", "2026-11-24 20:00"),
        ("0 20 * * */3", "2026-11-22 20:00"),
        ("0 20 * * 1/3", "2026-11-23 20:00"),
        # One of the two days has to fit, where both are given.
        ("0 0 24 * 5", "2026-11-24 00:00"),
        ("0 0 28 * 5", "2026-11-27 00:00"),
        ("0 0 1 2 *", "2027-02-01 00:00"),
    ],
)
def test_cron(expression: str, then: str) -> None:
    found = SUNDAY + timedelta(seconds=Cron(expression).next_in_s(SUNDAY))
    assert found.strftime("%Y-%m-%d %H:%M") == then


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "x * * * *",
        "* * * * 8",
        "* * * * mo",
        "0 0 31 2 *",
        "@daily",
    ],
)
def test_no_cron(expression: str) -> None:
    with pytest.raises(ConfigurationError):
        Cron(expression)


def test_intervals_have_some_jitter() -> None:
    found = {Every(10).next_in_s(SUNDAY) for _ in range(100)}
    assert len(found) > 50
    assert min(found) >= 10
    assert max(found) <= 10 * (1 + JITTER)


@pytest.mark.parametrize(
    ("text", "found"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("7d", 604800), ("9", 9)]
)
def test_interval(text: str, found: float) -> None:
    assert seconds(text) == found
    assert seconds(shown(found)) == found


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 minutes", "1e3", "inf"])
def test_no_interval(text: str) -> None:
    with pytest.raises(ConfigurationError):
        seconds(text)


@pytest.mark.parametrize("number", [0.0, 0.05, 4e7])
def test_an_interval_out_of_range(number: float) -> None:
    with pytest.raises(ConfigurationError):
        Every(number)


def test_pauses_grow_with_failures_and_end_somewhere() -> None:
    pauses = [pause_s(failures, 2.0) for failures in range(1, 40)]
    assert all(later > earlier for earlier, later in pairwise(pauses[:6]))
    assert pauses[-1] <= LONGEST_PAUSE_S
    assert pause_s(1, 3600.0) <= 3600.0
