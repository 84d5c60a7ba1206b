# Generated from logstore/_async/session.py by tools/unasync.py; edit that file.
"""How a client reaches its log: finds the server, connects, and checks that what it finds there fits."""

from __future__ import annotations

from shlex import quote

from logstore._core.calls import Calls, ServerInfo
from logstore._core.masking import masked
from logstore._sync.concurrency import offload
from logstore._sync.driver import Connection
from logstore.embedded.dsn import Resolved, resolve
from logstore.errors import (
    LogstoreError,
    SchemaMissingError,
    SchemaVersionError,
    UnsupportedServerError,
)
from logstore.migrations import REQUIRED_REVISION

__all__ = ["Session"]

OLDEST_SERVER = 150000
_NO_SUCH_SCHEMA_OR_FUNCTION = ("3F000", "42883")


class Session:
    """What one client needs to open connections to one log.

    ``dsn`` may be None: then ``LOGSTORE_DSN`` is used, else the embedded server, which is started or joined
    and kept running until :meth:`close`.
    """

    def __init__(self, dsn: str | None, schema: str, *, timeout_s: float, application_name: str) -> None:
        self.calls = Calls(schema)
        self._given = dsn
        self._timeout_s = timeout_s
        self._application_name = application_name
        self._resolved: Resolved | None = None

    @property
    def dsn(self) -> str | None:
        """Where the log is; None: not looked up yet."""
        return self._given if self._resolved is None else self._resolved.dsn

    def open(self, timeout_s: float | None = None) -> tuple[Connection, ServerInfo]:
        """A new connection, and what it leads to; ``timeout_s`` seconds at most for this one, if less than
        usual.

        Raises ConnectionFailedError (naming host and port) when no server answers in time,
        SchemaMissingError and SchemaVersionError (with the command to run) when it holds no log or another
        version of it, UnsupportedServerError when it is too old.
        """
        if self._resolved is None:
            self._resolved = offload(lambda: resolve(self._given, self.calls.schema))
        dsn, keep = self._resolved.dsn, self._resolved.keep
        if keep is not None:
            offload(keep.revive)  # it may have been killed since
            dsn = keep.dsn
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        connection = Connection.open(dsn, timeout_s=timeout_s, application_name=self._application_name)
        try:
            info = self._check(connection, dsn, timeout_s)
        except BaseException:
            connection.abort()
            connection.close()
            raise
        return connection, info

    def close(self) -> None:
        """Stop keeping the embedded server, if it is one."""
        resolved, self._resolved = self._resolved, None
        if resolved is not None and resolved.keep is not None:
            offload(resolved.keep.close)

    def _check(self, connection: Connection, dsn: str, timeout_s: float) -> ServerInfo:
        where = connection.dsn_for_display
        if connection.server_version < OLDEST_SERVER:
            raise UnsupportedServerError(
                f"{where} is PostgreSQL {connection.server_version // 10000}; logstore needs 15 or newer."
            )
        try:
            info = connection.run(self.calls.info(), timeout_s=timeout_s)
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
