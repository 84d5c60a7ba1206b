"""A reader that has caught up looks often while records come and hardly at all while none do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.pace import BUSY_PERIOD_S, BUSY_S, QUICK_S, SHORTEST_S, UNDISTURBED_S, Pace, Way


def test_reader_that_is_woken_sleeps_until_then() -> None:
    pause = Pace(woken=True).pause(0.0)
    assert pause.way is Way.WAKE
    assert pause.seconds > 1.0  # less than one query a second


def test_one_record_is_no_reason_to_look_often() -> None:
    pace = Pace(woken=True)
    pace.found(1.0)
    assert pace.pause(1.0).way is Way.WAKE


def test_records_that_keep_coming_are_looked_for_often() -> None:
    pace = Pace(woken=True)
    pace.found(1.0)
    pace.found(1.001)
    assert pace.pause(1.002) == (Way.PAUSE, BUSY_PERIOD_S)
    assert pace.pause(1.002, look_s=0.0003).seconds == pytest.approx(BUSY_PERIOD_S - 0.0003)
    assert pace.pause(1.002, look_s=QUICK_S).seconds == pytest.approx(QUICK_S / 4)
    assert pace.pause(1.0 + BUSY_S + 0.002).way is Way.WAKE


def test_a_look_that_takes_long_never_takes_more_than_half_of_the_time() -> None:
    pace = Pace(woken=True)
    pace.found(1.0)
    pace.found(1.001)
    assert pace.pause(1.002, look_s=0.5).seconds == 0.5


@given(st.lists(st.booleans(), max_size=60))
def test_nobody_wakes_it(found: list[bool]) -> None:
    pace = Pace(woken=False)
    expected = SHORTEST_S
    for number, records in enumerate(found):
        if records:
            pace.found(float(number))
            expected = SHORTEST_S
        else:
            assert pace.pause(float(number)) == (Way.PAUSE, expected)
            expected = min(2 * expected, UNDISTURBED_S)


def test_longest_pause_is_what_was_asked_for() -> None:
    assert Pace(woken=True, longest_s=60.0).pause(0.0).seconds == 60.0
    looking = Pace(woken=False, longest_s=0.012)
    assert [looking.pause(0.0).seconds for _ in range(4)] == [0.005, 0.01, 0.012, 0.012]
    looking.found(1.0)
    assert looking.pause(1.0).seconds == 0.005
    for woken in (False, True):
        assert Pace(woken=woken, longest_s=0.0).pause(0.0).seconds == BUSY_PERIOD_S, (
            "a processor is not for this"
        )
