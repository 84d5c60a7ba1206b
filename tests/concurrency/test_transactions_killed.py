"""Transactions by producers that abort, are killed and are fenced: all parts are seen, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.transfer_chaos import Outcome, Plan, Snapshots, check, run


def test_a_reader_sees_all_of_a_transaction_or_nothing(database: str, tmp_path: Path) -> None:
    outcome = run(database, Plan(), tmp_path)
    assert outcome.problems == []
    said = set(outcome.said.values())
    assert said >= {"committed", "aborted", "fenced"}
    assert "failed" not in said
    assert outcome.snapshots.count > 10


WHOLE = [("a", 0, 0, "1:0 0 2"), ("b", 0, 0, "1:0 1 2")]
SAID = {"1:0": "committed", "1:1": "aborted", "2:0": "begun"}


def outcome(*looks: list[tuple[str, int, int, str]], said: dict[str, str] = SAID) -> Outcome:
    snapshots = Snapshots()
    for rows in looks:
        snapshots.look(rows)
    return Outcome(Plan(), 1.0, said, snapshots, 0)


def test_whole_transactions_are_fine() -> None:
    assert check(outcome(WHOLE)) == []
    assert check(outcome(WHOLE, [("a", 0, 1, "2:0 0 1")])) == []


@pytest.mark.parametrize(
    ("problem", "changed"),
    [
        ("1 of 2 parts", outcome(WHOLE[:1])),
        ("1 of 2 parts", outcome(WHOLE[:1], WHOLE[1:])),
        ("goes on with 1 instead of 0", outcome([("a", 0, 1, "2:0 0 1")], said={"2:0": "begun"})),
        ("is there 2 times", outcome(WHOLE, [("a", 0, 1, "1:0 0 2")])),
        ("committed and is not there", outcome()),
        ("aborted and is there", outcome(WHOLE, [("a", 0, 1, "1:1 0 1")])),
        ("fenced and is there", outcome(WHOLE, said={"1:0": "fenced"})),
        ("nobody knows of 1:0", outcome(WHOLE, said={})),
        ("comes after 1", outcome([("a", 0, 0, "1:1 0 1"), ("a", 0, 1, "1:0 0 1")])),
        ("1 deadlocks", replace(outcome(WHOLE), deadlocks=1)),
    ],
)
def test_the_checker_finds_each_fault(problem: str, changed: Outcome) -> None:
    problems = check(changed)
    assert any(problem in each for each in problems), problems
