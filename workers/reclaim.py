"""Give back the space of deleted topics and of dropped segments.

``delete_topic`` and retention take topics and segments out of the catalog at once; their tables are dropped
here, afterwards, because detaching a table without blocking anybody cannot happen inside a function or a
transaction.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from logstore import errors
from logstore.workers.connections import Connection, Limits, opened
from logstore.workers.reserve import keep, spent

__all__ = ["Reclaimed", "run_once"]

LOCK_TIMEOUT_MS: Final = 2000
FINALIZE_TIMEOUT_MS: Final = 400
LARGE: Final = 16 << 20
"""Bytes of a table from which on dropping it keeps the file system, and so every commit, busy for a while."""
REST: Final = 20
LONGEST_REST_S: Final = 1.0
"""After a large one, so many times as long as it took, and at most so many seconds, nothing is dropped."""


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What one run came to."""

    dropped: tuple[int, ...]
    """The ids of the topics that are gone for good."""
    waiting: tuple[int, ...]
    """The ids of the topics whose tables somebody still uses, in a transaction that is open: next time."""
    segments: int = 0
    """How many dropped segments are gone for good."""
    bytes: int = 0
    """What they had on disk."""
    segments_waiting: tuple[int, ...] = ()
    """The ids of the topics that have dropped segments which somebody still uses: next time."""
    rested_s: float = 0.0
    """How long, between large ones, nothing was done so that commits had the disk."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.segments} segments ({self.bytes:,} bytes) and {len(self.dropped)} deleted topics"
            " reclaimed, "
            f"{len(self.waiting) + len(self.segments_waiting)} topics in use"
        )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    stop: threading.Event | None = None,
) -> Reclaimed:
    """Drop the tables of every topic that was deleted and of every segment that was dropped; say which.

    It never blocks an append or a read, waits at most ``lock_timeout_ms`` for each lock, and may be killed
    anywhere: the next run goes on from what it finds.  After each large table it rests, so that commits have
    the disk, unless that is full.  Only one run at a time does anything, however many
    processes call it.  Does nothing through a pooler, which would lend its lock to
    others; needs the owner of the log.  Raises ConnectionFailedError and what
    :func:`logstore.errors.from_server` makes of the server's errors.
    """
    stop = stop or threading.Event()
    limits = Limits(lock_timeout_ms=lock_timeout_ms)
    with opened(dsn, schema, "reclaim", limits) as connection:
        if connection.pooled or not connection.alone("reclaim"):
            return Reclaimed((), ())
        dropped, waiting = _topics(connection, stop)
        # Nobody is waited for: what has to be dropped again after a crash or a failover is dropped again.
        connection.rows("SELECT set_config('synchronous_commit', 'off', false)")
        segments, freed, in_use, rested_s = _segments(connection, lock_timeout_ms, stop)
        keep(connection)
        # Closing gives it back as well, but when the server comes to it: the next run may be there before.
        connection.shared("reclaim")
    return Reclaimed(dropped, waiting, segments, freed, in_use, rested_s)


def _topics(connection: Connection, stop: threading.Event) -> tuple[tuple[int, ...], tuple[int, ...]]:
    dropped: list[int] = []
    waiting: list[int] = []
    while not stop.is_set():
        step = connection.row("SELECT topic_id, statement FROM {}.next_reclaim(%s)", waiting)
        if step is None:
            break
        topic_id, statement = step
        try:
            connection.apart(statement)
        except errors.LockTimeoutError:
            waiting.append(topic_id)
        except errors.StorageFullError:
            if not spent(connection):
                raise
        else:
            if statement.startswith("delete"):
                dropped.append(topic_id)
    return tuple(dropped), tuple(waiting)


def _segments(
    connection: Connection, lock_timeout_ms: int, stop: threading.Event
) -> tuple[int, int, tuple[int, ...], float]:
    patience = {
        # Waits for those who use the topic, one after the other, and keeps nobody from it meanwhile.
        "detach": lock_timeout_ms,
        # Waits for every snapshot with the leaf locked, which an old snapshot might be about to read.
        "finalize": min(lock_timeout_ms, FINALIZE_TIMEOUT_MS),
        # Nobody looks for it any more. After a second the server stops an autovacuum that is at it.
        "drop": lock_timeout_ms,
    }
    segments = freed = 0
    rested_s = 0.0
    hurried = False
    in_use: list[int] = []
    timeout_ms = None
    while not stop.is_set():
        step = connection.row("SELECT topic_id, bytes, action, statement FROM {}.next_drop(%s)", in_use)
        if step is None:
            break
        topic_id, size, action, statement = step
        if timeout_ms != patience[action]:
            timeout_ms = patience[action]
            connection.rows("SELECT set_config('lock_timeout', %s, false)", str(timeout_ms))
        begun = time.monotonic()
        try:
            connection.apart(statement)
        except (errors.LockTimeoutError, errors.RequestTimedOutError):
            # What a detach could not wait for, finalizing may not have to.
            if action != "detach":
                in_use.append(topic_id)
        except errors.StorageFullError:
            # Half of it may be done: what comes next follows from what is there.
            if not spent(connection):
                raise
            hurried = True
        else:
            if action == "drop":
                segments += 1
                freed += size
                if size >= LARGE and not hurried:
                    rest_s = min(REST * (time.monotonic() - begun), LONGEST_REST_S)
                    stop.wait(rest_s)
                    rested_s += rest_s
    return segments, freed, tuple(in_use), rested_s
