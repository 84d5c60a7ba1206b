"""One connection to a log, on psycopg 3.  The asyncpg twin is ``logstore._async.driver``.

A connection belongs to one thread at a time; only :meth:`Connection.interrupt` and :meth:`Connection.abort`
may be called from others.  Every driver exception is translated here, so that none is ever seen above.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.adapt import Dumper
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, Format, TransactionStatus

from logstore._core import outcome
from logstore._core.arrays import ARRAYS
from logstore._core.call import Call
from logstore._core.dsn import KEEPALIVE, connect_error, describe
from logstore._core.hosts import Access, Standing
from logstore._sync.pushing import pushed, rows_of
from logstore.conninfo import parameters_of
from logstore.errors import (
    AuthorizationFailedError,
    ConnectionFailedError,
    InvalidArgumentError,
    LogstoreError,
    StaleSessionError,
)
from logstore.refusal import refusal

__all__ = ["Connection", "own_cursor"]

T = TypeVar("T")


class _ArrayDumper(Dumper):
    # Binary, and of no declared type: the cast in the statement gives it one.
    format = Format.BINARY
    oid = 0

    def dump(self, obj: Any) -> bytes:
        encoded: bytes = obj.binary or obj.encode()
        return encoded


class _IntDumper(Dumper):
    # psycopg declares an int as the smallest type that holds its value, so that one statement would be
    # prepared again and again; undeclared, the cast decides.
    oid = 0

    def dump(self, obj: Any) -> bytes:
        return b"%d" % obj


def own_cursor(raw: psycopg.Connection[Any]) -> psycopg.RawCursor[tuple[Any, ...]]:
    """A cursor for our own calls."""
    # On the cursor alone: the program may get to work on the connection, with adapters as it knows them.
    cursor = psycopg.RawCursor(raw)
    for kind in ARRAYS:
        cursor.adapters.register_dumper(kind, _ArrayDumper)
    cursor.adapters.register_dumper(int, _IntDumper)
    return cursor


class _Raw(psycopg.Connection[tuple[Any, ...]]):
    """A psycopg connection that waits no longer than its deadline, and that Ctrl-C interrupts at once.

    psycopg's own ``wait`` answers Ctrl-C by cancelling the query and waiting for it; a commit must not be
    cancelled, and a server that does not answer must not keep the user waiting.
    """

    deadline: float | None = None
    pooled = False
    prepared: dict[str, bytes]
    """The names of the statements that :mod:`logstore._sync.pushing` has prepared, by text."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is None and self.deadline is not None:
            timeout = max(0.0, self.deadline - time.monotonic())
        return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=timeout)

    def drop(self) -> None:
        """Make whoever waits for this connection see that it is lost.  Any thread may call it."""
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as copy:
            copy.shutdown(socket.SHUT_RDWR)


class Connection:
    """One connection; open it with :meth:`open`."""

    def __init__(self, raw: _Raw, dsn_for_display: str) -> None:
        self._raw = raw
        raw.prepared = {}
        self._cursor = own_cursor(raw)
        self._in_transaction = False
        self._doubtful: str | None = None
        self._payloads: deque[str] = deque(maxlen=1000)  # nobody may be waiting for them
        self._wake_read, self._wake_write = ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        # Nothing else closes them when whoever has this connection forgets it.
        self._close_pipe = weakref.finalize(self, _close_all, *ends)
        self._close_pipe.atexit = False
        # Reentrant, because a garbage collector may interrupt: also somebody who is about to.
        self._interrupting = threading.RLock()
        self._closed = False
        self.dsn_for_display = dsn_for_display
        """Host, port, database and user; never the password."""
        self.timeline: int | None = None
        """Of the leader that this was when it was asked; None: not asked, or a follower."""
        self.busy_since = inf
        """When (monotonic, s) the request was made that is waited for; infinite when there is none."""
        self.server_version: int = raw.info.server_version
        """For example 180006."""
        self.pooled = False
        """A pooler (PgBouncer) is in between: no prepared statements, no LISTEN, no session state."""
        raw.add_notice_handler(self._on_notice)
        raw.add_notify_handler(self._on_notify)

    @classmethod
    def open(
        cls, dsn: str | Mapping[str, Any], *, timeout_s: float = 10.0, application_name: str = "logstore"
    ) -> Connection:
        """Connect to ``dsn``, a libpq URI or key/value string or what :func:`parameters_of` says of one.

        Every host of the DSN is given ``timeout_s`` seconds (at least 2, which is libpq's minimum), or its
        ``connect_timeout``.

        Raises ConfigurationError for a DSN that makes no sense, ConnectionFailedError (naming host and port)
        when no server answers, AuthenticationFailedError when it wants another password.
        """
        parameters = parameters_of(dsn) if isinstance(dsn, str) else dict(dsn)
        where = describe(parameters)
        for name, value in KEEPALIVE.items():
            parameters.setdefault(name, value)
        parameters.setdefault("connect_timeout", max(2, round(timeout_s)))
        parameters.setdefault("application_name", application_name)
        parameters.setdefault("gssencmode", "disable")
        try:
            raw = _Raw.connect(
                make_conninfo("", **parameters),
                autocommit=True,
                prepare_threshold=None,
            )
        except psycopg.Error as error:
            raise refusal(parameters, error) from error
        try:
            connection = cls(raw, where)
        except OSError as error:  # no file to spare
            raw.close()
            raise connect_error(where, None, str(error)) from error
        try:
            connection._recognise_pooler(timeout_s)
        except BaseException:
            connection.abort()
            connection.close()
            raise
        return connection

    def _recognise_pooler(self, timeout_s: float) -> None:
        # A pooler answers the handshake with a process id of its own making.
        backend = self._execute("SELECT pg_catalog.pg_backend_pid()", (), timeout_s, committing=False)
        self.pooled = backend[0][0] != self._raw.info.backend_pid
        self._raw.pooled = self.pooled
        if not self.pooled:
            self._raw.prepare_threshold = 0

    @property
    def access(self) -> Access:
        """What the server lets one do, as it last said."""
        said = self._raw.info.parameter_status
        follower = said("in_hot_standby") == "on"
        return Access(follower, follower or said("default_transaction_read_only") == "on")

    def standing(self, timeout_s: float) -> Standing:
        """Which group the server belongs to; says nothing where the user may not know."""
        try:
            rows = self._execute(Standing.SQL, (), timeout_s, committing=False)
        except AuthorizationFailedError:
            return Standing()
        return Standing.decode(rows)

    @property
    def closed(self) -> bool:
        """The connection cannot be used any more."""
        return self._closed or self._raw.closed

    def run(
        self,
        call: Call[T],
        *,
        timeout_s: float | None = None,
        busy: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> T:
        """Run ``call`` and decode its answer; outside of :meth:`transaction` it commits by itself.

        When there is no answer within ``timeout_s`` seconds the connection is dropped; nothing is cancelled,
        because a cancelled commit reports success.

        Raises what the server said as one of :mod:`logstore.errors`; UnknownOutcomeError when the connection
        was lost, or the time ran out, while something was being committed, ConnectionFailedError or
        RequestTimedOutError otherwise.

        ``busy``: other threads compute, which makes each turn of the interpreter expensive; take as few as
        can be.  ``meanwhile`` is called while the server works.  Only background threads may ask for this:
        Ctrl-C does not interrupt it.
        """
        committing = call.writes and not self._in_transaction
        if not busy:
            return call.decode(
                self._execute(call.sql, call.args, timeout_s, committing=committing, prepared=call.prepared)
            )
        raw = self._raw

        def rows() -> list[tuple[Any, ...]]:
            return rows_of(raw, pushed(raw, call, meanwhile))

        return call.decode(self._guarded(rows, timeout_s, committing=committing))

    def execute(self, sql: str, *, timeout_s: float | None = None) -> None:
        """Run a statement that has no parameters and whose answer does not matter."""
        self._execute(sql, None, timeout_s, committing=not self._in_transaction)

    @contextmanager
    def transaction(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """A transaction around everything that runs inside; rolled back when that raises.

        Raises UnknownOutcomeError when the connection is lost during COMMIT.
        """
        self._execute("BEGIN", None, timeout_s, committing=False)
        self._in_transaction = True
        try:
            yield
        except BaseException:
            self._in_transaction = False
            if not self.closed:
                with suppress(LogstoreError):
                    self._execute("ROLLBACK", None, timeout_s, committing=False)
            raise
        self._in_transaction = False
        self._execute("COMMIT", None, timeout_s, committing=True)

    def listen(self, channel: str, *, timeout_s: float | None = None) -> None:
        """Receive the notifications of ``channel``; not possible behind a pooler or on a follower."""
        self._execute('LISTEN "' + channel.replace('"', '""') + '"', (), timeout_s, committing=False)

    def wait_notify(self, timeout_s: float) -> list[str]:
        """Wait until a notification comes; its payload, and those of all that came with it.

        Returns an empty list after ``timeout_s`` seconds, or at once when another thread calls
        :meth:`interrupt`.  Raises ConnectionFailedError when the connection is lost.
        """
        if not self._payloads and not self.closed:
            poll = select.poll()
            poll.register(self._raw.pgconn.socket, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, timeout_s) * 1000)}
            if self._wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            if ready - {self._wake_read}:
                self._receive_notifications()
        elif self.closed:
            raise ConnectionFailedError(f"The connection to {self.dsn_for_display} is closed.")
        payloads = list(self._payloads)
        self._payloads.clear()
        return payloads

    def _receive_notifications(self) -> None:
        pgconn = self._raw.pgconn
        try:
            pgconn.consume_input()
            while (notification := pgconn.notifies()) is not None:
                self._payloads.append(notification.extra.decode())
        except psycopg.Error as error:
            self.abort()
            raise outcome.connection_lost(str(error), committing=False, where=self.dsn_for_display) from error

    def interrupt(self) -> None:
        """Make the current or next :meth:`wait_notify` return at once.  Any thread may call it."""
        with self._interrupting:
            if not self._closed:  # else the number may be that of another file by now
                with suppress(BlockingIOError):
                    os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        if not self._closed:
            with self._interrupting:
                self._closed = True
            self._raw.close()
            self._close_pipe()

    def abort(self) -> None:
        """Drop the connection without a word to the server.  Any thread may call it.

        A thread that waits for an answer gets the error of a lost connection.
        """
        if not self.closed:
            self._raw.drop()

    def abort_from_anywhere(self) -> None:
        """The same: any thread may call :meth:`abort`."""
        self.abort()

    def _execute(
        self,
        sql: str,
        args: Sequence[Any] | None,
        timeout_s: float | None,
        *,
        committing: bool,
        prepared: bool = True,
    ) -> list[tuple[Any, ...]]:
        cursor = self._cursor
        # Not before busy calls: looking is a turn of the interpreter.
        if committing and not self.closed and self._ended():
            self._raw.close()
            raise outcome.connection_lost("", committing=False, where=self.dsn_for_display)

        def rows() -> list[tuple[Any, ...]]:
            if args is None:
                cursor.execute(sql, prepare=False)
            else:
                cursor.execute(sql, args, binary=True, prepare=None if prepared else False)
            # Not ``description``, which is made anew for every column each time it is looked at.
            result = cursor.pgresult
            return cursor.fetchall() if result is not None and result.nfields else []

        return self._guarded(rows, timeout_s, committing=committing)

    def _guarded(
        self, work: Callable[[], list[tuple[Any, ...]]], timeout_s: float | None, *, committing: bool
    ) -> list[tuple[Any, ...]]:
        """The rows that ``work`` brings from the server, or one of our errors."""
        raw = self._raw
        if self.closed:
            raise ConnectionFailedError(f"The connection to {self.dsn_for_display} is closed.")
        self.busy_since = time.monotonic()
        raw.deadline = None if timeout_s is None else self.busy_since + timeout_s
        self._doubtful = None
        try:
            rows = work()
        except psycopg.Error as error:
            raise self._translate(error, timeout_s, committing) from error
        except (ValueError, TypeError) as error:  # raised before anything was sent
            raise InvalidArgumentError(str(error)) from error
        finally:
            self.busy_since = inf
            # Whatever interrupted it (the deadline, Ctrl-C): a half-read answer makes the session useless.
            if raw.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.abort()
                raw.close()
        if committing and self._doubtful is not None:
            raise outcome.connection_lost(self._doubtful, committing=True, where=self.dsn_for_display)
        return rows

    def _ended(self) -> bool:
        """The server closed the connection while nobody used it."""
        poll = select.poll()
        poll.register(self._raw.pgconn.socket, outcome.ENDED)
        return bool(poll.poll(0))

    def _translate(self, error: psycopg.Error, timeout_s: float | None, committing: bool) -> LogstoreError:
        where = self.dsn_for_display
        late = self._raw.deadline is not None and self._raw.deadline <= time.monotonic()
        if isinstance(error, psycopg.errors._WaitTimeout) or (late and not error.sqlstate):
            return outcome.timed_out(timeout_s or 0, committing=committing, where=where)
        if error.sqlstate:
            diag = error.diag
            refusal = outcome.refused(
                error.sqlstate,
                diag.message_primary or str(error),
                diag.message_detail,
                diag.message_hint,
                committing=committing,
                where=where,
            )
            if isinstance(refusal, StaleSessionError):
                self.abort()
                self._raw.close()
            return refusal
        if isinstance(error, psycopg.DataError | psycopg.ProgrammingError):  # raised before anything was sent
            return InvalidArgumentError(str(error))
        if self._raw.pgconn.status == ConnStatus.BAD or isinstance(error, psycopg.OperationalError):
            return outcome.connection_lost(str(error), committing=committing, where=where)
        return InvalidArgumentError(str(error))

    def _on_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if outcome.cut_short(diagnostic.sqlstate):
            self._doubtful = diagnostic.message_primary or ""

    def _on_notify(self, notification: psycopg.Notify) -> None:
        self._payloads.append(notification.payload)


def _close_all(*files: int) -> None:
    for file in files:
        os.close(file)
