"""What is in a log, read with plain SQL: no client of ours is involved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

__all__ = ["Written", "blocked", "records", "terminate", "waiting_for_a_lock", "watch"]


class Written(NamedTuple):
    """A record as the view shows it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def records(dsn: str, topic: str) -> list[Written]:
    """Every record of ``topic``, by partition and offset."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            'SELECT partition, "offset", key, value FROM logstore.records WHERE topic = %s '
            'ORDER BY partition, "offset"',
            [topic],
            binary=True,
        )
        return [Written(*row) for row in rows]


def watch(dsn: str, sql: str, *arguments: Any) -> Any:
    """The first column of the first row of a query."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(sql, arguments).fetchone()
        return None if row is None else row[0]


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
