"""A connection on which the program works inside a transaction that we begin and end; on asyncpg.

The psycopg twin is ``logstore._sync.lent``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from logstore._async.driver import Connection
from logstore._core.call import Call
from logstore.errors import LogstoreError

__all__ = ["Lent"]

T = TypeVar("T")


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

    async def begin(self, mark: Call[Any]) -> None:
        """Begin, at READ COMMITTED: an older snapshot would not show the end of the log.  ``mark`` is the
        first statement.
        """
        self._transaction = self.raw.transaction(isolation="read_committed")
        await self._connection._bounded(self._transaction.start(), self._timeout_s, committing=False)
        self._connection._in_transaction = True
        await self.run(mark)

    async def flush(self) -> None:
        """Do now what would be left for the commit: checks that take the program's locks come before ours."""
        await self._connection._say("SET CONSTRAINTS ALL IMMEDIATE", self._timeout_s, committing=False)

    async def run(self, call: Call[T]) -> T:
        """Run a call inside the transaction."""
        return await self._connection.run(call, timeout_s=self._timeout_s)

    async def commit(self) -> None:
        """Raises UnknownOutcomeError when nobody knows whether it was committed."""
        self._connection._in_transaction = False
        await self._connection._bounded(self._transaction.commit(), self._timeout_s, committing=True)

    async def rollback(self) -> None:
        """What goes wrong here has rolled the transaction back as well: then the connection is dropped."""
        self._connection._in_transaction = False
        if self.lost:
            return
        try:
            await self._connection._bounded(self._transaction.rollback(), self._timeout_s, committing=False)
        except LogstoreError:
            self._connection.abort()

    def drop(self) -> None:
        """Leave the transaction as it is: the server rolls it back when it notices."""
        with suppress(LogstoreError):
            self._connection.abort()
