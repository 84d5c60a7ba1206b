"""The long runs of `make prove`, a few seconds of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import history_chaos
from tests.support.history_chaos import Chaos
from tests.support.servers import embedded

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
