"""Write segments of a topic anew, step by step: what compaction, erasure and evacuation have in common."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from logstore.errors import LockTimeoutError
from logstore.workers.connections import Connection, Limits

__all__ = ["DUTY", "LIMITS", "MAX_RECORDS", "Advance", "advance"]

LIMITS: Final = Limits(statement_timeout_ms=120_000, lock_timeout_ms=2_000, idle_timeout_ms=60_000)
MAX_RECORDS: Final = 250_000
"""What a step reads at most: some tenths of a second."""
DUTY: Final = 0.6
"""The part of the time that is worked; the rest is left to those who append."""
LONGEST_REST_S: Final = 20.0
"""At once: the server ends sessions that idle for longer than LIMITS says."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a topic's rewriting has come in one run."""

    records: int
    """How many records were read."""
    steps: int
    finished: bool
    """Nothing is under way any more."""
    filled: tuple[int, ...] = ()
    """The segments that were put in the place of others."""


def advance(
    connection: Connection,
    topic_id: int,
    *,
    until: float,
    stop: threading.Event,
    duty: float = DUTY,
    max_records: int = MAX_RECORDS,
) -> Advance:
    """Do steps of what is under way in a topic, until it is done or ``until`` (of ``time.monotonic``).

    Each step is a transaction; one that cannot have a lock is for the next run.  ``duty``: from above 0 to 1.
    """
    read = steps = 0
    filled: list[int] = []
    while time.monotonic() < until and not stop.is_set():
        began = time.monotonic()
        try:
            # The target as it was before the step: afterwards nobody knows it any more.
            step = connection.row(
                "SELECT s.phase, s.records, s.finished,"
                " (SELECT r.target FROM {}.rewrite r WHERE r.topic_id = %s)"
                " FROM {}.rewrite_step(%s, %s) s",
                topic_id,
                topic_id,
                max_records,
            )
        except LockTimeoutError:
            break
        assert step is not None
        phase, records, finished, target = step
        if phase == "busy":
            break
        steps += 1
        read += records
        if phase == "swap" and target is not None:
            filled.append(target)
        if finished:
            return Advance(read, steps, True, tuple(filled))
        stop.wait(min((time.monotonic() - began) * (1 / duty - 1), LONGEST_REST_S))
    return Advance(read, steps, False, tuple(filled))
