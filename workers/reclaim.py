"""Give back the space of deleted topics.

``delete_topic`` takes a topic out of the catalog at once; its tables are dropped here, afterwards, because
detaching a table without blocking anybody cannot happen inside a function or a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from logstore import errors

__all__ = ["Reclaimed", "run_once"]

LOCK_TIMEOUT_MS: Final = 2000


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What one run came to."""

    dropped: tuple[int, ...]
    """The ids of the topics that are gone for good."""
    waiting: tuple[int, ...]
    """The ids of the topics whose tables somebody still uses, in a transaction that is open: next time."""


def run_once(dsn: str, schema: str = "logstore", *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> Reclaimed:
    """Drop the tables of every topic that was deleted and return which those were.

    It never blocks an append or a read, waits at most ``lock_timeout_ms`` for each lock, and may be killed
    anywhere: the next run goes on from what it finds.  Only one run at a time does anything, however many
    processes call it.  Does nothing through a pooler, which would lend its lock to others; needs the owner of
    the log.  Raises what :func:`logstore.errors.from_server` makes of the server's errors.
    """
    dropped: list[int] = []
    waiting: list[int] = []
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="logstore reclaim") as connection:
            if _pooled(connection) or not _alone(connection, schema):
                return Reclaimed((), ())
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [str(lock_timeout_ms)])
            step = sql.SQL("SELECT topic_id, statement FROM {}.next_reclaim(%s)").format(
                sql.Identifier(schema)
            )
            while row := connection.execute(step, [waiting]).fetchone():
                topic_id, statement = row
                try:
                    connection.execute(statement)
                except psycopg.errors.LockNotAvailable:
                    waiting.append(topic_id)
                else:
                    if statement.startswith("delete"):
                        dropped.append(topic_id)
    except psycopg.Error as error:
        diag = error.diag
        raise errors.from_server(
            error.sqlstate, diag.message_primary or str(error), diag.message_detail, diag.message_hint
        ) from error
    return Reclaimed(tuple(dropped), tuple(waiting))


def _pooled(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    # A pooler answers the handshake with a process id of its own making.
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid


def _alone(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> bool:
    # Held by the session, so it goes with the connection, whatever becomes of this process.
    row = connection.execute(
        "SELECT pg_try_advisory_lock(hashtext('logstore reclaim'), hashtext(%s))", [schema]
    ).fetchone()
    return bool(row and row[0])
