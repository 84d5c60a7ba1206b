"""kill -9 of processes in the middle: the table, the output and the offsets agree to the last record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.exactly_once_chaos import Outcome, Payment, Plan, check, run

pytestmark = pytest.mark.long


def test_workers_may_be_killed_frozen_and_cut_off_at_any_time(database: str) -> None:
    outcome = run(database, Plan(faults=8))
    assert outcome.problems == []
    assert len(outcome.output) == len(outcome.paid) == 8 * 150


PAID = {0: (1, 10), 1: (2, 5), 2: (1, 7)}
OUTPUT = [Payment(0, 1, 10), Payment(2, 1, 17), Payment(1, 2, 5)]
FINE = Outcome(Plan(), 1.0, 0, PAID, {1: (17, 2), 2: (5, 1)}, OUTPUT, 0)


def test_what_agrees_is_fine() -> None:
    assert check(FINE) == []


@pytest.mark.parametrize(
    ("problem", "changed"),
    [
        ("account 1 is (27, 3)", replace(FINE, balances={1: (27, 3), 2: (5, 1)})),
        ("account 2 is None", replace(FINE, balances={1: (17, 2)})),
        ("payment 0 came out 2 times", replace(FINE, output=[OUTPUT[0], *OUTPUT])),
        ("payment 1 never came out", replace(FINE, output=OUTPUT[:2])),
        ("payment 9 was never made", replace(FINE, output=[*OUTPUT, Payment(9, 1, 1)])),
        ("comes after 2", replace(FINE, output=[OUTPUT[1], OUTPUT[0], OUTPUT[2]])),
        ("should leave 17", replace(FINE, output=[OUTPUT[0], Payment(2, 1, 27), OUTPUT[2]])),
        ("3 records behind", replace(FINE, lag=3)),
    ],
)
def test_the_checker_finds_each_fault(problem: str, changed: Outcome) -> None:
    problems = check(changed)
    assert any(problem in each for each in problems), problems
