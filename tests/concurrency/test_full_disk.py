"""A disk with no room left: appends are refused and nothing is lost; retention makes room, all goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from logstore import Producer
from logstore.errors import StorageFullError
from tests.support import audit, jobs
from tests.support.appender import Appender
from tests.support.log_story import connect
from tests.support.log_view import visible
from tests.support.programs import eventually
from tests.support.servers import Server
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.long

SIZE = 32 << 20
PATIENCE_S = 60


@dataclass
class Disk:
    dsn: str
    place: Path

    def free(self) -> int:
        return shutil.disk_usage(self.place).free


@pytest.fixture
def disk(server: Server) -> Iterator[Disk]:
    """A log on a disk of its own, which is small.  (What PostgreSQL writes ahead is on another one.)"""
    if server.home is None or server.superuser_dsn is None:
        pytest.skip("needs a server of our own, to make a tablespace on")
    template = urlsplit(server.create()).path[1:]
    name = sql.Identifier("full_disk")
    with (
        small_disk(SIZE, server.home / "data") as place,
        psycopg.connect(server.superuser_dsn, autocommit=True) as superuser,
    ):
        # A vacuum of the catalog takes away a file that the next connection writes anew, or is refused.
        autovacuum(superuser, "off")
        owner = sql.Identifier(str(urlsplit(server.dsn).username or superuser.info.user))
        superuser.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(place))))
        superuser.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} TABLESPACE small").format(
                name, owner, sql.Identifier(template)
            )
        )
        try:
            found = Disk(server.database("full_disk"), place)
            connect(found.dsn).close()
            yield found
        finally:
            superuser.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            superuser.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(template)))
            superuser.execute("DROP TABLESPACE small")
            autovacuum(superuser, "DEFAULT")


def autovacuum(superuser: psycopg.Connection[tuple[object, ...]], value: LiteralString) -> None:
    superuser.execute("ALTER SYSTEM SET autovacuum = " + value)
    superuser.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("first_time", [False, True], ids=["again", "for the first time"])
def test_a_full_disk(disk: Disk, first_time: bool) -> None:
    written: dict[int, bytes] = {}
    with Appender(disk.dsn) as appender, closing(connect(disk.dsn)) as session:
        appender.create("t", segment_bytes="1000000", file_delete_delay_ms="0")
        if not first_time:
            append(appender, written, 10_000, 200)
            retain(session, 1_000_000)
            jobs.settle(disk.dsn)
            retain(session, -1)
        # Before the disk is full: what is kept for that moment.
        jobs.run(disk.dsn, "reclaim")
        for size in (10_000, 1_000, 10):
            with pytest.raises(StorageFullError) as caught:
                append(appender, written, size, SIZE)
            assert caught.value.retriable
        assert disk.free() < 100_000
        with Producer(disk.dsn, linger_ms=0, retry_backoff_ms=10, delivery_timeout_ms=60_000) as producer:
            waiting = producer.send("t", b"w" * 20_000)
            eventually(lambda: producer.metrics()["record-retry-total"] > 2, "the producer tries again")
            assert not waiting.done()
            retain(session, 3_000_000)
            jobs.settle(disk.dsn)
            written[waiting.get(PATIENCE_S).offset] = b"w" * 20_000
        assert disk.free() > SIZE // 4
        append(appender, written, 10_000, 100)
        there = visible(session, "t")[0]
        assert [record.offset for record in there] == list(range(there[0].offset, len(written)))
        assert {record.offset: record.value for record in there} == {
            offset: value for offset, value in written.items() if offset >= there[0].offset
        }
    assert audit.faults(disk.dsn) == []


def append(appender: Appender, written: dict[int, bytes], size: int, count: int) -> None:
    """Note what is acknowledged, until that fails."""
    for _ in range(count):
        value = b"%d." % len(written) + b"x" * size
        written[appender.append("t", [value], wake=False)] = value


def retain(session: psycopg.Connection[tuple[object, ...]], size: int) -> None:
    """What an operator does."""
    session.execute("SELECT alter_topic('t', %s)", [json.dumps({"retention.bytes": str(size)})])
