"""Give back the space of deleted topics.

``delete_topic`` takes a topic out of the catalog at once; its tables are dropped here, afterwards, because
detaching a table without blocking anybody cannot happen inside a function or a transaction.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from logstore import errors
from logstore.workers.connections import Limits, opened

__all__ = ["Reclaimed", "run_once"]

LOCK_TIMEOUT_MS: Final = 2000


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What one run came to."""

    dropped: tuple[int, ...]
    """The ids of the topics that are gone for good."""
    waiting: tuple[int, ...]
    """The ids of the topics whose tables somebody still uses, in a transaction that is open: next time."""

    def summary(self) -> str:
        """In one line."""
        return f"{len(self.dropped)} deleted topics reclaimed, {len(self.waiting)} in use"


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    stop: threading.Event | None = None,
) -> Reclaimed:
    """Drop the tables of every topic that was deleted and return which those were.

    It never blocks an append or a read, waits at most ``lock_timeout_ms`` for each lock, and may be killed
    anywhere: the next run goes on from what it finds.  Only one run at a time does anything, however many
    processes call it.  Does nothing through a pooler, which would lend its lock to others; needs the owner of
    the log.  Raises ConnectionFailedError and what :func:`logstore.errors.from_server` makes of the server's
    errors.
    """
    dropped: list[int] = []
    waiting: list[int] = []
    limits = Limits(lock_timeout_ms=lock_timeout_ms)
    with opened(dsn, schema, "reclaim", limits) as connection:
        if connection.pooled or not connection.alone("reclaim"):
            return Reclaimed((), ())
        while not (stop and stop.is_set()):
            step = connection.row("SELECT topic_id, statement FROM {}.next_reclaim(%s)", waiting)
            if step is None:
                break
            topic_id, statement = step
            try:
                connection.apart(statement)
            except errors.LockTimeoutError:
                waiting.append(topic_id)
            else:
                if statement.startswith("delete"):
                    dropped.append(topic_id)
    return Reclaimed(tuple(dropped), tuple(waiting))
