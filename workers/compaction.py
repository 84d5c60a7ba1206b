"""Keep the last record of each key, in topics whose ``cleanup.policy`` has ``compact``."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from logstore.workers.connections import Connection, opened
from logstore.workers.job import Attempts
from logstore.workers.rewriting import DUTY, LIMITS, MAX_RECORDS, advance

__all__ = ["Compacted", "run_once"]

BUDGET_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Compacted:
    """What one run came to."""

    topics: tuple[str, ...]
    """The topics in which something was done."""
    finished: tuple[str, ...]
    """Those of them in which nothing is left to do for now."""
    records: int
    """How many records were read."""
    indexes: int
    """How many indexes of keys were made, of segments that are older than the policy."""
    more: bool
    """The time was up before everything was done."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.records:,} records of {len(self.topics)} topics read, {len(self.finished)} finished, "
            f"{self.indexes} indexes of keys made"
        )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    stop: threading.Event | None = None,
    budget_s: float = BUDGET_S,
    duty: float = DUTY,
    max_records: int = MAX_RECORDS,
) -> Compacted:
    """Compact what is worth while, and go on with whatever segments are being written anew.

    ``budget_s``: about how long a run takes at most; ``duty``: the part of that time in which it works, so
    that appends are not slowed down; ``max_records``: what one step, a transaction, reads at most.  Appends
    and reads never wait for it.  It may be killed anywhere: the next run goes on with the step that was not
    committed.  Of two at once, one works on a topic.  Raises what :func:`logstore.errors.from_server` makes
    of the server's errors, after it has tried the other topics.
    """
    stop = stop or threading.Event()
    until = time.monotonic() + budget_s
    touched: dict[str, bool] = {}
    records = 0
    attempts = Attempts()
    with opened(dsn, schema, "compaction", LIMITS) as connection:
        indexes = _mend_indexes(connection, stop)
        under_way = connection.rows("SELECT topic_id, topic FROM {}.rewrites ORDER BY started_at")
        due = connection.rows("SELECT topic_id, topic, sources FROM {}.topics_to_compact()")
        for topic_id, topic, *sources in [*under_way, *due]:
            if stop.is_set() or time.monotonic() >= until:
                touched[topic] = False
                break
            with attempts.one():
                if sources and not connection.value(
                    "SELECT {}.start_rewrite(%s, 'compact', %s)", topic_id, sources[0]
                ):
                    continue
                came_to = advance(
                    connection, topic_id, until=until, stop=stop, duty=duty, max_records=max_records
                )
                if came_to.steps:
                    touched[topic] = came_to.finished
                    records += came_to.records
    attempts.settle()
    finished = tuple(topic for topic, done in touched.items() if done)
    return Compacted(tuple(touched), finished, records, indexes, len(finished) < len(touched))


def _mend_indexes(connection: Connection, stop: threading.Event) -> int:
    made = 0
    for topic_id, segment in connection.rows("SELECT topic_id, segment FROM {}.missing_key_indexes()"):
        if stop.is_set():
            break
        made += bool(connection.value("SELECT {}.mend_key_index(%s, %s)", topic_id, segment))
    return made
