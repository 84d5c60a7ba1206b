"""Whatever happens to a topic, compaction leaves of it what a small model of Kafka's rules leaves."""

from __future__ import annotations

from tests.support.clock import Clock
from tests.support.log_machine import LogMachine, hold
from tests.support.sqllog import Session


class Compaction(LogMachine):
    cleanup = ("compact", "compact", "compact,delete")


def test_compaction_behaves_as_its_model(log_dsn: str, session: Session) -> None:
    with Clock(log_dsn) as clock:
        hold(Compaction, log_dsn, session, clock, examples=3, steps=15)
