"""Heartbeats leave nothing behind, whatever snapshot is held elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from logstore._sync.driver import Connection
from tests.support.appender import Appender
from tests.support.membership import Member, connection, held_snapshot, settle

RING = ("group_heartbeat_0", "group_heartbeat_1", "group_heartbeat_2", "heartbeat_ring")


@pytest.fixture
def server_side(database: str) -> Iterator[Connection]:
    with connection(database) as made:
        yield made


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as made:
        yield made


@pytest.fixture
def log(database: str) -> Iterator[Appender]:
    with Appender(database) as made:
        made.create("t", 10)
        yield made


def dead(raw: psycopg.Connection) -> dict[str, int]:
    """Dead row versions per table, counted in the tables: statistics come late."""
    raw.execute("SELECT pg_stat_force_next_flush()")
    rows = raw.execute(
        "SELECT relname, n_tup_upd + n_tup_del FROM pg_stat_all_tables "
        "WHERE schemaname = 'logstore' AND n_tup_upd + n_tup_del > 0"
    ).fetchall()
    return dict(rows)


def rotate(raw: psycopg.Connection, full_bytes: int = 0) -> bool:
    row = raw.execute("SELECT logstore.rotate_heartbeats(%s)", [full_bytes]).fetchone()
    assert row is not None
    return bool(row[0])


def beats(raw: psycopg.Connection) -> list[int]:
    return [
        count
        for table in RING[:3]
        for (count,) in raw.execute(f"SELECT count(*) FROM logstore.{table}").fetchall()  # noqa: S608
    ]


def test_steady_heartbeats_change_no_row(
    server_side: Connection, log: Appender, raw: psycopg.Connection, database: str
) -> None:
    members = [Member(server_side, f"m{number}") for number in range(5)]
    settle(*members)
    with held_snapshot(database):
        server_side.execute("SELECT pg_stat_force_next_flush()")
        before = dead(raw)
        for _ in range(50):
            for member in members:
                assert member.beat(member.epoch).unchanged
        server_side.execute("SELECT pg_stat_force_next_flush()")
        assert dead(raw) == before


def test_steady_heartbeats_write_no_table_to_the_log(
    server_side: Connection, log: Appender, raw: psycopg.Connection
) -> None:
    """A commit record of some 34 bytes each; nothing of the tables, and nothing is flushed."""
    member = Member(server_side, "a")
    member.beat()
    member.beat(member.epoch)
    begin = raw.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    for _ in range(100):
        member.beat(member.epoch)
    written = raw.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", begin).fetchone()
    assert written is not None
    assert written[0] < 100 * 200


def test_ring_turns_and_keeps_leases(
    server_side: Connection, log: Appender, raw: psycopg.Connection, database: str
) -> None:
    member = Member(server_side, "a", session_timeout_ms=100)
    member.beat()
    with held_snapshot(database):
        for _ in range(7):
            while not rotate(raw):
                member.beat(member.epoch)
            assert 0 in beats(raw)
            member.beat(member.epoch)
    row = raw.execute("SELECT count(*) FROM logstore.group_member").fetchone()
    assert row == (1,)


def test_ring_does_not_turn_while_a_lease_may_need_it(
    server_side: Connection, log: Appender, raw: psycopg.Connection
) -> None:
    member = Member(server_side, "a")
    member.beat()
    assert not rotate(raw)
    assert not rotate(raw, 1 << 40)


def test_ring_does_not_wait_for_a_reader(
    server_side: Connection, log: Appender, raw: psycopg.Connection, database: str
) -> None:
    member = Member(server_side, "a", session_timeout_ms=100)
    member.beat()
    while not rotate(raw):
        member.beat(member.epoch)
    with psycopg.connect(database) as reader:
        for table in RING[:3]:
            reader.execute(f"SELECT count(*) FROM logstore.{table}")  # noqa: S608
        assert not rotate(raw)
        assert not rotate(raw)
        assert member.beat(member.epoch).unchanged
