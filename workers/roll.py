"""Close segments that are old, and take partitions that nobody writes to along to the next one.

Appends roll segments by themselves.  This is for topics that nobody writes to, whose last records would never
expire, and for partitions that nobody writes to, which would keep an old segment.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from logstore.workers.connections import Connection, opened

__all__ = ["Rolled", "roll_topics", "run_once"]


@dataclass(frozen=True, slots=True)
class Rolled:
    """What one run came to."""

    topics: tuple[str, ...]
    """The topics that have gone on to their next segment."""
    partitions: int
    """How many partitions were taken along."""

    def summary(self) -> str:
        """In one line."""
        return f"{len(self.topics)} topics rolled, {self.partitions} partitions moved on"


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    topics: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Rolled:
    """Roll every topic whose segment is older than ``segment.ms`` (less its jitter) and has records.

    ``topics``: only these.

    Appends to a partition wait for at most about 20 ms while it is moved; a topic that somebody else changes,
    and a partition that somebody has locked, are for the next run.  It may be killed anywhere, two at once do
    no harm, and it works through a pooler.  Raises ConnectionFailedError and what
    :func:`logstore.errors.from_server` makes of the server's errors.
    """
    with opened(dsn, schema, "roll") as connection:
        return roll_topics(connection, topics, stop or threading.Event())


def roll_topics(connection: Connection, topics: Sequence[str], stop: threading.Event) -> Rolled:
    """As :func:`run_once`, on a connection that is there."""
    rolled_topics: list[str] = []
    partitions = 0
    for topic_id, topic in connection.rows("SELECT topic_id, topic FROM {}.topics_to_roll()"):
        more = not topics or topic in topics
        while more and not stop.is_set():
            answer = connection.row("SELECT rolled, moved, more FROM {}.roll_topic(%s)", topic_id)
            assert answer is not None
            rolled, moved, more = answer
            partitions += moved
            if rolled:
                rolled_topics.append(topic)
    return Rolled(tuple(rolled_topics), partitions)
