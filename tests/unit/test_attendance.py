"""One session drains: often while records are staged, when it is rung for otherwise, hardly ever if idle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.attendance import (
    BUSY_S,
    FAILED_S,
    LONGEST_S,
    PERIOD_S,
    QUIET_S,
    UNDISTURBED_S,
    Attendance,
)
from logstore._core.pace import UNDISTURBED_S as FETCH_S


def seated(now: float = 0.0) -> Attendance:
    attendance = Attendance(able=True)
    attendance.took_the_seat(now)
    return attendance


def armed(now: float = 0.0) -> Attendance:
    attendance = seated(now - QUIET_S)
    assert attendance.should_arm(now)
    attendance.has_armed()
    attendance.drained(now, 0, more=False)
    return attendance


def test_it_looks_at_once() -> None:
    assert Attendance(able=True).due_in(5.0) == 0
    assert Attendance(able=False).due_in(5.0) == 0


def test_who_has_the_seat_looks_often_until_it_has_been_quiet() -> None:
    attendance = seated()
    attendance.drained(0.01, 3, more=False)
    assert attendance.due_in(0.01) == pytest.approx(PERIOD_S)
    assert not attendance.should_arm(0.01 + QUIET_S / 2)
    assert attendance.should_arm(0.02 + QUIET_S)


def test_after_arming_it_looks_once_more() -> None:
    attendance = seated()
    attendance.drained(QUIET_S, 0, more=False)
    attendance.has_armed()
    assert attendance.due_in(QUIET_S) == 0
    attendance.drained(QUIET_S, 0, more=False)
    assert attendance.due_in(QUIET_S) == UNDISTURBED_S
    assert not attendance.should_arm(QUIET_S + 1)


def test_a_single_commit_leaves_it_armed() -> None:
    attendance = armed()
    attendance.rung()
    assert attendance.due_in(1.0) == 0
    attendance.drained(1.0, 1, more=False)
    assert not attendance.should_disarm(1.0)
    attendance.rung()
    attendance.drained(1.0 + 2 * BUSY_S, 1, more=False)
    assert not attendance.should_disarm(1.0 + 2 * BUSY_S)


def test_commits_that_keep_coming_disarm_it() -> None:
    attendance = armed()
    attendance.drained(1.0, 1, more=False)
    attendance.drained(1.01, 1, more=False)
    assert attendance.should_disarm(1.01)
    attendance.has_disarmed(1.01)
    assert attendance.due_in(1.01) == pytest.approx(PERIOD_S)
    assert not attendance.should_arm(1.02)


def test_the_rest_of_a_large_part_does_not_wait() -> None:
    for attendance in (seated(), armed(), Attendance(able=True), Attendance(able=False)):
        attendance.drained(1.0, 10, more=True)
        assert attendance.due_in(1.0) == 0


def test_after_an_error_it_waits() -> None:
    attendance = seated()
    attendance.failed(1.0)
    assert attendance.due_in(1.0) == FAILED_S


def test_an_idle_reader_stays_below_one_query_a_second() -> None:
    """With or without the seat, draining and fetching take turns of this length."""
    for attendance in (armed(), Attendance(able=True)):
        attendance.drained(1.0, 0, more=False)
        assert 1 / attendance.due_in(1.0) + 1 / (2 * FETCH_S) < 0.9


@given(st.lists(st.booleans(), max_size=40))
def test_who_can_have_no_seat_looks_ever_less_often(found: list[bool]) -> None:
    attendance, now, last = Attendance(able=False), 0.0, 0.0
    for each in found:
        attendance.drained(now, int(each), more=False)
        pause = attendance.due_in(now)
        assert pause <= LONGEST_S + 1e-6
        assert each or pause >= last - 1e-6
        last = 0.0 if each else pause
        now += pause
