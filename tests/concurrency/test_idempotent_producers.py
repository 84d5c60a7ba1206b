"""Eight producers on the same partitions, while requests, answers, connections and backends are lost."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.colours import Colour, Threads
from tests.support.producer_chaos import Plan, kill_server, run
from tests.support.servers import embedded

pytestmark = pytest.mark.long


def test_every_record_is_there_once_and_in_order(colour: Colour, database: str, long_version: bool) -> None:
    outcome = run(colour, database, Plan(faults=40 if long_version else 16))
    assert outcome.problems == []
    assert outcome.acknowledged > (500 if long_version else 200)


def test_a_server_that_is_killed_forgets_nothing() -> None:
    colour = Threads()
    with embedded() as server:
        try:
            plan = Plan(faults=9, producers=3, kill_every=4, seed=2)
            outcome = run(colour, server.create(), plan, partial(kill_server, server))
        finally:
            colour.close()
    assert outcome.problems == []
    assert outcome.acknowledged > 50
