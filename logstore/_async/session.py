"""How a client reaches its log: finds the server, connects, and checks that what it finds there fits."""

from __future__ import annotations

from collections.abc import Sequence
from random import random
from shlex import quote
from time import monotonic
from typing import ClassVar
from weakref import WeakSet

from logstore._async.apart import SharedLock
from logstore._async.concurrency import offload, sleep
from logstore._async.driver import Connection
from logstore._async.sentry import Sentry
from logstore._core.calls import Calls, ServerInfo
from logstore._core.hosts import Group, Host, Roster, none_will_do, not_wanted
from logstore._core.masking import masked
from logstore.conninfo import parameters_of
from logstore.embedded.dsn import Resolved, resolve
from logstore.errors import (
    ConnectionFailedError,
    InvalidArgumentError,
    LogstoreError,
    RequestTimedOutError,
    SchemaMissingError,
    SchemaVersionError,
    UnsupportedServerError,
)
from logstore.migrations import REQUIRED_REVISION

__all__ = ["Session"]

OLDEST_SERVER = 150000
HOST_S = 3.0
"""How long one of several hosts is given to answer."""
ELECTION_S = 2.0
"""How long one attempt to connect waits for a group that had a leader to have one again."""
LOOK_AGAIN_S = 0.1
_NO_SUCH_SCHEMA_OR_FUNCTION = ("3F000", "42883")


class Session:
    """What one client needs to open connections to one log.

    ``dsn`` may be None: then ``LOGSTORE_DSN`` is used, else the embedded server, which is started or joined
    and kept running until :meth:`close`.
    """

    _met: ClassVar[set[str]] = set()
    """DSNs whose hosts were all looked at by some client of this process."""

    def __init__(self, dsn: str | None, schema: str, *, timeout_s: float, application_name: str) -> None:
        if dsn is not None and not isinstance(dsn, str):
            raise InvalidArgumentError(f"dsn is a string or None, not {dsn!r}.")
        self.calls = Calls(schema)
        self._given = dsn
        self._timeout_s = timeout_s
        self._application_name = application_name
        self._resolved: Resolved | None = None
        self._roster: Roster | None = None
        self._roster_of = ""
        self._group = Group()
        self._live: WeakSet[Connection] = WeakSet()
        self._guard = SharedLock()
        self._sentry = Sentry(self)

    @property
    def dsn(self) -> str | None:
        """Where the log is; None: not looked up yet."""
        return self._given if self._resolved is None else self._resolved.dsn

    async def open(self, timeout_s: float | None = None) -> tuple[Connection, ServerInfo]:
        """A new connection, and what it leads to; ``timeout_s`` seconds at most for this one, if less than
        usual.

        Of several hosts it is the one that ``target_session_attrs`` asks for, by default the leader.

        Raises ConnectionFailedError (naming hosts and ports) when no server answers in time, NotLeaderError
        when none of several is what is asked for, ConfigurationError when they belong to different clusters,
        SchemaMissingError and SchemaVersionError (with the command to run) when it holds no log or another
        version of it, UnsupportedServerError when it is too old.
        """
        if self._resolved is None:
            self._resolved = await offload(lambda: resolve(self._given, self.calls.schema))
        dsn, keep = self._resolved.dsn, self._resolved.keep
        if keep is not None:
            await offload(keep.revive)  # it may have been killed since
            dsn = keep.dsn
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        if self._roster is None or self._roster_of != dsn:
            self._roster, self._roster_of = Roster(parameters_of(dsn)), dsn
        return await self._open_one_of(self._roster, dsn, timeout_s)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The servers that the DSN names; none before the first :meth:`open`."""
        return () if self._roster is None else self._roster.hosts

    async def open_host(self, host: Host, timeout_s: float) -> tuple[Connection, ServerInfo]:
        """A new connection to one of :attr:`hosts`, whatever it is; raises as :meth:`open` does."""
        return await self._open_host(host, "any", self._roster_of, timeout_s)

    async def _open_one_of(self, roster: Roster, dsn: str, timeout_s: float) -> tuple[Connection, ServerInfo]:
        if not roster.several:
            return await self._open_host(roster.hosts[0], "any", dsn, timeout_s)
        until = monotonic() + timeout_s
        give_up = min(until, monotonic() + ELECTION_S)
        while True:
            opened, tried = await self._look_for_one(roster, dsn, until)
            if opened is not None:
                return opened
            error = none_will_do(roster.wanted, tried)
            # A group that had a leader will have one again, in a moment.
            pause_s = LOOK_AGAIN_S * (0.8 + 0.4 * random())
            if not error.retriable or not self._group.was_led or monotonic() + pause_s >= give_up:
                raise error
            await sleep(pause_s)

    async def _look_for_one(
        self, roster: Roster, dsn: str, until: float
    ) -> tuple[tuple[Connection, ServerInfo] | None, list[tuple[Host, LogstoreError]]]:
        """One look at every host: the first that will do, and why those before it will not."""
        tried: list[tuple[Host, LogstoreError]] = []
        rounds = ("standby", "any") if roster.wanted == "prefer-standby" else (roster.wanted,)
        for wanted in rounds:
            for host in roster.hosts:
                left_s = until - monotonic()
                if tried and left_s <= 0:
                    break
                try:
                    opened = await self._open_host(host, wanted, dsn, max(0.1, min(HOST_S, left_s)))
                except LogstoreError as error:
                    tried.append((host, error))
                    if isinstance(error, ConnectionFailedError | RequestTimedOutError):
                        roster.silent(host)
                    continue
                roster.chosen(host)
                if dsn not in Session._met:
                    await self._meet(opened[0], [other for other in roster.hosts if other is not host], tried)
                    Session._met.add(dsn)
                return opened, tried
        return None, tried

    async def _meet(
        self, connection: Connection, others: Sequence[Host], tried: Sequence[tuple[Host, LogstoreError]]
    ) -> None:
        """See, once for a DSN, that all its hosts are one group and would let us in; those that do not answer
        now are passed over.
        """
        known = dict(tried)
        try:
            for other in others:
                error = known.get(other)
                if error is None:
                    try:
                        met = await self._open_raw(other, HOST_S)
                    except LogstoreError as refused:
                        error = refused
                    else:
                        await met.close()
                if error is not None and not error.retriable:
                    raise error
        except BaseException:
            connection.abort()
            await connection.close()
            raise

    async def _open_host(
        self, host: Host, wanted: str, dsn: str, timeout_s: float
    ) -> tuple[Connection, ServerInfo]:
        connection = await self._open_raw(host, timeout_s)
        try:
            access = connection.access
            if not access.will_do(wanted):
                raise not_wanted(connection.dsn_for_display, access)
            return connection, await self._check(connection, dsn, timeout_s)
        except BaseException:
            connection.abort()
            await connection.close()
            raise

    async def _open_raw(self, host: Host, timeout_s: float) -> Connection:
        """A connection to ``host``, which belongs to the same group as those before it."""
        connection = await Connection.open(
            host.parameters, timeout_s=timeout_s, application_name=self._application_name
        )
        try:
            if self._roster is not None and self._roster.several:
                standing = await connection.standing(timeout_s)
                self._group.admit(host, standing)
                connection.timeline = standing.timeline
                self._watch(connection)
        except BaseException:
            connection.abort()
            await connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Stop keeping the embedded server, if it is one."""
        await self._sentry.dismiss()
        resolved, self._resolved = self._resolved, None
        if resolved is not None and resolved.keep is not None:
            await offload(resolved.keep.close)

    # ---- a leader that falls silent

    def _watch(self, connection: Connection) -> None:
        with self._guard:
            self._live.add(connection)
        self._sentry.begin()

    @property
    def connected(self) -> bool:
        """There is a connection that may be used."""
        return any(not connection.closed for connection in self._connections())

    def _connections(self) -> list[Connection]:
        with self._guard:
            return list(self._live)

    def suspects(self, since: float) -> list[Connection]:
        """Connections to leaders on which an answer has been waited for since then (monotonic, seconds)."""
        return [
            connection
            for connection in self._connections()
            if connection.busy_since < since and connection.timeline is not None and not connection.closed
        ]

    async def look_beyond(self, suspects: Sequence[Connection]) -> None:
        """Ask the other hosts; if one of them leads a newer history, drop every connection to older ones.

        Whoever waits for an answer there gets the error of a lost connection, and goes to the new leader.
        """
        slow = {connection.dsn_for_display for connection in suspects}
        for host in self._roster.hosts if self._roster is not None else ():
            if host.where in slow:
                continue
            try:
                met = await self._open_raw(host, HOST_S)
            except LogstoreError:
                continue
            leads = met.access.will_do("read-write")
            await met.close()
            if leads and met.timeline is not None:
                for connection in self._connections():
                    if connection.timeline is not None and connection.timeline < met.timeline:
                        connection.abort_from_anywhere()
                return

    def forsake(self, connection: Connection) -> None:
        """Its server leads no more: drop this connection, and all others to it."""
        connection.abort()
        for other in self._connections():
            if other is not connection and other.dsn_for_display == connection.dsn_for_display:
                other.abort_from_anywhere()

    async def _check(self, connection: Connection, dsn: str, timeout_s: float) -> ServerInfo:
        where = connection.dsn_for_display
        if connection.server_version < OLDEST_SERVER:
            raise UnsupportedServerError(
                f"{where} is PostgreSQL {connection.server_version // 10000}; logstore needs 15 or newer."
            )
        try:
            info = await connection.run(self.calls.info(), timeout_s=timeout_s)
        except LogstoreError as error:
            if error.details.get("sqlstate") in _NO_SUCH_SCHEMA_OR_FUNCTION:
                raise SchemaMissingError(
                    f"{where} holds no log in schema {self.calls.schema!r}.", advice=self._upgrade(dsn)
                ) from None
            raise
        if info.revision != REQUIRED_REVISION:
            older = info.revision is None or info.revision < REQUIRED_REVISION
            raise SchemaVersionError(
                f"The log in schema {self.calls.schema!r} of {where} has version {info.revision}, and this "
                f"client needs {REQUIRED_REVISION}.",
                advice=self._upgrade(dsn)
                if older
                else "Install a newer logstore-pg: pip install -U logstore-pg",
            )
        return info

    def _upgrade(self, dsn: str) -> str:
        schema = "" if self.calls.schema == "logstore" else f" --schema {quote(self.calls.schema)}"
        return f"Run: logstore db upgrade --dsn {quote(masked(dsn))}{schema}"
