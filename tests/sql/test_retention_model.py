"""Whatever happens to a topic, retention leaves of it what a small model of Kafka's rules leaves."""

from __future__ import annotations

from tests.support.clock import Clock
from tests.support.log_machine import LogMachine, hold
from tests.support.sqllog import Session


class Retention(LogMachine):
    cleanup = ("delete", "delete", "")


def test_retention_behaves_as_its_model(log_dsn: str, session: Session) -> None:
    with Clock(log_dsn) as clock:
        hold(Retention, log_dsn, session, clock, examples=3, steps=15)
