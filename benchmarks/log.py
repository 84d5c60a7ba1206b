"""The server under test: an embedded one with fsync on, in a throw-away directory, or a given one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo, sql

from benchmarks.machine import on_memory_file_system
from logstore import Admin, migrations
from logstore.embedded import EmbeddedServer

__all__ = ["BenchServer", "running_server", "topic_id"]

_SETTINGS: Final = {"shared_preload_libraries": "pg_stat_statements"}


@dataclass
class BenchServer:
    """Makes logs: each a database of its own, so that one scenario leaves nothing for the next."""

    admin_dsn: str
    owner: str | None
    """Who owns the databases; None: whoever connects."""
    directory: Path | None

    def fresh_log(self, name: str) -> str:
        """A database with an empty log; its DSN."""
        self.drop_log(name)
        with self.admin() as connection:
            statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
            if self.owner:
                statement += sql.SQL(" OWNER {}").format(sql.Identifier(self.owner))
            connection.execute(statement)
        changes: dict[str, Any] = {"dbname": name}
        if self.owner:
            changes["user"] = self.owner
        dsn = _uri(conninfo.make_conninfo(self.admin_dsn, **changes))
        migrations.upgrade(dsn)
        return dsn

    def drop_log(self, name: str) -> None:
        with self.admin() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.admin_dsn, autocommit=True)

    def superuser_dsn(self, log_dsn: str) -> str:
        """The same database as the one who may see everything."""
        return conninfo.make_conninfo(
            self.admin_dsn, dbname=str(conninfo.conninfo_to_dict(log_dsn)["dbname"])
        )

    def checkpoint(self) -> None:
        """So that writing back what one sample dirtied is not paid for by the next."""
        with self.admin() as connection:
            connection.execute("CHECKPOINT")


def _uri(text: str) -> str:
    """Key/value as a URI, which every driver reads."""
    parts = {name: str(value) for name, value in conninfo.conninfo_to_dict(text).items()}
    user = quote(parts.pop("user", ""), safe="")
    password = parts.pop("password", None)
    credentials = user + (":" + quote(password, safe="") if password else "") + ("@" if user else "")
    database = quote(parts.pop("dbname", ""), safe="")
    return f"postgresql://{credentials}/{database}?{urlencode(parts)}"


@contextmanager
def running_server(dsn: str | None) -> Iterator[BenchServer]:
    """``dsn``: of a superuser; None: an embedded server of our own."""
    if dsn is not None:
        yield BenchServer(dsn, None, None)
        return
    with tempfile.TemporaryDirectory(prefix="logstore-bench-") as home:
        if on_memory_file_system(Path(home)):
            raise SystemExit(
                f"{home} is in memory, where fsync is free: set TMPDIR to a directory on a disk."
            )
        server = EmbeddedServer(Path(home), _SETTINGS, idle_s=5)
        with server.start_or_join() as handle:
            status = handle.status
            try:
                yield BenchServer(status.superuser_dsn, "logstore", Path(home))
            finally:
                server.stop()


def topic_id(dsn: str, topic: str) -> int:
    """The number that the SQL functions know ``topic`` by."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT topic_id FROM logstore.topics WHERE topic = %s", [topic]).fetchone()
    assert row is not None
    return int(row[0])


def create_topic(dsn: str, topic: str, partitions: int) -> int:
    """Create ``topic``; its number."""
    with Admin(dsn) as admin:
        admin.create_topic(topic, partitions=partitions)
    return topic_id(dsn, topic)


def request_shapes(dsn: str, topic: str) -> list[list[tuple[int, int]]]:
    """How the client cut what is in ``topic``: the (partition, records) of the batches of each request."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            """
            SELECT array_agg("partition" ORDER BY "partition"), array_agg(record_count ORDER BY "partition")
            FROM (SELECT xmin::text AS request, "partition", record_count, last_offset
                  FROM logstore.batches WHERE topic_id = %s) AS batch
            GROUP BY request
            ORDER BY min(request::int8)
            """,
            [topic_id(dsn, topic)],
        ).fetchall()
    return [list(zip(partitions, counts, strict=True)) for partitions, counts in rows]
