"""Transactions of a producer: all of it or nothing, one holder of a transactional id, no step out of turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore.errors import (
    BufferExhaustedError,
    CommitFailedError,
    ConfigurationError,
    IllegalStateError,
    InvalidArgumentError,
    ProducerFencedError,
    TransactionAbortedError,
    TransactionTimedOutError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from logstore.records import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.proxy import Proxy

pytestmark = pytest.mark.one_server

A0, A1, B1 = TopicPartition("a", 0), TopicPartition("a", 1), TopicPartition("b", 1)


@pytest.fixture
def log(appender: Appender) -> Appender:
    appender.create("a", 2)
    appender.create("b", 2)
    return appender


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as made:
        yield made


@pytest.fixture
def producer(colour: Colour, database: str, log: Appender) -> Callable[..., Any]:
    def make(transactional_id: str | None = "t", dsn: str = database, **options: Any) -> Any:
        return colour.producer(
            dsn=dsn, transactional_id=transactional_id, **{"retry_backoff_ms": 1, **options}
        )

    return make


@pytest.fixture
def member(colour: Colour, database: str, log: Appender) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        settings: dict[str, Any] = {
            "group_id": "g",
            "auto_offset_reset": "earliest",
            "heartbeat_interval_ms": 50,
            "enable_auto_commit": False,
        }
        return colour.consumer("a", dsn=database, **{**settings, **options})

    return make


def contents(raw: psycopg.Connection[Any]) -> dict[tuple[str, int], list[str]]:
    """What is in the log, by topic and partition."""
    found: dict[tuple[str, int], list[str]] = {}
    for topic, partition, value in raw.execute(
        'SELECT topic, partition, value_text FROM logstore.records ORDER BY topic, partition, "offset"'
    ).fetchall():
        found.setdefault((topic, partition), []).append(value)
    return found


def committed(raw: psycopg.Connection[Any]) -> dict[int, int]:
    rows = raw.execute(
        "SELECT partition, committed_offset FROM logstore.group_lag WHERE committed_offset IS NOT NULL"
    ).fetchall()
    return dict(rows)


def send_three(producer: Any, mark: str) -> list[Any]:
    return [
        producer.send("b", f"{mark}-1".encode(), partition=1),
        producer.send("a", f"{mark}-2".encode(), partition=1),
        producer.send("a", f"{mark}-3".encode(), partition=0),
    ]


def owned(consumer: Any, count: int) -> None:
    """Poll until the consumer has ``count`` partitions."""

    def has() -> bool:
        consumer.poll(timeout_ms=20)
        return len(consumer.assignment()) == count

    eventually(has, f"{count} partitions")


@pytest.mark.every_server
def test_a_transaction_is_in_the_log_as_a_whole_after_its_commit(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer()
    with made.transaction():
        futures = send_three(made, "x")
        bulk = made.send_many("a", [b"m", b"n"], partition=0)
        made.flush()
        assert not any(future.done() for future in [*futures, bulk])
        assert contents(raw) == {}
    assert contents(raw) == {("a", 0): ["x-3", "m", "n"], ("a", 1): ["x-2"], ("b", 1): ["x-1"]}
    assert [(f.get(0).topic_partition, f.get(0).offset) for f in futures] == [(B1, 0), (A1, 0), (A0, 0)]
    assert [(run.base_offset, run.record_count) for run in bulk.get(0)] == [(1, 2)]
    assert made.metrics()["buffer-available-bytes"] == made.metrics()["buffer-total-bytes"]


def test_what_is_aborted_was_never_in_the_log(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer()
    failures: list[Exception] = []
    with pytest.raises(ZeroDivisionError), made.transaction():
        future = send_three(made, "x")[0]
        future.add_errback(failures.append)
        raise ZeroDivisionError
    with pytest.raises(TransactionAbortedError):
        future.get(0)
    assert [type(failure) for failure in failures] == [TransactionAbortedError]
    made.begin_transaction()
    send_three(made, "y")
    made.abort_transaction()
    assert contents(raw) == {}
    with made.transaction():
        offset = made.send("a", b"z", partition=0)
    assert offset.get(0).offset == 0
    assert contents(raw) == {("a", 0): ["z"]}


def test_more_than_one_statement_can_carry_is_one_transaction_too(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer(max_request_size=2048)
    with made.transaction():
        futures = [
            made.send("a", b"%04d" % number + bytes(996), partition=number % 2) for number in range(400)
        ]
    assert [future.get(0).offset for future in futures] == [number // 2 for number in range(400)]
    numbers = raw.execute(
        "SELECT partition, count(*), count(DISTINCT xmin::text) FROM logstore.batches GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [(each[0], each[2]) for each in numbers] == [(0, 1), (1, 1)]
    assert min(each[1] for each in numbers) > 64


def test_the_next_holder_of_a_transactional_id_fences_the_one_before(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    zombie = producer()
    with zombie.transaction():
        send_three(zombie, "early")
    before = contents(raw)
    zombie.begin_transaction()
    lost = send_three(zombie, "late")[0]
    heir = producer()
    heir.init_transactions()
    with pytest.raises(ProducerFencedError) as caught:
        zombie.commit_transaction()
    assert caught.value.fatal
    assert contents(raw) == before
    with pytest.raises(ProducerFencedError):
        lost.get(0)
    for refused in (
        zombie.begin_transaction,
        zombie.abort_transaction,
        zombie.commit_transaction,
        lambda: zombie.send("a", b"x", partition=0),
    ):
        with pytest.raises(ProducerFencedError):
            refused()
    with heir.transaction():
        heir.send("a", b"heir", partition=0)
    assert contents(raw)["a", 0] == ["early-3", "heir"]


def test_a_transaction_that_was_open_too_long_cannot_be_committed(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer(transaction_timeout_ms=500)
    made.init_transactions()
    for topic in ("a", "b"):
        made.partitions_for(topic)
    made.begin_transaction()
    began = time.monotonic()
    future = send_three(made, "x")[0]
    eventually(lambda: time.monotonic() > began + 0.5, "too late")
    with pytest.raises(TransactionTimedOutError):
        made.commit_transaction()
    made.abort_transaction()
    with pytest.raises(TransactionAbortedError):
        future.get(0)
    assert contents(raw) == {}


def test_steps_out_of_turn_are_refused(producer: Callable[..., Any], raw: psycopg.Connection[Any]) -> None:
    made = producer()
    with pytest.raises(IllegalStateError, match="init_transactions"):
        made.begin_transaction()
    made.init_transactions()
    for refused in (
        lambda: made.send("a", b"x", partition=0),
        lambda: made.send("a", b"x"),
        lambda: made.send("a", b"x", connection=raw),
        lambda: made.send_many("a", [b"x"]),
        lambda: made.send_and_wait("a", b"x"),
        lambda: made.send_offsets_to_transaction({A0: 0}, ConsumerGroupMetadata("g")),
        made.commit_transaction,
        made.abort_transaction,
        made.init_transactions,
    ):
        with pytest.raises(IllegalStateError):
            refused()
    made.begin_transaction()
    with pytest.raises(IllegalStateError, match="do not nest"):
        made.begin_transaction()
    with pytest.raises(IllegalStateError, match="do not nest"), made.transaction():
        pass
    future = made.send("a", b"x", partition=0)
    with pytest.raises(IllegalStateError, match="still open"):
        future.get()
    made.commit_transaction()
    assert future.get(0).offset == 0
    plain = producer(None)
    for refused in (plain.init_transactions, plain.begin_transaction, plain.commit_transaction):
        with pytest.raises(IllegalStateError, match="transactional_id"):
            refused()
    assert contents(raw) == {("a", 0): ["x"]}


def test_options_that_contradict_a_transactional_id_are_refused(producer: Callable[..., Any]) -> None:
    for options in ({"acks": 1}, {"acks": 0}, {"transaction_timeout_ms": 900_001}):
        with pytest.raises(ConfigurationError):
            producer(**options)
    with pytest.raises(ConfigurationError):
        producer("")


def test_more_than_the_buffer_holds_is_refused_at_once(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer(buffer_memory=4096, max_request_size=2048)
    with pytest.raises(BufferExhaustedError, match="buffer_memory"), made.transaction():
        for _ in range(10):
            made.send("a", bytes(1000), partition=0)
    assert contents(raw) == {}


def test_a_topic_that_was_deleted_meanwhile_fails_the_whole_transaction(
    producer: Callable[..., Any], colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    made = producer()
    with pytest.raises(UnknownTopicOrPartitionError), made.transaction():
        futures = send_three(made, "x")
        colour.admin(database).delete_topic("b")
    assert contents(raw) == {}
    for future in futures:
        with pytest.raises(UnknownTopicOrPartitionError):
            future.get(0)
    with made.transaction():
        made.send("a", b"y", partition=0)
    assert contents(raw) == {("a", 0): ["y"]}


def test_a_topic_that_was_made_again_takes_the_transaction(
    producer: Callable[..., Any], colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    made = producer()
    with made.transaction():
        send_three(made, "x")
    with made.transaction():
        send_three(made, "y")
        admin = colour.admin(database)
        admin.delete_topic("b")
        admin.create_topic("b", 2)
    assert contents(raw) == {("a", 0): ["x-3", "y-3"], ("a", 1): ["x-2", "y-2"], ("b", 1): ["y-1"]}


def test_closing_aborts_what_is_open(producer: Callable[..., Any], raw: psycopg.Connection[Any]) -> None:
    made = producer()
    made.init_transactions()
    made.begin_transaction()
    future = made.send("a", b"x", partition=0)
    made.close()
    with pytest.raises(TransactionAbortedError):
        future.get(0)
    assert contents(raw) == {}


# -- offsets -------------------------------------------------------------------------------------------------


def test_offsets_are_committed_with_the_transaction_or_not_at_all(
    producer: Callable[..., Any], member: Callable[..., Any], log: Appender, raw: psycopg.Connection[Any]
) -> None:
    log.append("a", values(10), 0)
    made, consumer = producer(), member()
    owned(consumer, 2)
    with pytest.raises(ZeroDivisionError), made.transaction():
        made.send("b", b"x", partition=0)
        made.send_offsets_to_transaction({A0: 4}, consumer.group_metadata())
        raise ZeroDivisionError
    assert committed(raw) == {}
    with made.transaction():
        made.send("b", b"x", partition=0)
        made.send_offsets_to_transaction({A0: 4}, consumer.group_metadata())
        made.send_offsets_to_transaction({A0: OffsetAndMetadata(5, "m"), A1: 0}, consumer.group_metadata())
    assert committed(raw) == {0: 5, 1: 0}
    assert consumer.committed_offsets([A0])[A0].metadata == "m"
    assert contents(raw)["b", 0] == ["x"]


def test_stale_group_metadata_keep_everything_from_being_written(
    producer: Callable[..., Any], member: Callable[..., Any], log: Appender, raw: psycopg.Connection[Any]
) -> None:
    log.append("a", values(10), 0)
    made, first = producer(), member()
    with pytest.raises(CommitFailedError, match="was not the member's"), made.transaction():
        made.send_offsets_to_transaction({A0: 1}, first.group_metadata())
    owned(first, 2)
    stale = first.group_metadata()
    second = member()

    def shared() -> bool:
        first.poll()
        second.poll(timeout_ms=10)
        return len(second.assignment()) == 1

    eventually(shared, "a partition for the second")
    (moved,) = second.assignment()
    for offsets in ({moved: 0}, {A0: 0, A1: 0}):
        with pytest.raises(CommitFailedError) as caught, made.transaction():
            future = made.send("b", b"x", partition=0)
            made.send_offsets_to_transaction(offsets, stale)
        assert caught.value.details["reason"] in ("not_owner", "stale_epoch")
        with pytest.raises(CommitFailedError):
            future.get(0)
    with pytest.raises(InvalidArgumentError), made.transaction():
        made.send_offsets_to_transaction({A0: 0}, "g")
    assert committed(raw) == {}
    assert ("b", 0) not in contents(raw)


def test_offsets_of_partitions_assigned_by_hand(
    producer: Callable[..., Any], colour: Colour, database: str, log: Appender, raw: psycopg.Connection[Any]
) -> None:
    log.append("a", values(10), 0)
    consumer = colour.consumer(dsn=database, group_id="g")
    consumer.assign([A0])
    made = producer()
    with made.transaction():
        made.send_offsets_to_transaction({A0: 3}, consumer.group_metadata())
    with made.transaction():
        made.send_offsets_to_transaction({A1: 0}, ConsumerGroupMetadata("g"))
    assert committed(raw) == {0: 3, 1: 0}


# -- connections that are lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["the answer", "the commit"])
@pytest.mark.parametrize("what", ["records", "offsets", "both"])
def test_a_connection_lost_during_the_commit_does_no_harm(
    producer: Callable[..., Any],
    member: Callable[..., Any],
    log: Appender,
    proxy: Proxy,
    raw: psycopg.Connection[Any],
    fault: str,
    what: str,
) -> None:
    log.append("a", values(10), 0)
    made, consumer = producer(dsn=proxy.dsn), member()
    owned(consumer, 2)
    with made.transaction():
        made.send("b", b"before", partition=1)
    if fault == "the answer":
        proxy.cut_before_answer_to(b"COMMIT")
    else:
        proxy.lose_once(b"COMMIT")
    with made.transaction():
        futures = send_three(made, "x") if what != "offsets" else []
        if what != "records":
            made.send_offsets_to_transaction({A0: 7}, consumer.group_metadata())
    assert proxy.cuts == 1
    proxy.cut_before_answer_to(None)
    assert [future.get(0).offset for future in futures] == [1, 0, 10][: len(futures)]
    assert committed(raw) == ({} if what == "records" else {0: 7})
    with made.transaction():
        send_three(made, "y")
    expected = ["before", "x-1", "y-1"] if what != "offsets" else ["before", "y-1"]
    assert contents(raw)["b", 1] == expected


def test_a_commit_in_doubt_is_asked_for_again(
    producer: Callable[..., Any], proxy: Proxy, raw: psycopg.Connection[Any]
) -> None:
    made = producer(dsn=proxy.dsn, retries=0)
    made.init_transactions()
    proxy.cut_before_answer_to(b"COMMIT")
    with pytest.raises(UnknownOutcomeError), made.transaction():
        futures = send_three(made, "x")
    assert not any(future.done() for future in futures)
    for refused in (made.begin_transaction, made.abort_transaction):
        with pytest.raises(IllegalStateError, match="not known yet"):
            refused()
    proxy.cut_before_answer_to(None)
    made.commit_transaction()
    assert [future.get(0).offset for future in futures] == [0, 0, 0]
    with made.transaction():
        send_three(made, "y")
    assert contents(raw)["b", 1] == ["x-1", "y-1"]


def test_a_commit_in_doubt_may_be_found_though_another_holder_has_come(
    producer: Callable[..., Any], proxy: Proxy, raw: psycopg.Connection[Any]
) -> None:
    for fault in (proxy.cut_before_answer_to, proxy.lose_once):
        made = producer(dsn=proxy.dsn, retries=0)
        made.init_transactions()
        before = contents(raw)
        fault(b"COMMIT")
        with pytest.raises(UnknownOutcomeError), made.transaction():
            futures = send_three(made, "x")
        proxy.cut_before_answer_to(None)
        producer().init_transactions()
        if fault == proxy.cut_before_answer_to:
            made.commit_transaction()
            assert all(future.succeeded() for future in futures)
            made.begin_transaction()
        with pytest.raises(ProducerFencedError):
            made.commit_transaction()
        assert len(contents(raw).get(("b", 1), [])) == 1
        assert before == {} or before == contents(raw)


def test_a_server_that_ends_the_session_before_the_commit_is_asked_again(
    producer: Callable[..., Any], raw: psycopg.Connection[Any]
) -> None:
    made = producer()
    made.init_transactions()
    with made.transaction():
        send_three(made, "x")
        raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database() AND query LIKE '%init_producer%'"
        )
    assert contents(raw)["b", 1] == ["x-1"]
