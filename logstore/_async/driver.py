"""One connection to a log, on asyncpg.  The psycopg twin is ``logstore._sync.driver``.

A connection runs one operation at a time.  Every driver exception is translated here, so that none is ever
seen above.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from time import monotonic
from typing import Any, TypeVar

import asyncpg

from logstore._core import outcome
from logstore._core.arrays import ArrayParameter
from logstore._core.call import Call
from logstore._core.dsn import KEEPALIVE, asyncpg_arguments, certificate_refused, connect_error, describe
from logstore._core.hosts import Access, Standing
from logstore.conninfo import parameters_of
from logstore.errors import (
    AuthorizationFailedError,
    CertificateError,
    ConfigurationError,
    ConnectionFailedError,
    InvalidArgumentError,
    LogstoreError,
    StaleSessionError,
)

__all__ = ["Connection"]

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 2.0


class Connection:
    """One connection; open it with :meth:`open`."""

    def __init__(self, raw: asyncpg.Connection[asyncpg.Record], dsn_for_display: str) -> None:
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        self._statements: dict[str, Any] = {}
        self._in_transaction = False
        self._doubtful: str | None = None
        self._payloads: deque[str] = deque(maxlen=1000)  # nobody may be waiting for them
        self._arrived = asyncio.Event()
        self.dsn_for_display = dsn_for_display
        """Host, port, database and user; never the password."""
        self.timeline: int | None = None
        """Of the leader that this was when it was asked; None: not asked, or a follower."""
        self.busy_since = inf
        """When (monotonic, s) the request was made that is waited for; infinite when there is none."""
        version = raw.get_server_version()
        self.server_version: int = version.major * 10000 + version.micro
        """For example 180006."""
        self._prepares = False
        self.pooled = False
        """A pooler (PgBouncer) is in between: no prepared statements, no LISTEN, no session state."""
        raw.add_log_listener(self._on_notice)
        raw.add_termination_listener(self._on_termination)

    @classmethod
    async def open(
        cls, dsn: str | Mapping[str, Any], *, timeout_s: float = 10.0, application_name: str = "logstore"
    ) -> Connection:
        """Connect to ``dsn``, a libpq URI or key/value string or what :func:`parameters_of` says of one,
        within ``timeout_s`` seconds, or ``connect_timeout`` if that says so (libpq's minimum is 2).

        Raises ConfigurationError for a DSN that makes no sense, ConnectionFailedError (naming host and port)
        when no server answers, AuthenticationFailedError when it wants another password.
        """
        parameters = parameters_of(dsn) if isinstance(dsn, str) else dict(dsn)
        where = describe(parameters)
        parameters.setdefault("application_name", application_name)
        patience_s = timeout_s
        try:
            if (told_s := int(parameters.get("connect_timeout") or 0)) > 0:
                patience_s = max(2, told_s)
            raw = await asyncpg.connect(
                **asyncpg_arguments(parameters), timeout=patience_s, statement_cache_size=0
            )
        except TimeoutError as error:
            raise connect_error(where, None, f"no answer within {patience_s:g} s") from error
        except asyncpg.PostgresError as error:
            raise connect_error(where, error.sqlstate, str(error)) from error
        except ssl.SSLCertVerificationError as error:  # which is a ValueError, too
            raise CertificateError(certificate_refused(where, error.verify_message)) from error
        except (asyncpg.ClientConfigurationError, ValueError, TypeError) as error:
            raise ConfigurationError(f"The DSN for {where} does not fit: {error}.") from None
        except (OSError, asyncpg.InterfaceError) as error:
            raise connect_error(where, None, str(error) or type(error).__name__) from error
        _keep_alive(raw, parameters)
        connection = cls(raw, where)
        try:
            backend = await connection._execute(
                "SELECT pg_catalog.pg_backend_pid()", (), timeout_s, committing=False
            )
        except BaseException:
            connection.abort()
            raise
        # A pooler answers the handshake with a process id of its own making.
        connection.pooled = backend[0][0] != raw.get_server_pid()
        connection._prepares = not connection.pooled
        return connection

    @property
    def access(self) -> Access:
        """What the server lets one do, as it last said."""
        said = self._raw.get_settings()
        follower = getattr(said, "in_hot_standby", "off") == "on"
        return Access(follower, follower or getattr(said, "default_transaction_read_only", "off") == "on")

    async def standing(self, timeout_s: float) -> Standing:
        """Which group the server belongs to; says nothing where the user may not know."""
        try:
            rows = await self._execute(Standing.SQL, (), timeout_s, committing=False)
        except AuthorizationFailedError:
            return Standing()
        return Standing.decode(rows)

    @property
    def closed(self) -> bool:
        """The connection cannot be used any more."""
        return bool(self._raw.is_closed())

    async def run(
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

        ``busy`` and ``meanwhile`` are for calls made while other threads compute: not in asyncio.
        """
        committing = call.writes and not self._in_transaction
        return call.decode(
            await self._execute(call.sql, call.args, timeout_s, committing=committing, prepared=call.prepared)
        )

    async def execute(self, sql: str, *, timeout_s: float | None = None) -> None:
        """Run a statement that has no parameters and whose answer does not matter."""
        await self._say(sql, timeout_s, committing=not self._in_transaction)

    @asynccontextmanager
    async def transaction(self, *, timeout_s: float | None = None) -> AsyncIterator[None]:
        """A transaction around everything that runs inside; rolled back when that raises.

        Raises UnknownOutcomeError when the connection is lost during COMMIT.
        """
        await self._say("BEGIN", timeout_s, committing=False)
        self._in_transaction = True
        try:
            yield
        except BaseException:
            self._in_transaction = False
            if not self.closed:
                with suppress(LogstoreError):
                    await self._say("ROLLBACK", timeout_s, committing=False)
            raise
        self._in_transaction = False
        await self._say("COMMIT", timeout_s, committing=True)

    async def listen(self, channel: str, *, timeout_s: float | None = None) -> None:
        """Receive the notifications of ``channel``; not possible behind a pooler or on a follower."""
        await self._bounded(self._raw.add_listener(channel, self._on_notify), timeout_s, committing=False)

    async def wait_notify(self, timeout_s: float) -> list[str]:
        """Wait until a notification comes; its payload, and those of all that came with it.

        Returns an empty list after ``timeout_s`` seconds, or at once when :meth:`interrupt` is called.
        Raises ConnectionFailedError when the connection is lost.
        """
        if not self._payloads and not self.closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, timeout_s)):
                    await self._arrived.wait()
        self._arrived.clear()
        payloads = list(self._payloads)
        self._payloads.clear()
        if not payloads and self.closed:
            raise ConnectionFailedError(f"The connection to {self.dsn_for_display} was lost.")
        return payloads

    def interrupt(self) -> None:
        """Make the current or next :meth:`wait_notify` return at once."""
        self._arrived.set()

    async def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        if not self.closed:
            try:
                await self._raw.close(timeout=_CLOSE_TIMEOUT_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self.abort()
            except BaseException:
                self.abort()
                raise

    def abort(self) -> None:
        """Drop the connection without a word to the server.

        A task that waits for an answer gets the error of a lost connection.
        """
        if not self.closed:
            self._raw.terminate()

    def abort_from_anywhere(self) -> None:
        """:meth:`abort`, soon; any thread may call it."""
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self.abort)

    async def _execute(
        self,
        sql: str,
        args: Sequence[Any],
        timeout_s: float | None,
        *,
        committing: bool,
        prepared: bool = True,
    ) -> Sequence[Sequence[Any]]:
        values = [arg.items if isinstance(arg, ArrayParameter) else arg for arg in args]
        kept = prepared and self._prepares
        operation = self._fetch(sql, values) if kept else self._raw.fetch(sql, *values)
        rows: Sequence[Sequence[Any]] = await self._bounded(operation, timeout_s, committing=committing)
        return rows

    async def _say(self, sql: str, timeout_s: float | None, *, committing: bool) -> None:
        await self._bounded(self._raw.execute(sql), timeout_s, committing=committing)

    async def _fetch(self, sql: str, values: Sequence[Any]) -> Any:
        # asyncpg's own statement cache has to be chosen before it is known whether a pooler is in between.
        statement = self._statements.get(sql)
        if statement is None:
            # Named, or the next one would take its place.
            statement = await self._raw.prepare(sql, name=f"logstore_{len(self._statements)}")
            self._statements[sql] = statement
        return await statement.fetch(*values)

    async def _bounded(
        self, operation: Coroutine[Any, Any, T], timeout_s: float | None, *, committing: bool
    ) -> T:
        # In a task of its own: a cancelled asyncpg operation asks the server to cancel, which must never
        # happen to a commit.  On the deadline, and when the caller is cancelled, the socket is dropped.
        if self.closed:
            operation.close()
            raise ConnectionFailedError(f"The connection to {self.dsn_for_display} is closed.")
        if committing and self._ended():
            operation.close()
            self.abort()
            raise outcome.connection_lost("", committing=False, where=self.dsn_for_display)
        self._doubtful = None
        task = asyncio.ensure_future(operation)
        self.busy_since = monotonic()
        try:
            done, _ = await asyncio.wait((task,), timeout=timeout_s)
        except BaseException:
            await self._drop(task)
            raise
        finally:
            self.busy_since = inf
        where = self.dsn_for_display
        if not done:
            await self._drop(task)
            raise outcome.timed_out(timeout_s or 0, committing=committing, where=where)
        try:
            result = task.result()
        except asyncpg.PostgresConnectionError as error:
            raise outcome.connection_lost(str(error), committing=committing, where=where) from error
        except asyncpg.PostgresError as error:
            detail, hint = getattr(error, "detail", None), getattr(error, "hint", None)
            refusal = outcome.refused(
                error.sqlstate or "",
                getattr(error, "message", None) or str(error),
                detail,
                hint,
                committing=committing,
                where=where,
            )
            if isinstance(refusal, StaleSessionError):
                self.abort()
            raise refusal from error
        except (asyncpg.DataError, asyncpg.UnsupportedClientFeatureError, ValueError, TypeError) as error:
            raise InvalidArgumentError(str(error)) from error
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise outcome.connection_lost(str(error), committing=committing, where=where) from error
        except AttributeError as error:
            # asyncpg between two messages of one operation, when the connection was dropped meanwhile.
            if not self.closed:
                raise
            raise outcome.connection_lost("it was dropped", committing=committing, where=where) from error
        if committing and self._doubtful is not None:
            raise outcome.connection_lost(self._doubtful, committing=True, where=where)
        return result

    def _ended(self) -> bool:
        """The server closed the connection while nobody used it."""
        transport = self._raw._transport
        end = transport.get_extra_info("socket") if transport is not None else None
        if end is None or end.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(end.fileno(), outcome.ENDED)
        return bool(poll.poll(0))

    async def _drop(self, task: asyncio.Future[Any]) -> None:
        self.abort()
        with suppress(BaseException):
            await asyncio.wait((task,), timeout=_CLOSE_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.exception()

    def _on_notice(self, _: object, message: Any) -> None:
        if outcome.cut_short(message.sqlstate):
            self._doubtful = message.message or ""

    def _on_notify(self, _: object, pid: int, channel: str, payload: object) -> None:
        self._payloads.append(str(payload))
        self._arrived.set()

    def _on_termination(self, _: object) -> None:
        self._arrived.set()


def _keep_alive(raw: asyncpg.Connection[asyncpg.Record], parameters: Mapping[str, Any]) -> None:
    """What libpq does for the psycopg twin: a peer that is gone is noticed."""
    end = raw._transport.get_extra_info("socket") if raw._transport is not None else None
    if end is None or end.family not in (socket.AF_INET, socket.AF_INET6):
        return
    chosen = {name: int(parameters.get(name) or value) for name, value in KEEPALIVE.items()}
    if str(parameters.get("keepalives", "1")) != "0":
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, name in (
            ("TCP_KEEPIDLE", "keepalives_idle"),
            ("TCP_KEEPINTVL", "keepalives_interval"),
            ("TCP_KEEPCNT", "keepalives_count"),
        ):
            if hasattr(socket, option):
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), chosen[name])
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, chosen["tcp_user_timeout"])
