"""Records read, rows written, records produced and offsets move in one commit, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

import logstore._async.fetcher as tasks
import logstore._sync.fetcher as threads
from logstore.errors import (
    CommitFailedError,
    ConfigurationError,
    IllegalStateError,
    InvalidArgumentError,
    RequestTimedOutError,
    TransactionAbortedError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from logstore.records import TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.proxy import Proxy

pytestmark = pytest.mark.one_server

TP = TopicPartition("in", 0)
ENOUGH_MS = 30_000
LOST = (psycopg.OperationalError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the drivers raise to a program whose connection is gone."""


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


@pytest.fixture
def log(appender: Appender, raw: psycopg.Connection[Any]) -> Appender:
    appender.create("in", 1)
    appender.create("out", 2)
    appender.append("in", values(10), 0)
    raw.execute("CREATE TABLE seen (value text UNIQUE, at bigint)")
    return appender


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as made:
        yield made


@pytest.fixture
def consumer(colour: Colour, database: str, log: Appender) -> Callable[..., Any]:
    def make(dsn: str = database, **options: Any) -> Any:
        settings: dict[str, Any] = {
            "group_id": "g",
            "auto_offset_reset": "earliest",
            "heartbeat_interval_ms": 50,
            "max_poll_records": 5,
        }
        return colour.consumer("in", dsn=dsn, **{**settings, **options})

    return make


def execute(tx: Any, sql: str, *arguments: Any) -> None:
    """Run a statement on what the transaction gives: psycopg's connection or asyncpg's."""
    connection = tx.connection
    if isinstance(connection, psycopg.Connection):
        psycopg.RawCursor(connection).execute(sql.encode(), arguments)
    else:
        tx._run(lambda: connection.execute(sql, *arguments))


def process(tx: Any) -> list[Any]:
    """A row and a record for each record; the futures."""
    futures = []
    for record in tx.records:
        execute(tx, "INSERT INTO seen VALUES ($1::text, $2::int8)", record.value.decode(), record.offset)
        futures.append(tx.send("out", b"did " + record.value, partition=record.offset % 2))
    return futures


def seen(raw: psycopg.Connection[Any]) -> list[str]:
    return [value for (value,) in raw.execute("SELECT value FROM seen ORDER BY at").fetchall()]


def produced(raw: psycopg.Connection[Any]) -> list[str]:
    rows = raw.execute(
        "SELECT value_text FROM logstore.records WHERE topic = 'out' ORDER BY \"offset\", partition"
    )
    return [value for (value,) in rows.fetchall()]


def committed(raw: psycopg.Connection[Any]) -> int | None:
    """What somebody has processed: the first commit says only where the group begins."""
    row = raw.execute("SELECT committed_offset FROM logstore.group_lag WHERE topic = 'in'").fetchone()
    return row[0] if row and row[0] else None


def check(raw: psycopg.Connection[Any], count: int) -> None:
    """Exactly the first ``count`` records have been processed, wherever one looks."""
    assert seen(raw) == [str(number) for number in range(count)]
    assert sorted(produced(raw)) == sorted(f"did {number}" for number in range(count))
    assert (committed(raw) or 0) == count


def until_records(consumer: Any, **options: Any) -> Any:
    """A transaction's block whose records have come; entered."""
    while True:
        tx = consumer.transaction(timeout_ms=ENOUGH_MS, **options)
        entered = tx.__enter__()
        if entered.records:
            return entered
        entered.__exit__(None, None, None)


@pytest.mark.every_server
def test_everything_in_a_transaction_is_committed_together(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer()
    for count in (5, 10):
        with made.transaction(timeout_ms=ENOUGH_MS) as tx:
            assert [record.offset for record in tx.records] == list(range(count - 5, count))
            futures = process(tx)
            assert not any(future.done() for future in futures)
            check(raw, count - 5)
        assert all(future.succeeded() for future in futures)
        check(raw, count)
    assert futures[-1].get(0).topic_partition == TopicPartition("out", 1)
    assert futures[-1].get(0).offset == 4


def test_an_error_rolls_everything_back_and_the_records_come_again(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), made.transaction(timeout_ms=ENOUGH_MS) as tx:
            assert [record.offset for record in tx.records] == list(range(5))
            futures = process(tx)
            raise ZeroDivisionError
        check(raw, 0)
        with pytest.raises(TransactionAbortedError):
            futures[0].get(0)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 5)


def test_savepoints_are_the_programs_own(consumer: Callable[..., Any], raw: psycopg.Connection[Any]) -> None:
    with consumer().transaction(timeout_ms=ENOUGH_MS) as tx:
        execute(tx, "SAVEPOINT mine")
        with pytest.raises(Exception, match="does not exist"):
            execute(tx, "SELECT nonsense")
        execute(tx, "ROLLBACK TO mine")
        process(tx)
    check(raw, 5)


def test_a_statement_that_failed_is_not_committed_around(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer()
    with (
        pytest.raises(TransactionAbortedError, match="has failed"),
        made.transaction(timeout_ms=ENOUGH_MS) as tx,
    ):
        process(tx)
        with pytest.raises(Exception, match="does not exist"):
            execute(tx, "SELECT nonsense")
    check(raw, 0)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 5)


def test_a_deferred_constraint_is_checked_before_anything_is_appended(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    """Or it would take the program's locks after ours, and two transactions could wait for each other."""
    raw.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% batches so far', (SELECT count(*) FROM logstore.records WHERE topic = 'out');
        END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON seen DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    made = consumer()
    with pytest.raises(Exception, match="0 batches so far"), made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 0)


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"])
def test_a_program_that_ends_the_transaction_itself_is_told(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any], statement: str
) -> None:
    made = consumer()
    with (
        pytest.raises(IllegalStateError, match="ended the transaction"),
        made.transaction(timeout_ms=ENOUGH_MS) as tx,
    ):
        tx.send("out", b"x")
        if isinstance(tx.connection, psycopg.Connection):
            tx.connection.execute(statement.encode())
        else:
            execute(tx, statement)
    check(raw, 0)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 5)


def test_a_transaction_without_records_commits_what_the_program_does(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer(auto_offset_reset="latest")
    with made.transaction(timeout_ms=0) as tx:
        assert tx.records == []
        execute(tx, "INSERT INTO seen VALUES ('x', 1)")
        tx.send("out", b"x")
    assert (seen(raw), produced(raw), committed(raw) in (None, 10)) == (["x"], ["x"], True)


def test_a_member_that_lost_its_partitions_commits_nothing(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    """Though it has them again when it commits: somebody else may have had them meanwhile."""
    made = consumer()
    with pytest.raises(CommitFailedError), made.transaction(timeout_ms=ENOUGH_MS) as tx:
        futures = process(tx)
        raw.execute("SELECT logstore.remove_member('g', %s)", (made.group_metadata().member_id,))
        eventually(lambda: claim(raw) == (2, True), "the partition is its own again")
    assert futures[0].failed()
    check(raw, 0)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 5)


def claim(raw: psycopg.Connection[Any]) -> tuple[int, bool]:
    """The claim's epoch, and whether somebody owns it."""
    row = raw.execute("SELECT claim_epoch, owner IS NOT NULL FROM logstore.group_claim").fetchone()
    assert row is not None
    return row[0], row[1]


def test_partitions_that_were_assigned_by_hand(
    consumer: Callable[..., Any], colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    made = colour.consumer(dsn=database, group_id="g", auto_offset_reset="earliest", max_poll_records=5)
    made.assign([TP])
    with pytest.raises(ZeroDivisionError), made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
        raise ZeroDivisionError
    with made.transaction(timeout_ms=ENOUGH_MS, max_records=3) as tx:
        process(tx)
    check(raw, 3)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 8)


# -- connections that are lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["the answer", "the commit"])
def test_a_connection_lost_during_the_commit_does_no_harm(
    consumer: Callable[..., Any], proxy: Proxy, raw: psycopg.Connection[Any], fault: str
) -> None:
    made = consumer(dsn=proxy.dsn)
    tx = until_records(made)
    futures = process(tx)
    if fault == "the answer":
        proxy.cut_before_answer_to(b"COMMIT")
        tx.__exit__(None, None, None)
        proxy.cut_before_answer_to(None)
        assert all(future.succeeded() for future in futures)
        check(raw, 5)
    else:
        proxy.lose_once(b"COMMIT")
        with pytest.raises(TransactionAbortedError, match="rolled back"):
            tx.__exit__(None, None, None)
        assert all(future.failed() for future in futures)
        check(raw, 0)
        with made.transaction(timeout_ms=ENOUGH_MS) as tx:
            process(tx)
        check(raw, 5)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    assert proxy.cuts == 1
    check(raw, 10)


@pytest.mark.parametrize("fault", ["the answer", "the commit"])
def test_what_cannot_be_found_out_now_is_asked_before_anything_else(
    consumer: Callable[..., Any],
    proxy: Proxy,
    raw: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    made = consumer(dsn=proxy.dsn)
    tx = until_records(made)
    futures = process(tx)
    if fault == "the answer":
        proxy.cut_before_answer_to(b"COMMIT")
    else:
        proxy.lose_once(b"COMMIT")
    with monkeypatch.context() as patched:
        for module in (threads, tasks):
            patched.setattr(module.Fetcher, "ask", unanswered(module.Fetcher.ask))
        with pytest.raises(UnknownOutcomeError):
            tx.__exit__(None, None, None)
        for refused in (made.poll, made.commit, lambda: made.transaction().__enter__()):
            with pytest.raises((IllegalStateError, RequestTimedOutError)):
                refused()
        assert not any(future.done() for future in futures)
    proxy.cut_before_answer_to(None)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        assert tx.records[0].offset == (5 if fault == "the answer" else 0)
        process(tx)
    assert all(future.succeeded() == (fault == "the answer") for future in futures)
    check(raw, 10 if fault == "the answer" else 5)


def unanswered(ask: Callable[..., Any]) -> Callable[..., Any]:
    """``Fetcher.ask`` without an answer to the question what came of a commit."""

    def refuse(fetcher: Any, call: Any, timeout_s: float | None = None) -> Any:
        if call.name == "await_offsets":
            raise RequestTimedOutError("The server did not answer.")
        return ask(fetcher, call, timeout_s)

    return refuse


def test_a_connection_lost_in_the_middle_rolls_back(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer()
    with pytest.raises(LOST), made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
        raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE state = 'idle in transaction' AND datname = current_database()"
        )
        process(tx)
    check(raw, 0)
    with made.transaction(timeout_ms=ENOUGH_MS) as tx:
        process(tx)
    check(raw, 5)


# -- what is refused ---------------------------------------------------------------------------------------


def test_steps_out_of_turn_are_refused(
    consumer: Callable[..., Any], colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    made = consumer()
    tx = until_records(made)
    for refused in (
        made.poll,
        made.commit,
        made.commit_async,
        lambda: next(iter(made)),
        lambda: made.transaction().__enter__(),
    ):
        with pytest.raises(IllegalStateError):
            refused()
    for topic, value in (("out", "text"), (1, b"x")):
        with pytest.raises(InvalidArgumentError):
            tx.send(topic, value)
    for topic, partition in (("nowhere", None), ("out", 2)):
        with pytest.raises(UnknownTopicOrPartitionError):
            tx.send(topic, b"x", partition=partition)
    process(tx)
    tx.__exit__(None, None, None)
    check(raw, 5)
    with pytest.raises(IllegalStateError, match="not open"):
        tx.send("out", b"x")
    with pytest.raises(IllegalStateError, match="not open"):
        _ = tx.connection
    with pytest.raises(IllegalStateError, match="no group"):
        colour.consumer("in", dsn=database).transaction().__enter__()
    with pytest.raises(IllegalStateError, match="at_most_once"):
        consumer(delivery="at_most_once").transaction().__enter__()
    with pytest.raises(IllegalStateError, match="exactly_once"):
        made.run(process)
    with pytest.raises(ConfigurationError, match="group_id"):
        colour.consumer("in", dsn=database, delivery="exactly_once")


def test_closing_in_the_middle_commits_nothing(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer(auto_commit_interval_ms=0)
    tx = until_records(made)
    process(tx)
    made.close()
    with pytest.raises(Exception, match="closed"):
        tx.__exit__(None, None, None)
    check(raw, 0)


# -- around a handler --------------------------------------------------------------------------------------


def test_a_handler_gets_everything_exactly_once(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer(delivery="exactly_once", consumer_timeout_ms=50)
    for refused in (made.poll, made.commit, lambda: next(iter(made))):
        with pytest.raises(IllegalStateError, match="transactions only"):
            refused()
    calls: list[Any] = []
    handler = handle(made, calls.append)
    while len(calls) < 2:  # it ends when nothing comes for a while, perhaps before it has any partitions
        made.run(handler)
    assert [len(call) for call in calls] == [5, 5]
    check(raw, 10)


def test_what_a_handler_raises_is_raised_and_the_records_come_again(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer(delivery="exactly_once")

    def fail(records: Any) -> None:
        raise CommitFailedError("by the program")

    with pytest.raises(CommitFailedError, match="by the program"):
        made.run(handle(made, fail))
    check(raw, 0)
    made.run(handle(made, lambda records: made.wakeup()))
    check(raw, 5)


def test_a_handler_goes_on_after_a_lost_connection_and_ends_by_wakeup(
    consumer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = consumer(delivery="exactly_once", reconnect_backoff_ms=1)
    calls = []

    def note(records: Any) -> None:
        calls.append(len(records))
        if len(calls) == 2:
            raw.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND datname = current_database()"
            )
        if len(calls) == 3:
            made.wakeup()

    made.run(handle(made, note))
    assert calls == [5, 5, 5]
    check(raw, 10)


def handle(consumer: Any, note: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A handler for either colour that processes, and tells ``note`` of the records."""
    if getattr(consumer, "_run", None) is None:

        def handler(tx: Any) -> None:
            process(tx)
            note(tx.records)

        return handler

    async def tasks_handler(tx: Any) -> None:
        for record in tx.records:
            await tx.connection.execute(
                "INSERT INTO seen VALUES ($1::text, $2::int8)", record.value.decode(), record.offset
            )
            await tx.send("out", b"did " + record.value, partition=record.offset % 2)
        # Elsewhere: it makes blocking calls of the same event loop.
        await asyncio.to_thread(note, tx.records)

    return tasks_handler
