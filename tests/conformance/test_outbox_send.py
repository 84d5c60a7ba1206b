"""``send(…, connection=…)``: the record goes with the program's transaction, whatever it works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    InvalidTimestampError,
    OutboxConnectionError,
    RecordTooLargeError,
    SchemaMissingError,
    UnknownTopicOrPartitionError,
)
from tests.support.colours import Asyncio, Colour
from tests.support.log import records
from tests.support.servers import Server

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]


@pytest.fixture(autouse=True)
def tables(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT logstore.create_topic('t', 3)")
        connection.execute("CREATE TABLE mine (n int4)")


def in_log(dsn: str) -> list[bytes]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT logstore.drain()")
    return sorted(record.value or b"" for record in records(dsn, "t"))


def alchemy(dsn: str, driver: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(scheme=f"postgresql+{driver}"))


class Mine:
    """A connection of the program's: what is done with it is the same whatever it is."""

    def __init__(self, raw: Any, run: Callable[[Callable[[], Any]], Any], close: Callable[[], Any]) -> None:
        self.raw = raw
        self._run = run
        self.close = close

    def execute(self, sql: str) -> Any:
        statement = text(sql) if "sqlalchemy" in type(self.raw).__module__ else sql
        return self._run(lambda: self.raw.execute(statement))

    def _do(self, what: str, sql: str) -> None:
        """By SQLAlchemy's method, or as a statement."""
        if "sqlalchemy" in type(self.raw).__module__ or isinstance(
            self.raw, psycopg.Connection | psycopg.AsyncConnection
        ):
            self._run(getattr(self.raw, what))
        else:
            self.execute(sql)

    def begin(self) -> None:
        if isinstance(self.raw, asyncpg.Connection):
            self.execute("BEGIN")

    def commit(self) -> None:
        self._do("commit", "COMMIT")

    def rollback(self) -> None:
        self._do("rollback", "ROLLBACK")


SYNC = ("psycopg", "session", "engine")
ASYNC = ("asyncpg", "psycopg", "session", "engine", "session on psycopg")


@pytest.fixture
def opened(colour: Colour, database: str) -> Iterator[Callable[..., Mine]]:
    """Makes a connection of a kind; autocommit or not; to a database."""
    stack = ExitStack()

    def run(call: Callable[[], Any]) -> Any:
        if isinstance(colour, Asyncio):
            return colour.run(call)
        return call()

    def make(kind: str, dsn: str = database, *, autocommit: bool = False) -> Mine:
        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        raw: Any
        if not isinstance(colour, Asyncio):
            if kind == "psycopg":
                raw = psycopg.connect(dsn, autocommit=autocommit)
            else:
                engine = create_engine(alchemy(dsn, "psycopg"), poolclass=NullPool, **options)
                raw = Session(engine) if kind == "session" else engine.connect()
        elif kind == "asyncpg":
            raw = run(lambda: asyncpg.connect(dsn))
        elif kind == "psycopg":
            raw = run(lambda: psycopg.AsyncConnection.connect(dsn, autocommit=autocommit))
        else:
            driver = "psycopg" if "psycopg" in kind else "asyncpg"
            url = alchemy(dsn, driver)
            found = create_async_engine(url, poolclass=NullPool, **options)
            raw = AsyncSession(found) if kind.startswith("session") else run(lambda: _started(found))
        mine = Mine(raw, run, lambda: run(raw.close))
        stack.callback(mine.close)
        return mine

    with stack:
        yield make


async def _started(engine: Any) -> Any:
    return await engine.connect()


def kinds(colour: Colour) -> tuple[str, ...]:
    return ASYNC if isinstance(colour, Asyncio) else SYNC


def test_with_the_transaction_or_not_at_all(
    colour: Colour, database: str, opened: Callable[..., Mine]
) -> None:
    producer = colour.producer(database)
    expected: list[bytes] = []
    for kind in kinds(colour):
        mine = opened(kind)
        for index, end in enumerate((mine.commit, mine.rollback, mine.commit)):
            mine.begin()
            mine.execute("INSERT INTO mine VALUES (1)")
            value = f"{kind} {index}".encode()
            future = producer.send("t", value, key=b"k", connection=mine.raw)
            assert future.done() and future.succeeded()
            metadata = future.get()
            assert (metadata.topic, metadata.offset, metadata.serialized_value_size) == (
                "t",
                -1,
                len(value),
            )
            assert in_log(database) == sorted(expected)
            end()
            expected += [value] * (index != 1)
            assert in_log(database) == sorted(expected)
        mine.begin()
        mine.execute("SAVEPOINT s")
        producer.send("t", b"never", connection=mine.raw)
        mine.execute("ROLLBACK TO s")
        mine.commit()
    assert in_log(database) == sorted(expected)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (2 * len(kinds(colour)),)


def test_a_record_is_what_send_makes_of_it(
    colour: Colour, database: str, opened: Callable[..., Mine]
) -> None:
    producer = colour.producer(database, value_serializer=str.encode, partitioner="murmur2")
    headers = [("a", b"\xff\x00"), ("a", None), ("", b"text")]
    for kind in kinds(colour):
        mine = opened(kind)
        mine.begin()
        metadata = producer.send(
            "t", "value", key=b"key", headers=headers, timestamp_ms=1234, connection=mine.raw
        ).get()
        producer.send("t", None, partition=2, connection=mine.raw)
        mine.commit()
        direct = producer.send("t", "value", key=b"key", headers=headers, timestamp_ms=1234).get()
        assert metadata.partition == direct.partition
        assert metadata._replace(offset=0) == direct._replace(offset=0)
    in_log(database)
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            'SELECT DISTINCT key, value, headers::text, "timestamp" FROM logstore.records '
            "WHERE value IS NOT NULL"
        ).fetchall()
        assert len(rows) == 1
        nothing = connection.execute(
            "SELECT count(*) FROM logstore.records WHERE value IS NULL AND partition = 2"
        ).fetchone()
        assert nothing == (len(kinds(colour)),)


def test_a_callback_is_called_at_once(colour: Colour, database: str, opened: Callable[..., Mine]) -> None:
    mine = opened("psycopg")
    told: list[int] = []
    producer = colour.producer(database)
    producer.send("t", b"v", connection=mine.raw).add_callback(lambda found: told.append(found.offset))
    assert told == [-1]


def test_autocommit(colour: Colour, database: str, opened: Callable[..., Mine]) -> None:
    producer = colour.producer(database)
    for kind in kinds(colour):
        mine = opened(kind, autocommit=True)
        with pytest.raises(OutboxConnectionError, match="autocommit") as caught:
            producer.send("t", b"v", connection=mine.raw)
        assert "transaction" in caught.value.advice
    assert in_log(database) == []


def test_a_transaction_block_in_autocommit(
    colour: Colour, database: str, opened: Callable[..., Mine]
) -> None:
    mine = opened("psycopg", autocommit=True)
    mine.execute("BEGIN")
    colour.producer(database).send("t", b"v", connection=mine.raw)
    mine.execute("COMMIT")
    assert in_log(database) == [b"v"]


def test_another_database(
    colour: Colour, database: str, empty_database: str, server: Server, opened: Callable[..., Mine]
) -> None:
    producer = colour.producer(database)
    other = server.create()
    try:
        with psycopg.connect(other) as connection:
            connection.execute("SELECT logstore.create_topic('t', 3)")
        for kind in kinds(colour):
            mine = opened(kind, other)
            mine.begin()
            with pytest.raises(OutboxConnectionError, match="another log") as caught:
                producer.send("t", b"v", connection=mine.raw)
            assert caught.value.details["sqlstate"] == "LS034"
            assert "database" in caught.value.advice
            with pytest.raises(IllegalStateError, match="failed before"):
                producer.send("t", b"v", connection=mine.raw)
            mine.close()
            nowhere = opened(kind, empty_database)
            nowhere.begin()
            with pytest.raises(SchemaMissingError):
                producer.send("t", b"v", connection=nowhere.raw)
            nowhere.close()
        assert in_log(other) == []
    finally:
        server.drop(other)
    assert in_log(database) == []


def test_what_send_refuses_leaves_the_transaction_alone(
    colour: Colour, database: str, opened: Callable[..., Mine]
) -> None:
    producer = colour.producer(database, max_block_ms=2000)
    for kind in kinds(colour):
        mine = opened(kind)
        mine.begin()
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send("missing", b"v", connection=mine.raw)
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send("t", b"v", partition=3, connection=mine.raw)
        with pytest.raises(RecordTooLargeError):
            producer.send("t", b"v" * 2_000_000, connection=mine.raw)
        with pytest.raises(InvalidArgumentError):
            producer.send("t", "text", connection=mine.raw)
        producer.send("t", b"v", connection=mine.raw)
        mine.commit()
        mine.begin()
        with pytest.raises(InvalidTimestampError):
            producer.send("t", b"v", timestamp_ms=2**45, connection=mine.raw)
        mine.rollback()
    assert in_log(database) == [b"v"] * len(kinds(colour))


def test_a_session_that_cannot_be_used(colour: Colour, database: str, opened: Callable[..., Mine]) -> None:
    mine = opened("engine")
    mine.close()
    with pytest.raises(IllegalStateError, match="closed"):
        colour.producer(database).send("t", b"v", connection=mine.raw)


def test_something_else(colour: Colour, database: str) -> None:
    producer = colour.producer(database)
    for thing in (object(), "postgresql://", 5, create_engine("postgresql+psycopg://")):
        with pytest.raises(InvalidArgumentError, match="connection is"):
            producer.send("t", b"v", connection=thing)


def test_a_connection_of_the_other_colour(colour: Colour, database: str) -> None:
    producer = colour.producer(database)
    if isinstance(colour, Asyncio):
        with psycopg.connect(database) as connection:
            engine = create_engine(alchemy(database, "psycopg"), poolclass=NullPool)
            with Session(engine) as session, engine.connect() as plain:
                for each in (connection, session, plain):
                    with pytest.raises(InvalidArgumentError, match="there is Producer"):
                        producer.send("t", b"v", connection=each)
    else:
        asyncio.run(_refused(producer, database))
    assert in_log(database) == []


async def _refused(producer: Any, dsn: str) -> None:
    engine = create_async_engine(alchemy(dsn, "asyncpg"), poolclass=NullPool)
    raw = await asyncpg.connect(dsn)
    async with AsyncSession(engine) as session, engine.connect() as plain:
        for each in (raw, session, plain):
            with pytest.raises(InvalidArgumentError, match="there is AsyncProducer"):
                producer.send("t", b"v", connection=each)
    await raw.close()
