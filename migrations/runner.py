"""Upgrade, downgrade and status of a log's schema.

Safe to call from several processes at once: whoever comes second waits for the first on an advisory lock and
finds nothing to do.  Nothing here needs a superuser; the first upgrade needs CREATE on the database, or the
two schemas to exist already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import sql

from logstore import errors
from logstore import schema as objects
from logstore.conninfo import parameters_of
from logstore.refusal import refusal

__all__ = ["REQUIRED_REVISION", "SchemaStatus", "downgrade", "status", "upgrade"]

REQUIRED_REVISION: Final = max(
    file.name[:4]
    for file in (resources.files(__package__) / "versions").iterdir()
    if file.name[:4].isdecimal()
)
"""The newest revision, which this release's functions and clients need.  Revisions have numbers."""

Raw = psycopg.Connection[tuple[Any, ...]]

_OLDEST_SERVER: Final = 150000
_LONGEST_SCHEMA: Final = 56
"""Bytes: PostgreSQL allows 63, and ``_topics`` is added."""


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What a database has, and what this release would bring."""

    current: str | None
    """The revision of the tables; None: there is no log in this schema."""
    head: str
    functions_current: bool
    """The functions are exactly this release's."""
    server_version: int
    """As PostgreSQL numbers it: 180006 is 18.6."""

    @property
    def up_to_date(self) -> bool:
        return self.current == self.head and self.functions_current


def upgrade(dsn: str, schema: str = "logstore", revision: str = "head") -> None:
    """Bring the log in ``schema`` to ``revision``, making it if there is none; all or nothing.

    ``dsn`` is a libpq URI or key/value string.  Raises :class:`~logstore.errors.UnsupportedServerError` on
    PostgreSQL older than 15, :class:`~logstore.errors.SchemaVersionError` if the log is newer than this
    release, and what :func:`~logstore.errors.from_server` makes of the server's errors.
    """
    to_head = revision in ("head", REQUIRED_REVISION)
    with _connection(dsn, schema) as raw:
        if to_head and _status(raw, schema).up_to_date:
            return
        from logstore.migrations import revisions

        with revisions.opened(raw, schema) as steps:
            _lock(raw, schema)
            now = _status(raw, schema)
            if to_head and now.up_to_date:
                return
            if now.current is not None and not steps.known(now.current):
                raise errors.SchemaVersionError(
                    f"The log in schema {schema} has revision {now.current}, newer than this release.",
                    advice="Install the release of logstore-pg that made it, or a newer one.",
                    details={"current": now.current, "head": now.head},
                )
            _make_schemas(raw, schema)
            _search(raw, schema)
            steps.upgrade(revision)
            if to_head:
                _run_script(raw, objects.install_text())


def downgrade(dsn: str, schema: str, revision: str) -> None:
    """Take the log in ``schema`` back to ``revision``, or remove it with all its records (``base``).

    All or nothing.  The functions go in any case: the release that ``revision`` belongs to brings its own
    with its own upgrade.

    Raises :class:`~logstore.errors.SchemaError` when records are staged that ``revision`` could not keep.
    """
    from logstore.migrations import revisions

    with _connection(dsn, schema) as raw, revisions.opened(raw, schema) as steps:
        _lock(raw, schema)
        if _status(raw, schema).current is None:
            return
        _search(raw, schema)
        if revision != "base" and raw.execute("SELECT to_regclass('outbox') IS NOT NULL").fetchone() == (
            True,
        ):
            _refuse_to_lose_what_is_staged(raw)
        if revision != "base" and revision < "0010":
            _refuse_to_lose_what_is_in_files(raw)
        _run_script(raw, objects.uninstall_text())
        steps.downgrade(revision)
        if revision == "base":
            for name in (objects.topics_schema(schema), schema):
                raw.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def _refuse_to_lose_what_is_staged(raw: Raw) -> None:
    row = raw.execute("SELECT count(*) FROM outbox").fetchone()
    if row and row[0]:
        raise errors.SchemaError(
            f"{row[0]} records are committed and not in the log yet.",
            advice="Call drain() until it answers 0, then downgrade.",
            details={"records": row[0]},
        )


def _refuse_to_lose_what_is_in_files(raw: Raw) -> None:
    if raw.execute("SELECT to_regclass('remote_segment') IS NOT NULL").fetchone() != (True,):
        return
    row = raw.execute("SELECT count(*) FROM topic_partition WHERE local_start > log_start").fetchone()
    if row and row[0]:
        raise errors.SchemaError(
            f"{row[0]} partitions have records in files only, which no earlier release can read.",
            advice="Bring them back with `logstore tier restore`, then downgrade.",
            details={"partitions": row[0]},
        )


def status(dsn: str, schema: str = "logstore") -> SchemaStatus:
    """What the database has; takes no lock and changes nothing."""
    with _connection(dsn, schema) as raw:
        return _status(raw, schema)


def _status(raw: Raw, schema: str) -> SchemaStatus:
    def value(query: sql.Composed) -> Any:
        row = raw.execute(query).fetchone()
        return row and row[0]

    name = sql.Identifier(schema)
    current = fingerprint = None
    if value(sql.SQL("SELECT to_regclass({})").format(f"{name.as_string()}.alembic_version")):
        current = value(sql.SQL("SELECT version_num FROM {}.alembic_version").format(name))
    if value(sql.SQL("SELECT to_regprocedure({})").format(f"{name.as_string()}.schema_fingerprint()")):
        fingerprint = value(sql.SQL("SELECT {}.schema_fingerprint()").format(name))
    return SchemaStatus(
        current=current,
        head=REQUIRED_REVISION,
        functions_current=fingerprint == objects.fingerprint(),
        server_version=raw.info.server_version,
    )


@contextmanager
def _connection(dsn: str, schema: str) -> Iterator[Raw]:
    """A connection in a transaction that is committed at the end, with the server's errors in our classes."""
    if not 0 < len(schema.encode()) <= _LONGEST_SCHEMA or "\0" in schema or schema.startswith("pg_"):
        raise errors.InvalidArgumentError(
            f"{schema!r} cannot be the log's schema: "
            f"a name has 1 to {_LONGEST_SCHEMA} bytes and does not begin with pg_."
        )
    parameters = parameters_of(dsn)
    try:
        # Prepared statements would not survive a pooler.
        with psycopg.connect(dsn, prepare_threshold=None, application_name="logstore schema") as raw:
            if raw.info.server_version < _OLDEST_SERVER:
                raise errors.UnsupportedServerError(
                    f"The server is PostgreSQL {raw.info.server_version // 10000}; 15 or newer is needed.",
                    details={"server_version": raw.info.server_version},
                )
            yield raw
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            raise refusal(parameters, error) from error
        raise _ours(error) from error
    except psycopg.Error as error:
        raise _ours(error) from error


def _ours(error: psycopg.Error) -> errors.LogstoreError:
    diag = error.diag
    return errors.from_server(
        error.sqlstate, diag.message_primary or str(error), diag.message_detail, diag.message_hint
    )


def _lock(raw: Raw, schema: str) -> None:
    # Of the transaction, not the session, so that it works through a pooler.
    raw.execute("SELECT pg_advisory_xact_lock(hashtext('logstore schema'), hashtext(%s))", [schema])


def _make_schemas(raw: Raw, schema: str) -> None:
    # Not IF NOT EXISTS: that needs the right to create even where there is nothing to create.
    for name in (schema, objects.topics_schema(schema)):
        if not raw.execute("SELECT FROM pg_namespace WHERE nspname = %s", [name]).rowcount:
            raw.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))


def _search(raw: Raw, schema: str) -> None:
    raw.execute(sql.SQL("SET LOCAL search_path = {}, pg_temp").format(sql.Identifier(schema)))


def _run_script(raw: Raw, text: str) -> None:
    raw.execute(text.encode())
