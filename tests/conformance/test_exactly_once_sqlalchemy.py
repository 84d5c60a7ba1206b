"""SQLAlchemy sessions in which records are processed exactly once: the same in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import BigInteger, Engine, String, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from logstore import AsyncConsumer, Consumer
from logstore._core.dsn import asyncpg_arguments
from logstore.errors import (
    ConfigurationError,
    IllegalStateError,
    InvalidArgumentError,
    TransactionAbortedError,
)
from logstore.sqlalchemy import transaction
from tests.support.appender import Appender, values
from tests.support.proxy import Proxy
from tests.support.servers import Server

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]

ENOUGH_MS = 30_000


class Base(DeclarativeBase):
    pass


class Seen(Base):
    __tablename__ = "seen"
    value: Mapped[str] = mapped_column(String, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


@pytest.fixture
def log(appender: Appender, raw: psycopg.Connection[Any]) -> Appender:
    appender.create("in", 1)
    appender.create("out", 1)
    appender.append("in", values(10), 0)
    raw.execute("CREATE TABLE seen (value text PRIMARY KEY, at bigint)")
    return appender


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as made:
        yield made


def engine(dsn: str, **options: Any) -> Engine:
    return create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool, **options
    )


def async_engine(dsn: str, **options: Any) -> AsyncEngine:
    async def connect() -> Any:
        return await asyncpg.connect(**asyncpg_arguments(psycopg.conninfo.conninfo_to_dict(dsn)))

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool, **options)


OPTIONS: Any = {
    "group_id": "g",
    "auto_offset_reset": "earliest",
    "heartbeat_interval_ms": 50,
    "max_poll_records": 5,
}

Act = Callable[[Any], None]


def threads(dsn: str, session_dsn: str, acts: list[Act], **options: Any) -> None:
    """One transaction for each of ``acts``, which may raise."""
    sessions = sessionmaker(engine(session_dsn, **options))
    with Consumer("in", dsn=dsn, **OPTIONS) as consumer:
        for act in acts:
            with transaction(consumer, sessions, timeout_ms=ENOUGH_MS) as tx:
                act(tx)
                for record in tx.records:
                    tx.send("out", b"did " + record.value)


def tasks(dsn: str, session_dsn: str, acts: list[Act], **options: Any) -> None:
    """The same with tasks."""

    async def run() -> None:
        made = async_engine(session_dsn, **options)
        async with AsyncConsumer("in", dsn=dsn, **OPTIONS) as consumer:
            for act in acts:
                sessions = async_sessionmaker(made)
                async with transaction(consumer, sessions, timeout_ms=ENOUGH_MS) as tx:
                    act(tx)
                    for record in tx.records:
                        await tx.send("out", b"did " + record.value)

    asyncio.run(run())


@pytest.fixture(params=[threads, tasks])
def process(request: pytest.FixtureRequest, log: Appender) -> Callable[..., None]:
    found: Callable[..., None] = request.param
    return found


def store(tx: Any) -> None:
    for record in tx.records:
        tx.session.add(Seen(value=record.value.decode(), at=record.offset))


def fail(tx: Any) -> None:
    store(tx)
    raise ZeroDivisionError


def check(raw: psycopg.Connection[Any], count: int) -> None:
    """Exactly the first ``count`` records have been processed, wherever one looks."""
    rows = raw.execute("SELECT value FROM seen ORDER BY at").fetchall()
    assert rows == [(str(number),) for number in range(count)]
    rows = raw.execute(
        "SELECT value_text FROM logstore.records WHERE topic = 'out' ORDER BY \"offset\""
    ).fetchall()
    assert rows == [(f"did {number}",) for number in range(count)]
    row = raw.execute("SELECT max(committed_offset) FROM logstore.group_lag WHERE topic = 'in'").fetchone()
    assert ((row and row[0]) or 0) == count


def test_rows_records_and_offsets_are_committed_together(
    process: Callable[..., None], database: str, raw: psycopg.Connection[Any]
) -> None:
    process(database, database, [store, store])
    check(raw, 10)


def test_an_error_rolls_everything_back(
    process: Callable[..., None], database: str, raw: psycopg.Connection[Any]
) -> None:
    with pytest.raises(ZeroDivisionError):
        process(database, database, [store, fail])
    check(raw, 5)
    process(database, database, [store])
    check(raw, 10)


def test_a_flush_that_fails_rolls_everything_back(
    process: Callable[..., None], database: str, raw: psycopg.Connection[Any]
) -> None:
    raw.execute("INSERT INTO seen VALUES ('7', 7)")
    with pytest.raises(IntegrityError):
        process(database, database, [store, store])
    raw.execute("DELETE FROM seen WHERE value = '7'")
    check(raw, 5)


@pytest.mark.parametrize("fault", ["the answer", "the commit"])
def test_a_connection_lost_during_the_commit_does_no_harm(
    process: Callable[..., None], database: str, proxy: Proxy, raw: psycopg.Connection[Any], fault: str
) -> None:
    if fault == "the answer":
        proxy.cut_before_answer_to(b"COMMIT")
        process(database, proxy.dsn, [store])
        check(raw, 5)
    else:
        proxy.lose_once(b"COMMIT")
        with pytest.raises(TransactionAbortedError, match="rolled back"):
            process(database, proxy.dsn, [store])
        check(raw, 0)
    assert proxy.cuts == 1


def test_sessions_that_do_not_fit_are_refused(
    process: Callable[..., None], database: str, raw: psycopg.Connection[Any], server: Server
) -> None:
    for migrated in (True, False):  # another log, and no log at all
        elsewhere = server.create(migrated=migrated)
        with pytest.raises(ConfigurationError, match="another database"):
            process(database, elsewhere, [store])
        server.drop(elsewhere)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        process(database, database, [store], isolation_level="AUTOCOMMIT")
    check(raw, 0)
    with pytest.raises(Exception, match="READ COMMITTED"):
        process(database, database, [store], isolation_level="REPEATABLE READ")
    check(raw, 0)


def test_a_session_with_a_transaction_open_is_refused(
    database: str, log: Appender, raw: psycopg.Connection[Any]
) -> None:
    with (
        Consumer("in", dsn=database, **OPTIONS) as consumer,
        sessionmaker(engine(database))() as session,
    ):
        session.get(Seen, "1")
        with (
            pytest.raises(IllegalStateError, match="open already"),
            transaction(consumer, session, timeout_ms=ENOUGH_MS),
        ):
            pass
        session.rollback()
        with transaction(consumer, session, timeout_ms=ENOUGH_MS) as tx:
            with session.begin_nested() as savepoint:
                session.add(Seen(value="never", at=0))
                savepoint.rollback()
            store(tx)
            for record in tx.records:
                tx.send("out", b"did " + record.value)
        check(raw, 5)
    with pytest.raises(InvalidArgumentError):
        transaction(None, session)  # type: ignore[call-overload]
