"""Seal what the synchronous standbys have, so that followers show it, when nobody waits who would do it.

A client that waits for records seals by itself; this is for followers that are read in other ways, and for
the last batches before a log falls silent.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from logstore.workers.connections import opened

__all__ = ["Sealed", "run_once"]

PACE_S: Final = 0.025
"""From one look to the next: the server writes no seal sooner than 20 ms after the last one."""
LOOK_AFTER: Final = 8
"""So often it seals before it asks whether batches are waiting: that looks at every partition."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one run came to."""

    seals: int
    """How many there are more."""
    deleted: int
    """How many old ones were deleted."""
    more: bool = False
    """Batches still wait, and standbys make progress: run it again at once."""

    def summary(self) -> str:
        """In one line."""
        return f"{self.seals} seals made, {self.deleted} deleted"


def run_once(
    dsn: str, schema: str = "logstore", *, longest_s: float = 5.0, stop: threading.Event | None = None
) -> Sealed:
    """Seal until followers may show every batch, for at most ``longest_s`` seconds.

    Ends early when the standbys do not get any further, or when ``stop`` is set.  Writes nothing where no
    follower streams, or all is sealed.  It may be killed anywhere.  Raises ConnectionFailedError and what
    :func:`logstore.errors.from_server` makes of the server's errors.
    """
    stopped = stop or threading.Event()
    with opened(dsn, schema, "seal") as connection:
        first = newest = connection.value("SELECT max(seal_id) FROM {}.seal") or 0
        ends = time.monotonic() + longest_s
        wanted = bool(connection.value("SELECT {}.seal_wanted()"))
        while wanted and time.monotonic() < ends and not stopped.is_set():
            before = newest
            for _ in range(LOOK_AFTER):
                row = connection.row("SELECT sealed_to, pending FROM {}.seal()")
                newest = (row and row[0]) or newest
                if row is None or not row[1] or stopped.wait(PACE_S):
                    break
            wanted = bool(connection.value("SELECT {}.seal_wanted()"))
            if newest == before:
                break
        deleted = connection.value("SELECT {}.delete_old_seals()") if newest > first else 0
    return Sealed(newest - first, deleted or 0, more=wanted and newest > first and not stopped.is_set())
