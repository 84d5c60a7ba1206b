"""kill -9 of members of a share group, at random: nothing is lost, repeated too often or out of order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.share_chaos import Event, Plan, Report, check, run

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "plan",
    [Plan(1500, partitions=2, keys=60), Plan(4000, key_ordered=False, seed=1)],
    ids=["keyed", "plain"],
)
def test_members_may_be_killed_at_any_time(database: str, tmp_path: Path, plan: Plan) -> None:
    report = run(database, plan, tmp_path / "journal")
    assert report.problems == []
    assert len(report.journal) >= 2 * plan.records - 1000


FINE = [
    Event("d", "m", 0, 0, "A", 1),
    Event("d", "m", 0, 1, "B", 1),
    Event("a", "m", 0, 0, "A", 1),
    Event("d", "n", 0, 2, "A", 1),
    Event("d", "n", 0, 1, "B", 2),
    Event("a", "n", 0, 1, "B", 2),
    Event("a", "n", 0, 2, "A", 1),
]
REPORT = Report(Plan(3, limit=2), 1.0, 1, FINE, set(), {0: 3}, 0)


def test_a_history_without_faults_is_fine() -> None:
    assert check(REPORT) == []
    assert check(replace(REPORT, journal=FINE[:1] + FINE[2:4], dead={(0, 1)})) == []


@pytest.mark.parametrize(
    ("fault", "journal"),
    [
        ("never delivered", [FINE[0], *FINE[2:4]]),
        ("accepted 2 times", [*FINE, FINE[-1]]),
        ("delivered after it had been accepted", [*FINE, Event("d", "m", 0, 2, "A", 2)]),
        ("was delivered [1, 2, 3] times", [*FINE[:5], Event("d", "m", 0, 1, "B", 3), FINE[5]]),
        ("as number 1 after [1]", [*FINE[:4], Event("d", "n", 0, 1, "B", 1)]),
        ("was delivered after 2", [FINE[3], FINE[0], FINE[1]]),
    ],
)
def test_the_checker_finds_each_fault(fault: str, journal: list[Event]) -> None:
    problems = check(replace(REPORT, journal=journal))
    assert any(fault in problem for problem in problems), problems


def test_the_checker_finds_rows_that_are_left() -> None:
    assert check(replace(REPORT, left=1)) == ["1 rows are left of finished records"]
    assert check(replace(REPORT, dead={(0, 0)})) == ["(0, 0) was accepted and is a dead letter"]
