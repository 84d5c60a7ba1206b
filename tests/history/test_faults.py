"""The long runs of `make prove`, a few seconds of each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.support import history_chaos
from tests.support.every_point import points, strike_each
from tests.support.history_chaos import Chaos
from tests.support.proxy import Fault
from tests.support.servers import embedded

pytestmark = pytest.mark.long

EVERYTHING = (
    "connection", "client killed", "backend terminated", "connecting", "backend killed", "refused", "frozen",
    "server killed", "connection", "client killed",
)  # fmt: skip


@pytest.mark.timeout(240)
def test_every_kind_of_fault_once(tmp_path: Path) -> None:
    """On a server of its own, which is killed: nothing acknowledged is lost or there twice, order is kept,
    and the reader that started first skips nothing.
    """
    assert set(EVERYTHING) == set(history_chaos.KINDS)
    chaos = Chaos(
        faults=len(EVERYTHING), producers=2, others=1, partitions=2, pause_s=0.1, seed=1, fixed=EVERYTHING
    )
    with embedded() as server:
        report = history_chaos.run(server, server.create(), chaos, tmp_path / "history.jsonl")
    assert report.ok, report
    assert report.verdict.acknowledged > 100
    assert sum(report.faults.values()) == len(EVERYTHING)


@pytest.mark.timeout(240)
def test_a_fault_at_some_points_of_the_protocol(database: str, tmp_path: Path) -> None:
    """`make prove` has each fault befall each request; here are some of both, by strides."""
    results = list(islice(strike_each(database, tmp_path, points(list(Fault), stride=11)), 9))
    assert all(result.ok for result in results), [str(result) for result in results if not result.ok]
    assert sum(result.struck for result in results) > len(Fault)
