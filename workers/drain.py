"""Append what transactions have staged, when nobody waits for records who would do it.

A waiting consumer drains within milliseconds of a commit; this is for logs that are only written to for a
while, and for keeping the staging tables small.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from logstore import errors
from logstore.workers.connections import opened

__all__ = ["Drained", "run_once"]

MOST_RECORDS: Final = 10_000
"""What one transaction appends at most."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What one run came to."""

    records: int
    """How many came into the log."""
    emptied: int
    """How many pairs of staging tables were emptied."""

    def summary(self) -> str:
        """In one line."""
        return f"{self.records} records drained, {self.emptied} staging tables emptied"


def run_once(
    dsn: str, schema: str = "logstore", *, min_bytes: int = 8 << 20, stop: threading.Event | None = None
) -> Drained:
    """Append everything that committed transactions have staged, and wake those who wait for it.

    Staging tables that have been drained and are larger than ``min_bytes`` are emptied.  Stops early, without
    an error, when somebody else drains or holds a partition for longer than a moment, or when ``stop`` is
    set: what is left is for them, or for the next run.  It may be killed anywhere, and works through a
    pooler.  Raises ConnectionFailedError and what :func:`logstore.errors.from_server` makes of the server's
    errors.
    """
    records = emptied = 0
    with opened(dsn, schema, "drain") as connection:
        more = True
        while more and not (stop and stop.is_set()):
            try:
                row = connection.row("SELECT records, topic_ids, more FROM {}.drain(%s)", MOST_RECORDS)
            except errors.LockTimeoutError:
                break
            if row is None or row[1] is None:
                break
            appended, topic_ids, more = row
            records += appended
            if topic_ids:
                connection.rows("SELECT {}.wake(%s)", topic_ids)
        emptied = connection.value("SELECT {}.sweep_staged(%s)", min_bytes) or 0
    return Drained(records, emptied)
