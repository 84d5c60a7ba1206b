"""Append what transactions have staged, when nobody waits for records who would do it.

A waiting consumer drains within milliseconds of a commit; this is for logs that are only written to for a
while, and for keeping the staging tables small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from logstore import errors

__all__ = ["Drained", "run_once"]

MOST_RECORDS: Final = 10_000
"""What one transaction appends at most."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What one run came to."""

    records: int
    """How many came into the log."""
    emptied: int
    """How many pairs of staging tables were emptied."""


def run_once(dsn: str, schema: str = "logstore", *, min_bytes: int = 8 << 20) -> Drained:
    """Append everything that committed transactions have staged, and wake those who wait for it.

    Staging tables that have been drained and are larger than ``min_bytes`` are emptied.  Stops early, without
    an error, when somebody else drains or holds a partition for longer than a moment: what is left is for
    them, or for the next run.  It may be killed anywhere, and works through a pooler.  Raises
    ConnectionFailedError and what :func:`logstore.errors.from_server` makes of the server's errors.
    """
    records = emptied = 0
    drain, wake, sweep = (
        sql.SQL(text).format(sql.Identifier(schema))
        for text in (
            "SELECT records, topic_ids, more FROM {}.drain(%s)",
            "SELECT {}.wake(%s)",
            "SELECT {}.sweep_staged(%s)",
        )
    )
    try:
        with psycopg.connect(
            dsn, autocommit=True, prepare_threshold=None, application_name="logstore drain"
        ) as connection:
            more = True
            while more:
                try:
                    row = connection.execute(drain, [MOST_RECORDS]).fetchone()
                except psycopg.errors.LockNotAvailable:
                    break
                if row is None or row[1] is None:
                    break
                appended, topic_ids, more = row
                records += appended
                if topic_ids:
                    connection.execute(wake, [topic_ids])
            found = connection.execute(sweep, [min_bytes]).fetchone()
            emptied = found[0] if found else 0
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise errors.ConnectionFailedError(str(error).strip()) from error
        diag = error.diag
        raise errors.from_server(
            error.sqlstate, diag.message_primary or str(error), diag.message_detail, diag.message_hint
        ) from error
    return Drained(records, emptied)
