"""Let old records go: move the starts of partitions forward and drop the segments that are all past.

The space is given back by :mod:`logstore.workers.reclaim`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from logstore import errors
from logstore.workers.connections import Connection, opened
from logstore.workers.job import Attempts
from logstore.workers.reserve import spent

__all__ = ["Retained", "run_once"]


REWRITE_S: Final = 20
"""How long one topic's run writes segments anew."""
AT_ONCE: Final = 100
"""How many segments leave the catalog in one transaction."""


@dataclass(frozen=True, slots=True)
class Retained:
    """What one run came to."""

    topics: tuple[str, ...]
    """The topics that have lost records or segments."""
    partitions: int
    """How many partitions have a later start."""
    records: int
    """How many records they had before it, by their offsets."""
    bytes: int
    """The size of those records."""
    segments: int
    """How many segments were dropped."""
    segment_bytes: int
    """What these have on disk."""
    evacuations: int = 0
    """In how many topics segments are being written anew because most of them has expired."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.records} records expired in {self.partitions} partitions, "
            f"{self.segments} segments ({self.segment_bytes:,} bytes) dropped, "
            f"{self.evacuations} topics being evacuated"
        )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    topics: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Retained:
    """Apply ``cleanup.policy``, ``retention.ms`` and ``retention.bytes`` of every topic.

    ``topics``: only of these.

    A partition's appends wait for at most about 20 ms while its start is moved; a topic that somebody else
    changes, and a partition that somebody has locked, are for the next run.  It may be killed anywhere, two
    at once do no harm, and it works through a pooler.  Raises ConnectionFailedError and, after it has tried
    the other topics, what :func:`logstore.errors.from_server` makes of the server's errors.
    """
    stop = stop or threading.Event()
    touched: list[str] = []
    totals = [0] * 6
    attempts = Attempts()
    with opened(dsn, schema, "retention") as connection:
        for topic_id, topic in connection.rows("SELECT topic_id, topic FROM {}.topics_to_expire()"):
            if stop.is_set():
                break
            if topics and topic not in topics:
                continue
            with attempts.one():
                try:
                    came_to = _topic(connection, topic_id, stop)
                except errors.StorageFullError:
                    if not spent(connection):
                        raise
                    came_to = _topic(connection, topic_id, stop)
                if any(came_to):
                    touched.append(topic)
                    totals = [total + one for total, one in zip(totals, came_to, strict=True)]
    attempts.settle()
    return Retained(tuple(touched), *totals)


def _topic(connection: Connection, topic_id: int, stop: threading.Event) -> list[int]:
    totals = [0] * 6
    locked: list[int] = []

    def apply(*one: int) -> bool:
        nonlocal locked
        answer = connection.row(
            "SELECT partitions, records, bytes, locked, more"
            " FROM {}.apply_retention(%s, only_partition => %s)",
            topic_id,
            *(one or (None,)),
        )
        assert answer is not None
        *came_to, locked, more = answer
        totals[:3] = [total + part for total, part in zip(totals[:3], came_to, strict=True)]
        return bool(more)

    calls = 1
    while apply() and not stop.is_set():
        calls += 1
    # Busy ones, each in a transaction of its own: nobody else waits while we do.
    for partition in tuple(locked):
        if stop.is_set():
            break
        with contextlib.suppress(errors.LockTimeoutError):
            apply(partition)
    # It may have made a segment, to which the other partitions have to follow before the old one can go.
    more = calls > 1
    while more and not stop.is_set():
        more = bool(connection.value("SELECT more FROM {}.roll_topic(%s)", topic_id))
    segments = AT_ONCE
    while segments == AT_ONCE and not stop.is_set():
        answer = connection.row("SELECT segments, bytes FROM {}.drop_expired(%s, %s)", topic_id, AT_ONCE)
        assert answer is not None
        segments, size = answer
        totals[3] += segments
        totals[4] += size
    if not stop.is_set():
        totals[5] += _evacuate(connection, topic_id, stop)
    return totals


def _evacuate(connection: Connection, topic_id: int, stop: threading.Event) -> bool:
    """Write anew what is mostly expired, or go on with it."""
    until = time.monotonic() + REWRITE_S
    begun = False
    while time.monotonic() < until and not stop.is_set():
        kind = connection.value("SELECT kind FROM {}.rewrite WHERE topic_id = %s", topic_id)
        if kind not in (None, "evacuate"):
            break
        if kind is None and not connection.value("SELECT {}.start_evacuation(%s)", topic_id):
            break
        begun = True
        try:
            phase = connection.value("SELECT phase FROM {}.rewrite_step(%s)", topic_id)
        except errors.LockTimeoutError:
            break  # somebody detaches a segment, say: the next run goes on
        if phase == "busy":
            break
    return begun
