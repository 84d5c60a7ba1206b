"""Reading in tests."""

from __future__ import annotations

from typing import Any, Final

from logstore.records import ConsumerRecord

__all__ = ["ENOUGH_MS", "read"]

ENOUGH_MS: Final = 60_000
"""How long a test waits for what has to come; it never waits that long."""


def read(consumer: Any, count: int, **options: Any) -> list[ConsumerRecord]:
    """The next ``count`` records."""
    got: list[ConsumerRecord] = []
    while len(got) < count:
        for records in consumer.poll(timeout_ms=ENOUGH_MS, **options).values():
            got += records
    return got
