"""Transactions of every kind stage records at once, and everybody is killed now and then."""

from __future__ import annotations

import pytest

from tests.support.outbox_chaos import Terms, run

pytestmark = pytest.mark.long


def test_every_committed_record_once_in_causal_order_and_nobody_waits(database: str) -> None:
    # Waiting for a sleeper takes longer than the lock time-out, and nothing else does.
    outcome = run(database, Terms(seconds=4.0, sleep_s=2.0, lock_timeout_ms=800, seed=7))
    assert outcome.wrong == []
    assert outcome.blocked == []
    assert outcome.committed > 20
    assert outcome.swept > 0
