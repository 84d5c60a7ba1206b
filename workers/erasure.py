"""Remove the records of keys that are to be erased (``logstore topic erase``)."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Final

from logstore.errors import RequestTimedOutError
from logstore.workers.connections import Connection, opened
from logstore.workers.job import Attempts
from logstore.workers.rewriting import DUTY, LIMITS, MAX_RECORDS, Advance, advance

__all__ = ["Erased", "run_once"]

BUDGET_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Erased:
    """What one run came to."""

    topics: tuple[str, ...]
    """The topics with keys that were to be erased."""
    segments: int
    """How many segments were searched."""
    rewritten: int
    """How many of these had such a key and were written anew."""
    finished: int
    """How many erasures are finished by this."""
    more: bool
    """Something is left: another topic, or what somebody else has under way."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.segments} segments of {len(self.topics)} topics searched, {self.rewritten} written anew, "
            f"{self.finished} erasures finished"
        )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    stop: threading.Event | None = None,
    budget_s: float = BUDGET_S,
    duty: float = DUTY,
    max_records: int = MAX_RECORDS,
) -> Erased:
    """Search the topics that keys are to be erased from, and write anew the segments that have them.

    ``budget_s``: after about so long no further topic is begun; one that was begun is searched to its end,
    however long that takes, since what has been searched is known to this run only.  The other arguments are
    those of :func:`logstore.workers.compaction.run_once`, and so is what it promises.  An erasure is finished
    by the first run after the old segments have been dropped (see :mod:`logstore.workers.reclaim`).
    """
    stop = stop or threading.Event()
    until = time.monotonic() + budget_s
    topics: list[str] = []
    searched = rewritten = finished = 0
    more = False
    attempts = Attempts()
    with opened(dsn, schema, "erasure", LIMITS) as connection:
        for topic_id, topic in connection.rows("SELECT topic_id, topic FROM {}.topics_to_erase()"):
            if stop.is_set() or (topics and time.monotonic() >= until):
                more = True
                break
            topics.append(topic)
            run = _Run(connection, topic_id, stop, duty, max_records)
            with attempts.one():
                run.search()
            searched += len(run.searched)
            rewritten += run.rewritten
            finished += run.finished
            more = more or run.more
    attempts.settle()
    return Erased(tuple(topics), searched, rewritten, finished, more)


class _Run:
    """One topic's."""

    def __init__(
        self,
        connection: Connection,
        topic_id: int,
        stop: threading.Event,
        duty: float,
        max_records: int,
    ) -> None:
        self._connection = connection
        self._topic_id = topic_id
        self._stop = stop
        self._duty = duty
        self._max_records = max_records
        self.searched: list[int] = []
        self.rewritten = 0
        self.finished = 0
        self.more = False

    def search(self) -> None:
        connection, topic_id = self._connection, self._topic_id
        # What is asked for from now on has not been searched for where the search has been.
        newest = connection.value("SELECT max(erasure_id) FROM {}.pending_erasures(%s)", topic_id)
        # What is to be erased has to be in closed segments.
        while connection.value("SELECT more FROM {}.roll_for_erasure(%s)", topic_id):
            if self._stop.is_set():
                return
        if not self._advance().finished:
            self.more = True
            return
        while (segment := self._next()) is not None:
            if self._stop.is_set():
                self.more = True
                return
            if self._holds(segment):
                if not connection.value("SELECT {}.start_rewrite(%s, 'erase', %s)", topic_id, [segment]):
                    return  # somebody else has the topic's guard
                came_to = self._advance()
                if not came_to.finished:
                    self.more = True
                    return
                self.rewritten += 1
                # It has none of these keys. Any other segment that is closed by now has to be searched.
                self.searched += came_to.filled
            else:
                self.searched.append(segment)
        self.finished = int(
            connection.value("SELECT {}.finish_erasures(%s, %s, %s)", topic_id, self.searched, newest) or 0
        )

    def _next(self) -> int | None:
        """The oldest closed segment that may have the keys and has not been searched."""
        rows = self._connection.rows(
            "SELECT segment FROM {}.leaves_to_search(%s) WHERE closed", self._topic_id
        )
        return next((segment for (segment,) in rows if segment not in self.searched), None)

    def _holds(self, segment: int) -> bool:
        try:
            return bool(self._connection.value("SELECT {}.holds_erased(%s, %s)", self._topic_id, segment))
        except RequestTimedOutError:
            return True  # it is too large for one statement; writing it anew goes by steps

    def _advance(self) -> Advance:
        """Finish what is under way in the topic, whatever it is."""
        return advance(
            self._connection,
            self._topic_id,
            until=math.inf,
            stop=self._stop,
            duty=self._duty,
            max_records=self._max_records,
        )
