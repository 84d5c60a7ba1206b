"""The job that drains when nobody waits."""

from __future__ import annotations

import psycopg
import pytest

from logstore.errors import ConnectionFailedError
from logstore.workers import drain
from tests.support.colours import Colour
from tests.support.log import blocked, records


@pytest.fixture
def staged(database: str) -> psycopg.Connection[tuple[object, ...]]:
    """Three records, in three transactions; a session of the program's."""
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SELECT logstore.create_topic('t', 1)")
        for number in range(3):
            connection.execute("SELECT logstore.produce('t', null, %s::text)", [str(number)])
    return connection


@pytest.mark.every_server
def test_everything_comes_into_the_log(
    staged: object, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "MOST_RECORDS", 2)
    assert drain.run_once(database).records == 3
    assert [record.value for record in records(database, "t")] == [b"0", b"1", b"2"]
    assert drain.run_once(database).records == 0


@pytest.mark.one_server
def test_somebody_else_is_at_it(staged: object, database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute("SELECT logstore.drain(1)")
        assert drain.run_once(database) == drain.Drained(0, 0)
    assert drain.run_once(database).records == 2


@pytest.mark.one_server
def test_somebody_holds_a_partition(staged: object, database: str) -> None:
    with blocked(database, "t"):
        assert drain.run_once(database).records == 0
    assert drain.run_once(database).records == 3


@pytest.mark.one_server
def test_who_waits_is_woken(colour: Colour, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT logstore.create_topic('t', 1)")
        consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
        connection.execute("SELECT logstore.produce('t', 'k', 'v')")
        drain.run_once(database)
        assert [len(part) for part in consumer.poll(timeout_ms=30_000).values()] == [1]


def test_no_server() -> None:
    with pytest.raises(ConnectionFailedError):
        drain.run_once("host=127.0.0.1 port=1 connect_timeout=2")
