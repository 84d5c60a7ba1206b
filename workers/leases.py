"""What a worker asks the database: which jobs are due, whether one is its to run, that it runs it still."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, LiteralString

from logstore.errors import LogstoreError
from logstore.workers.connections import Connection, Limits, drop_all, opened, owned
from logstore.workers.job import storable

__all__ = ["LEASE_S", "Leases", "Standing"]

LEASE_S: Final = 6.0
"""A job whose worker has not been heard of for so long is somebody else's."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands in the database."""

    name: str
    cron: str | None
    every_ms: int | None
    paused: bool
    due_in_s: float
    """Until this worker could run it: never before somebody else's lease has run out."""
    mine: bool
    """This worker runs it."""
    revision: str
    """The log's."""
    wanted: bool | None
    """There may be something for it to do; None: it is not due."""


class Leases:
    """One worker's view of the table of jobs, on a connection that is opened when it is needed.

    Any thread may call it; one at a time is served.  Every call raises LogstoreError when the server does not
    answer, and the next one connects again.
    """

    def __init__(self, dsn: str, schema: str, jobs: Iterable[str]) -> None:
        self._dsn = dsn
        self._schema = schema
        self._jobs = list(jobs)
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._stack = contextlib.ExitStack()
        self.connection: Connection | None = None
        self.worker_id: Final = f"{socket.gethostname()[:80]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._about = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "version": version("logstore-pg")}
        )

    def beat(self, running: Iterable[str], *, say: bool) -> list[Standing]:
        """Renew the leases of what runs and answer how all jobs stand; ``say``: also that we are there."""
        rows = self._ask(
            "SELECT name, cron, every_ms, paused, due_in_ms, mine, revision, wanted"
            " FROM {}.worker_beat(%s, %s, %s, %s, %s)",
            self.worker_id,
            self._jobs,
            list(running),
            _ms(LEASE_S),
            self._about if say else None,
        )
        return [
            Standing(name, cron, every_ms, paused, due_in_ms / 1000, mine, revision, wanted)
            for name, cron, every_ms, paused, due_in_ms, mine, revision, wanted in rows
        ]

    def claim(self, name: str, *, at_once: bool = False) -> int | None:
        """Take the job, if it is due and nobody has it: how often in a row it has failed; None: it is not."""
        found: int | None = self._value(
            "SELECT {}.claim_job(%s, %s, %s, %s)", self.worker_id, name, _ms(LEASE_S), at_once
        )
        return found

    def finish(self, name: str, summary: str | None, result: dict[str, Any] | None, next_in_s: float) -> None:
        """Say what the run came to (no result: it failed; no summary either: it was broken off)."""
        self._value(
            "SELECT {}.finish_job(%s, %s, %s, %s, %s)",
            self.worker_id,
            name,
            None if summary is None else storable(summary),
            None if result is None else json.dumps(result),
            _ms(next_in_s),
        )

    def hung(self, for_s: float) -> bool:
        """The server has not answered a question for so long."""
        asked_at = self._asked_at
        return asked_at is not None and time.monotonic() - asked_at > for_s

    def drop(self) -> None:
        """Break the connection, so that whoever waits for an answer gets an error."""
        # Also one that is being opened, and has no name here yet.
        drop_all(of=self)

    def leave(self) -> None:
        """Take this worker out of the list, and let go of everything; then close the connection."""
        try:
            self._ask("SELECT {}.worker_leaves(%s)", self.worker_id)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self.connection = None
        self._stack.close()

    def _value(self, query: LiteralString, *args: Any) -> Any:
        rows = self._ask(query, *args)
        return rows[0][0] if rows else None

    def _ask(self, query: LiteralString, *args: Any) -> list[tuple[Any, ...]]:
        with self._served() as connection:
            return connection.rows(query, *args)

    @contextlib.contextmanager
    def _served(self) -> Iterator[Connection]:
        with self._lock:
            self._asked_at = time.monotonic()
            try:
                yield self.connection or self._opened()
            except LogstoreError:
                self._close()
                raise
            finally:
                self._asked_at = None

    def _opened(self) -> Connection:
        # A session that idles between two beats is no sign that anything is wrong.
        limits = Limits(statement_timeout_ms=5_000, lock_timeout_ms=2_000, idle_timeout_ms=0)
        with owned(self):
            found = self._stack.enter_context(opened(self._dsn, self._schema, "worker", limits))
        self.connection = found
        return found


def _ms(interval_s: float) -> int:
    return round(interval_s * 1000)
