"""The connections that jobs work on: with time limits, errors in our classes, and a way to drop them all.

No job cancels a statement: a commit that is cancelled while it waits for followers reports success.  What has
to end at once is dropped, and the server ends it by itself within a second or two (or when the statement's
time is up).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from logstore import errors
from logstore.conninfo import parameters_of
from logstore.refusal import refusal

__all__ = ["Connection", "Limits", "drop_all", "opened", "owned"]

Raw = psycopg.Connection[tuple[Any, ...]]
Row = tuple[Any, ...]

CONNECT_TIMEOUT_S: Final = 10
CHECK_INTERVAL_MS: Final = 1000
"""How often the server looks, in the middle of a statement, whether we are still there."""


class Limits:
    """How long the server lets a job's connection do what, in ms; 0: for ever."""

    def __init__(
        self,
        *,
        statement_timeout_ms: int = 30_000,
        lock_timeout_ms: int = 2_000,
        idle_timeout_ms: int = 5_000,
    ) -> None:
        self.settings: Final = {
            "statement_timeout": str(statement_timeout_ms),
            "lock_timeout": str(lock_timeout_ms),
            # Of a process that was stopped, or lost: nobody waits for it longer than this.
            "idle_in_transaction_session_timeout": str(idle_timeout_ms),
            "client_connection_check_interval": str(CHECK_INTERVAL_MS),
        }
        self.session: Final = self.settings | {"idle_session_timeout": str(idle_timeout_ms)}


class Connection:
    """A connection in autocommit mode.  In the text of a query ``{}`` stands for the log's schema.

    The limits hold for every statement, also through a pooler (then each is set in the statement's own
    transaction).  Every error is one of :mod:`logstore.errors`: :class:`~logstore.errors.LockTimeoutError`
    when somebody holds a lock for too long, :class:`~logstore.errors.RequestTimedOutError` when a statement
    takes too long.
    """

    def __init__(self, raw: Raw, schema: str, limits: Limits) -> None:
        self.raw = raw
        """psycopg's own connection."""
        self.schema = schema
        self._name = sql.Identifier(schema)
        self._limits = limits
        self._nested = False
        row = raw.execute("SELECT pg_backend_pid(), current_setting('server_version_num')::int4").fetchone()
        assert row is not None
        self.pooled: Final = row[0] != raw.info.backend_pid
        """A pooler is in between: no session state, no statements outside of a transaction."""
        self.server_version: Final[int] = row[1]
        if not self.pooled:
            self._limit(limits.session, local=False)

    def rows(self, query: LiteralString, *args: Any) -> list[Row]:
        """What the query answers; in a transaction of its own, unless inside :meth:`transaction`."""
        with self._translated():
            if self.pooled and not self._nested:
                with self.raw.transaction():
                    self._limit(self._limits.settings, local=True)
                    return self._run(query, args)
            return self._run(query, args)

    def row(self, query: LiteralString, *args: Any) -> Row | None:
        """The first row of the answer, if there is one."""
        found = self.rows(query, *args)
        return found[0] if found else None

    def value(self, query: LiteralString, *args: Any) -> Any:
        """The first column of the first row; None: there is no row."""
        found = self.row(query, *args)
        return found[0] if found else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is one transaction; not to be nested."""
        with self._translated(), self.raw.transaction():
            if self.pooled:
                self._limit(self._limits.settings, local=True)
            self._nested = True
            try:
                yield
            finally:
                self._nested = False

    def apart(self, statement: str | sql.Composed) -> None:
        """Run a statement that must be outside of any transaction, such as VACUUM or DETACH CONCURRENTLY.

        Through a pooler it has no time limits; see :attr:`pooled`.
        """
        with self._translated():
            self.raw.execute(statement.encode() if isinstance(statement, str) else statement)

    def alone(self, purpose: str) -> bool:
        """Nobody else has this log's lock of that purpose, and now it is ours until :meth:`shared`.

        Or until the connection closes.  For direct connections: a pooler lends them to others.
        """
        found = self.value(
            "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", f"logstore {purpose}", self.schema
        )
        return bool(found)

    def shared(self, purpose: str) -> None:
        """Give that lock back."""
        self.rows("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", f"logstore {purpose}", self.schema)

    def drop(self) -> None:
        """Break the connection, whatever it is doing.  Any thread may call it."""
        with _guard:
            if self.raw in _open:
                _drop(self.raw)

    def _run(self, query: LiteralString, args: tuple[Any, ...]) -> list[Row]:
        text = sql.SQL(query).format(*[self._name] * query.count("{}"))
        cursor = self.raw.execute(text, args or None)
        return cursor.fetchall() if cursor.description is not None else []

    def _limit(self, settings: dict[str, str], *, local: bool) -> None:
        calls = ", ".join("set_config(%s, %s, %s)" for _ in settings)
        values = [part for name, value in settings.items() for part in (name, value, local)]
        self.raw.execute(f"SELECT {calls}".encode(), values)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise _ours(error) from error


_open: weakref.WeakKeyDictionary[Raw, object] = weakref.WeakKeyDictionary()
"""Every connection of this process's jobs, from before its first statement on, with its owner."""
_guard = threading.Lock()
_of_thread = threading.local()


@contextlib.contextmanager
def owned(owner: object) -> Iterator[None]:
    """What this thread opens inside is ``owner``'s, for :func:`drop_all`."""
    before = getattr(_of_thread, "owner", None)
    _of_thread.owner = owner
    try:
        yield
    finally:
        _of_thread.owner = before


@contextlib.contextmanager
def opened(dsn: str, schema: str, job: str, limits: Limits | None = None) -> Iterator[Connection]:
    """A connection for a job, closed at the end.

    ``dsn``: a libpq URI or key/value string; ``job`` shows in ``pg_stat_activity`` as ``logstore <job>``.
    Raises ConfigurationError for a DSN that makes no sense, ConnectionFailedError when no server answers, and
    what else :func:`logstore.errors.from_server` makes of the server's errors.
    """
    parameters = parameters_of(dsn)
    parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    parameters.setdefault("application_name", f"logstore {job}")
    parameters.setdefault("gssencmode", "disable")
    if "," in str(parameters.get("host") or parameters.get("hostaddr") or ""):
        parameters.setdefault("target_session_attrs", "read-write")
    # A server that is gone without a word is noticed within half a minute.
    parameters.setdefault("keepalives_idle", 10)
    parameters.setdefault("keepalives_interval", 5)
    parameters.setdefault("keepalives_count", 3)
    try:
        # Prepared statements would not survive a pooler.
        raw: Raw = psycopg.connect(make_conninfo("", **parameters), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise refusal(parameters, error) from error
    with contextlib.closing(raw):
        with _guard:
            _open[raw] = getattr(_of_thread, "owner", None)
        try:
            try:
                connection = Connection(raw, schema, limits or Limits())
            except psycopg.Error as error:
                raise _ours(error) from error
            yield connection
        finally:
            with _guard:
                _open.pop(raw, None)


def drop_all(*, of: object) -> int:
    """Break every connection of an owner, so that whoever works with one ends; say how many there were."""
    with _guard:
        found = [raw for raw, owner in _open.items() if owner is of]
        for raw in found:
            _drop(raw)
    return len(found)


def _drop(raw: Raw) -> None:
    # With the guard: who closes one takes it off the list first, since its number may be another file's then.
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(raw.pgconn.socket)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def _ours(error: psycopg.Error) -> errors.LogstoreError:
    if error.sqlstate is None:
        return errors.ConnectionFailedError(str(error).strip())
    diag = error.diag
    return errors.from_server(
        error.sqlstate, diag.message_primary or str(error), diag.message_detail, diag.message_hint
    )
