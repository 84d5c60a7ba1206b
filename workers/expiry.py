"""Forget what nobody has used for long: members, groups, offsets, producers, transactional ids, locks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, LiteralString

from logstore.workers.connections import Connection, opened
from logstore.workers.job import Attempts

__all__ = ["Expired", "run_once"]

DAY_MS: Final = 86_400_000
GROUPS: Final = 100
"""How many groups one transaction looks at."""
ROWS: Final = 5_000
"""How many rows one transaction deletes."""


@dataclass(frozen=True, slots=True)
class Expired:
    """What one run came to."""

    members: int = 0
    """Members of groups whose lease had run out."""
    groups: int = 0
    """Groups without members and without offsets."""
    offsets: int = 0
    """Committed offsets."""
    producers: int = 0
    """What was remembered of idempotent producers, a partition each."""
    transactional_ids: int = 0
    share_ranges: int = 0
    """Ranges of records in share groups whose lock ran out at their last delivery."""
    quota_buckets: int = 0
    """Of clients that have a default quota and have used nothing of it for an hour."""

    def summary(self) -> str:
        """In one line."""
        found = [
            f"{number} {what}"
            for number, what in (
                (self.members, "members"),
                (self.groups, "groups"),
                (self.offsets, "committed offsets"),
                (self.producers, "producer states"),
                (self.transactional_ids, "transactional ids"),
                (self.share_ranges, "ranges of share groups"),
                (self.quota_buckets, "quota buckets"),
            )
            if number
        ]
        return f"{', '.join(found)} expired" if found else "nothing expired"


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    offsets_retention_minutes: int = 10_080,
    producer_id_expiration_ms: int = DAY_MS,
    transactional_id_expiration_ms: int = 7 * DAY_MS,
    stop: threading.Event | None = None,
) -> Expired:
    """Delete what has expired, a bounded number of rows a transaction, and say how much.

    ``offsets_retention_minutes``: for groups without a setting of their own; a week, as in Kafka, and so are
    ``producer_id_expiration_ms``, a day, and ``transactional_id_expiration_ms``, a week (at least two hours).
    What somebody has locked is left for the next run.  It may be killed anywhere, and works through a pooler.
    Raises ConnectionFailedError and what :func:`logstore.errors.from_server` makes of the server's errors:
    that the dead-letter topic of a share group is gone, after all else.
    """
    with opened(dsn, schema, "expiry") as connection:
        run = _Run(connection, stop or threading.Event())
        groups, members, offsets = run.groups(offsets_retention_minutes)
        expired = Expired(
            members=members,
            groups=groups,
            offsets=offsets + run.emptied("SELECT {}.expire_orphaned_offsets(%s)", ROWS),
            producers=run.emptied("SELECT {}.expire_producers(%s, %s)", producer_id_expiration_ms, ROWS),
            transactional_ids=run.emptied(
                "SELECT {}.expire_transactional_ids(%s, %s)", transactional_id_expiration_ms, ROWS
            ),
            share_ranges=run.share_locks(),
            quota_buckets=run.emptied("SELECT {}.expire_quota_buckets(%s)", 100),
        )
    run.attempts.settle()
    return expired


class _Run:
    def __init__(self, connection: Connection, stop: threading.Event) -> None:
        self._connection = connection
        self._stop = stop
        self.attempts = Attempts()

    def groups(self, retention_minutes: int) -> tuple[int, int, int]:
        reached = -1
        found = [0, 0, 0]
        while not self._stop.is_set():
            row = self._connection.row(
                "SELECT last_group, groups, members, offsets FROM {}.expire_groups(%s, %s, %s)",
                reached,
                GROUPS,
                retention_minutes,
            )
            if row is None or row[0] is None:
                break
            reached = row[0]
            found = [total + number for total, number in zip(found, row[1:], strict=True)]
        return found[0], found[1], found[2]

    def emptied(self, query: LiteralString, *args: int) -> int:
        """Repeat a query that takes up to ROWS rows, its last argument, until it finds fewer."""
        total = 0
        while not self._stop.is_set():
            gone = self._connection.value(query, *args)
            total += gone
            if gone < args[-1]:
                break
        return total

    def share_locks(self) -> int:
        total = 0
        for (group_id,) in self._connection.rows("SELECT {}.share_groups_with_spent_locks()"):
            # Its dead-letter topic may be gone.
            with self.attempts.one():
                total += self.emptied("SELECT {}.expire_share_locks(%s, %s)", group_id, 1000)
        return total
