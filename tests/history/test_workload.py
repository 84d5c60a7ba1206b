"""Real clients on a real server, nothing failing: a history that exercises everything, and is clean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.history.checker import check
from tests.history.record import FAIL, OK, read_history
from tests.history.workload import Crew, Plan, finish
from tests.support.appender import Appender
from tests.support.programs import eventually

RECORDS = 400


@pytest.mark.parametrize("seed", [1, 2])
def test_a_quiet_run_is_clean(database: str, tmp_path: Path, seed: int) -> None:
    plan = Plan(database, tmp_path / "history.jsonl", seed=seed, records=RECORDS)
    with Appender(database) as appender:
        appender.create("t", plan.partitions, segment_bytes="20000")
    crew = Crew(plan)
    for actor, count in {
        "reader": 1, "wanderer": 1, "subscriber": 2, "marks": 1, "sender": 3, "committer": 2, "transactor": 3,
        "processor": 2,
    }.items():  # fmt: skip
        for number in range(count):
            crew.start(actor, f"{actor}{number}")

    def enough() -> bool:
        crew.check()
        ended = Counter((op.kind, op.process[:5]) for op in read_history(plan.path) if op.outcome == OK)
        return (
            ended["send", "sende"] > RECORDS
            and ended["commit", "subsc"] > 5
            and all(ended["txn", each] > 10 for each in ("commi", "trans", "proce"))
            and all(ended["claim", each] > 1 for each in ("subsc", "proce"))
        )

    try:
        eventually(enough, "everybody has done something", 90)
    finally:
        crew.close()
    finish(plan)
    history = read_history(plan.path)
    kinds = Counter((op.kind, op.outcome) for op in history)
    assert kinds["txn", FAIL], "some transactions were rolled back"
    assert all(kinds[kind, OK] for kind in ("send", "poll", "assign", "marks", "commit", "claim")), kinds
    verdict = check(history)
    assert verdict.ok, verdict
    assert verdict.acknowledged > RECORDS
