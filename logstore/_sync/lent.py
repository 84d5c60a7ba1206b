"""A connection on which the program works inside a transaction that we begin and end; on psycopg.

The asyncpg twin is ``logstore._async.lent``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from logstore._core import outcome
from logstore._core.call import Call
from logstore._sync.driver import Connection
from logstore.errors import ConnectionFailedError, LogstoreError

__all__ = ["Lent"]

T = TypeVar("T")

PREPARE_THRESHOLD: Final = 5
"""psycopg's own default: what the program executes once is not prepared."""


class Lent:
    """One transaction on ``connection``; the program gets :attr:`raw`."""

    def __init__(self, connection: Connection, *, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._transaction: Any = None

    @property
    def raw(self) -> Any:
        """The driver's own connection, for the program."""
        return self._connection._raw

    @property
    def lost(self) -> bool:
        """The connection cannot be used any more."""
        return self._connection.closed

    def begin(self, mark: Call[Any]) -> None:
        """Begin, at READ COMMITTED: an older snapshot would not show the end of the log.  ``mark`` is the
        first statement.
        """
        raw = self._connection._raw
        if raw.prepare_threshold == 0:
            raw.prepare_threshold = PREPARE_THRESHOLD
        self._transaction = raw.transaction()
        self._guarded(self._enter, committing=False)
        self._connection._in_transaction = True
        self.run(mark)

    def flush(self) -> None:
        """Do now what would be left for the commit: checks that take the program's locks come before ours."""
        self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE", timeout_s=self._timeout_s)

    def run(self, call: Call[T]) -> T:
        """Run a call inside the transaction."""
        try:
            return self._connection.run(call, timeout_s=self._timeout_s)
        finally:
            self._connection._raw.deadline = None  # which was for this call, not for the program's

    def commit(self) -> None:
        """Raises UnknownOutcomeError when nobody knows whether it was committed."""
        self._connection._in_transaction = False
        self._guarded(lambda: self._transaction.__exit__(None, None, None), committing=True)

    def rollback(self) -> None:
        """What goes wrong here has rolled the transaction back as well: then the connection is dropped."""
        self._connection._in_transaction = False
        if self.lost:
            return
        error = psycopg.Rollback(self._transaction)
        try:
            self._guarded(lambda: self._transaction.__exit__(psycopg.Rollback, error, None), committing=False)
        except LogstoreError:
            self._connection.abort()

    def drop(self) -> None:
        """Leave the transaction as it is: the server rolls it back when it notices."""
        with suppress(LogstoreError):
            self._connection.abort()

    def _enter(self) -> None:
        self._connection._raw.isolation_level = IsolationLevel.READ_COMMITTED
        self._transaction.__enter__()

    def _guarded(self, operation: Callable[[], object], *, committing: bool) -> None:
        """What :meth:`Connection._execute` does around a statement, around one of psycopg's own."""
        connection = self._connection
        raw = connection._raw
        if connection.closed:
            raise ConnectionFailedError(f"The connection to {connection.dsn_for_display} is closed.")
        raw.deadline = time.monotonic() + self._timeout_s
        connection._doubtful = None
        try:
            operation()
        except psycopg.Error as error:
            raise connection._translate(error, self._timeout_s, committing) from error
        finally:
            raw.deadline = None
            if raw.pgconn.transaction_status == TransactionStatus.ACTIVE:
                connection.abort()
                raw.close()
        if committing and connection._doubtful is not None:
            raise outcome.connection_lost(
                connection._doubtful, committing=True, where=connection.dsn_for_display
            )
