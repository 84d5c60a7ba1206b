"""Count what is in each topic; freeze and analyze leaves that nobody writes to any more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

import psycopg

from logstore import errors
from logstore.workers.connections import Connection, Limits, opened

__all__ = ["Measured", "run_once"]

TOPICS: Final = 50
"""How many topics one transaction counts."""
COLUMNS: Final = "topic_id, segment, partition, base_offset, last_offset, record_count, max_timestamp"
"""What is worth analyzing: of the arrays nothing that the planner could use would be learnt, at a price."""
LONGEST_S: Final = 60.0
"""After this no further leaf is begun."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run came to."""

    topics: int
    records: int
    """In all topics."""
    bytes: int
    frozen: tuple[str, ...] = ()
    """Leaves that were vacuumed: the server need not do it when their rows get too old."""
    analyzed: tuple[str, ...] = ()
    more: bool = False
    """There are leaves left to look after."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.topics} topics with {self.records} records in {self.bytes} bytes, "
            f"{len(self.frozen)} leaves frozen, {len(self.analyzed)} analyzed"
        )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    freeze_age: int = 50_000_000,
    most_leaves: int = 20,
    stop: threading.Event | None = None,
) -> Measured:
    """Write how much is in each topic to ``topic_statistics``, and look after up to ``most_leaves`` leaves.

    A leaf that nobody writes to any more is vacuumed once its rows are older than ``freeze_age``
    transactions; one that is dropped before that never is.  Nothing waits for a lock that somebody has.  It
    may be killed anywhere, works through a pooler, and needs the owner of the log.  Raises
    ConnectionFailedError and what :func:`logstore.errors.from_server` makes of the server's errors.
    """
    stop = stop or threading.Event()
    with opened(dsn, schema, "statistics", Limits(statement_timeout_ms=600_000)) as connection:
        topics, records, size = _measure(connection, stop)
        frozen: list[str] = []
        analyzed: list[str] = []
        more = False
        leaves = connection.rows(
            "SELECT leaf, to_freeze, to_analyze FROM {}.leaves_to_tend(%s, %s)", freeze_age, most_leaves
        )
        # What somebody has locked is passed over, with a warning.
        warnings: list[psycopg.errors.Diagnostic] = []
        connection.raw.add_notice_handler(warnings.append)
        began = time.monotonic()
        for leaf, freeze, analyze in leaves:
            if stop.is_set() or time.monotonic() - began > LONGEST_S:
                more = True
                break
            try:
                for wanted, command, done in (
                    (freeze, f"VACUUM (FREEZE, TRUNCATE off, SKIP_LOCKED) {leaf}", frozen),
                    (analyze, f"ANALYZE (SKIP_LOCKED) {leaf} ({COLUMNS})", analyzed),
                ):
                    warnings.clear()
                    if wanted:
                        connection.apart(command)
                        if not warnings:
                            done.append(leaf)
            except errors.ServerError as error:
                # It has been dropped since.
                if error.details.get("sqlstate") != "42P01":
                    raise
        return Measured(topics, records, size, tuple(frozen), tuple(analyzed), more)


def _measure(connection: Connection, stop: threading.Event) -> tuple[int, int, int]:
    reached = -1
    found = [0, 0, 0]
    while not stop.is_set():
        row = connection.row(
            "SELECT last_topic, topics, records, bytes FROM {}.measure_topics(%s, %s)", reached, TOPICS
        )
        if row is None or row[0] is None:
            break
        reached = row[0]
        found = [total + number for total, number in zip(found, row[1:], strict=True)]
    return found[0], found[1], found[2]
