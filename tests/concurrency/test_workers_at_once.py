"""Two workers at once, one of which is killed now and then, beside producers and consumers."""

from __future__ import annotations

import pytest

from tests.support.worker_chaos import Plan, run

pytestmark = pytest.mark.long


def test_workers_beside_producers_and_consumers(database: str) -> None:
    outcome = run(database, Plan(batches=600, workers=3, kills=6))
    assert outcome.problems == []
    assert outcome.acknowledged == 3600
