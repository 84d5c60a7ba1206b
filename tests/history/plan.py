"""What the actors of a workload have in common."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from logstore.errors import (
    BufferExhaustedError,
    InvalidTimestampError,
    LogstoreError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)

__all__ = ["NOT_WRITTEN", "PATIENT", "Plan", "Sign", "Stop", "patiently"]

T = TypeVar("T")

NOT_WRITTEN: Final = (
    BufferExhaustedError,
    InvalidTimestampError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)
"""Errors of a send after which the record is certainly not there."""
PATIENT: Final[Mapping[str, Any]] = {
    "linger_ms": 1, "retry_backoff_ms": 5, "retry_backoff_max_ms": 100, "request_timeout_ms": 3000,
    "delivery_timeout_ms": 60_000, "client_id": "chaos",
}  # fmt: skip
"""A producer that notices a dead connection soon and does not give up soon."""


@dataclass(frozen=True)
class Plan:
    """What the actors of one run have in common."""

    dsn: str
    path: Path
    topic: str = "t"
    partitions: int = 4
    seed: int = 0
    acks: Any = "all"
    records: int = 1_000_000
    """After so many a sender stops."""
    window: int = 64
    """A sender waits for its oldest record when so many are under way."""
    pause_s: float = 0.0005
    """Between sends, on average."""
    group: str = "g"
    """Of subscribers."""
    producer: Mapping[str, Any] = field(default_factory=dict)
    consumer: Mapping[str, Any] = field(default_factory=dict)

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def names(self) -> list[str]:
        return [f"{self.topic}-{number}" for number in range(self.partitions)]


class Stop(Protocol):
    """``threading.Event``, and :class:`Sign` among processes."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float, /) -> bool: ...


@dataclass(frozen=True)
class Sign:
    """An event for processes that may be killed at any moment: it has no lock that could die with one."""

    path: Path

    def set(self) -> None:
        self.path.touch()

    def is_set(self) -> bool:
        return self.path.exists()

    def wait(self, timeout: float, /) -> bool:
        time.sleep(timeout)
        return self.is_set()


def patiently(make: Callable[[], T], stop: Stop) -> T | None:
    """What ``make`` makes, as soon as a server answers; None: it is time to stop."""
    while not stop.is_set():
        try:
            return make()
        except LogstoreError as error:
            if not error.retriable:
                raise
            stop.wait(0.05)
    return None
