"""A quota that changes holds while the sessions of its clients are killed, and nothing is left behind."""

from __future__ import annotations

from tests.support.quota_chaos import Plan, run


def test_clients_that_share_a_quota(database: str) -> None:
    outcome = run(database, Plan(seconds=4, changes=1, kills=8))
    assert outcome.problems == []
    assert outcome.acknowledged > 0
    assert outcome.kills > 0
