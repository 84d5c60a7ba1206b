"""Times as people type them."""

from __future__ import annotations

import pytest

from logstore.cli.timespec import format_time, parse_time_ms

NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("1432116317000", 1_432_116_317_000),
        ("90s", NOW - 90_000),
        ("1h30m", NOW - 5_400_000),
        ("1.5d", NOW - 129_600_000),
        ("250ms", NOW - 250),
        ("2015-05-20T10:05:17Z", 1_432_116_317_000),
        ("2015-05-20T12:05:17+02:00", 1_432_116_317_000),
        ("2015-05-20 10:05:17.250+00:00", 1_432_116_317_250),
    ],
)
def test_a_time_is_what_it_says(text: str, expected: int) -> None:
    assert parse_time_ms(text, NOW) == expected


@pytest.mark.parametrize("text", ["", " ", "soon", "5", "10x", "-1h", "2015-13-01", "1h ago", "123"])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time_ms(text, NOW)


def test_times_are_shown_in_utc() -> None:
    assert format_time(1_432_116_317_250) == "2015-05-20T10:05:17.250Z"
    assert format_time(253_402_300_799_999) == "9999-12-31T23:59:59.999Z"
    assert format_time(253_402_300_799_002) == "9999-12-31T23:59:59.002Z"
    assert format_time(2**62) == f"{2**62} ms"
