"""What is in a log, read with plain SQL: no client of ours is involved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import Cursor
from psycopg.rows import TupleRow

__all__ = ["Written", "blocked", "kept", "records", "terminate", "waiting_for_a_lock", "watch"]


class Written(NamedTuple):
    """A record as the view shows it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


_kept: dict[str, list[psycopg.Connection[TupleRow]]] = {}
"""Sessions that nobody uses at the moment, by the DSNs of which some are kept."""


@contextmanager
def kept(dsn: str) -> Iterator[None]:
    """Inside, whoever looks there again needs no new connection: most tests do, and it is most of a look."""
    _kept[dsn] = []
    try:
        yield
    finally:
        for session in _kept.pop(dsn):
            session.close()


def records(dsn: str, topic: str) -> list[Written]:
    """Every record of ``topic``, by partition and offset."""
    rows = _execute(
        dsn,
        'SELECT partition, "offset", key, value FROM logstore.records WHERE topic = %s '
        'ORDER BY partition, "offset"',
        [topic],
        binary=True,
    )
    return [Written(*row) for row in rows]


def watch(dsn: str, sql: str, *arguments: Any) -> Any:
    """The first column of the first row of a query."""
    row = _execute(dsn, sql, arguments).fetchone()
    return None if row is None else row[0]


def _execute(dsn: str, sql: str, arguments: Sequence[Any], *, binary: bool = False) -> Cursor[TupleRow]:
    known = _kept.get(dsn)
    session = known.pop() if known else _session(dsn)
    try:
        return session.execute(sql.encode(), arguments, binary=binary)
    except psycopg.OperationalError:
        if not (known is not None and session.closed):
            raise
        # A test had the server end its sessions.
        session = _session(dsn)
        return session.execute(sql.encode(), arguments, binary=binary)
    finally:
        if known is None or dsn not in _kept:
            session.close()
        else:
            known.append(session)


def _session(dsn: str) -> psycopg.Connection[TupleRow]:
    # A statement that is looked at often would be prepared, and a pooler lends another server next time.
    return psycopg.connect(dsn, autocommit=True, prepare_threshold=None)


@contextmanager
def blocked(dsn: str, topic: str, partition: int | None = None) -> Iterator[None]:
    """Nothing can be appended to ``topic`` (or to one partition of it) inside."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT FROM logstore.topic_partition p JOIN logstore.topic t USING (topic_id) "
            "WHERE t.name = %s AND coalesce(p.partition = %s, true) FOR UPDATE OF p",
            [topic, partition],
        )
        try:
            yield
        finally:
            connection.rollback()


def waiting_for_a_lock(dsn: str, application_name: str = "logstore") -> bool:
    """A client is being kept waiting by :func:`blocked`."""
    return bool(
        watch(
            dsn,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s",
            application_name,
        )
    )


def terminate(dsn: str, application_name: str) -> int:
    """End the connections of that name; how many there were."""
    return int(
        watch(
            dsn,
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
            "WHERE application_name = %s AND pid <> pg_backend_pid()",
            application_name,
        )
    )
