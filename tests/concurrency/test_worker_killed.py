"""The worker is killed, or loses its session or its server, in the middle of a job; another finishes it."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.support.log_story import told
from tests.support.servers import Server, embedded
from tests.support.worker_killed import Blow, Point, points, strike_each

pytestmark = pytest.mark.long


POINTS = (
    # A table is about to go; the catalog must not have forgotten it.
    Point(Blow.BEFORE, 1, rb"drop_leaf|drop table logstore.b_1_"),
    # A file is there that nobody knows to be whole.
    Point(Blow.BEFORE, 0, rb"finish_copy"),
    Point(Blow.SESSION, 0, rb"detach partition"),
)


def test_whatever_the_worker_was_doing(server: Server, long_version: bool) -> None:
    with told(server) as story:
        results = list(strike_each(story, POINTS))
        if long_version:
            blows = (Blow.AFTER, Blow.SESSION, Blow.BEFORE, Blow.CRASH)
            results += islice(strike_each(story, points(blows, 61, 25)), 8)
    assert [result.struck for result in results[: len(POINTS)]] == [True] * len(POINTS)
    assert [str(result) for result in results if result.wrong] == []


def test_the_server_is_killed_under_the_worker() -> None:
    with embedded() as server, told(server) as story:
        results = list(islice(strike_each(story, points([Blow.SERVER], 40, 25)), 2))
    assert [result.struck for result in results] == [True, True]
    assert [str(result) for result in results if result.wrong] == []
