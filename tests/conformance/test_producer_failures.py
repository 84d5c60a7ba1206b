"""What a producer does when something goes wrong: exactly the records concerned fail, and nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore import migrations
from logstore._core.batch import BATCH_OVERHEAD, RECORD_OVERHEAD
from logstore.errors import (
    BufferExhaustedError,
    ClientClosedError,
    ConfigurationError,
    ConnectionFailedError,
    DeliveryTimeoutError,
    IllegalStateError,
    InvalidArgumentError,
    InvalidTimestampError,
    LogstoreError,
    RecordTooLargeError,
    RequestTimedOutError,
    SchemaMissingError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.log import blocked, records, terminate, waiting_for_a_lock
from tests.support.programs import eventually
from tests.support.proxy import Proxy, silent_server

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]

ENOUGH_S = 60.0
IMPATIENT: dict[str, Any] = {"request_timeout_ms": 800, "delivery_timeout_ms": 1000, "linger_ms": 0}


@pytest.fixture
def topic(appender: Appender) -> str:
    appender.create("t", 4)
    return "t"


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as made:
        yield made


def connected(producer: Any) -> None:
    """Wait until ``producer`` has a connection again: its records have little time."""
    with pytest.raises(UnknownTopicOrPartitionError):
        producer.partitions_for("nowhere")


def values(database: str, topic: str = "t") -> list[bytes | None]:
    return [each.value for each in records(database, topic)]


# ---- connections


def test_a_connection_that_cannot_be_made_ready_is_closed(
    database: str, topic: str, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lane in ("logstore._sync.lane", "logstore._async.lane"):
        monkeypatch.setattr(f"{lane}._PLANS", "SET no_such_setting = 1")
    with pytest.raises(LogstoreError, match="no_such_setting"):
        colour.producer(database, **IMPATIENT).send(topic, b"v").get(ENOUGH_S)
    with psycopg.connect(database, autocommit=True) as session:

        def left() -> bool:
            question = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'no_such_setting' AND pid <> %s"
            row = session.execute(question, [session.info.backend_pid]).fetchone()
            return row == (0,)

        eventually(left, "the server has none of them")


# ---- topics


def test_unknown_topic_is_refused_at_once(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    attempts: list[Callable[[], object]] = [
        lambda: producer.send("nowhere", b"v"),
        lambda: producer.send_many("nowhere", [b"v"]),
        lambda: producer.partitions_for("nowhere"),
    ]
    for attempt in attempts:
        with pytest.raises(UnknownTopicOrPartitionError, match="'nowhere'"):
            attempt()
    producer.send_and_wait(topic, b"v")


@pytest.mark.parametrize("name", ["", "a b", "\ud800", "a\0b", "x" * 300, "'; DROP TABLE logstore.topic; --"])
def test_name_that_no_topic_can_have_is_refused(colour: Colour, database: str, topic: str, name: str) -> None:
    producer = colour.producer(database)
    with pytest.raises((UnknownTopicOrPartitionError, InvalidArgumentError)):
        producer.send(name, b"v")
    producer.send_and_wait(topic, b"v")


def test_unknown_partition_is_refused(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    attempts: list[Callable[[], object]] = [
        lambda: producer.send(topic, b"v", partition=4),
        lambda: producer.send_many(topic, [b"v"], partition=4),
    ]
    for attempt in attempts:
        with pytest.raises(UnknownTopicOrPartitionError, match="no partition 4"):
            attempt()


def test_new_partition_is_found_when_it_is_asked_for(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    producer = colour.producer(database)
    producer.send_and_wait(topic, b"v")
    appender.connection.run(appender.calls.add_partitions(topic, 6))
    assert producer.send_and_wait(topic, b"v", partition=5).partition == 5


def test_new_partitions_are_noticed_in_time(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    producer = colour.producer(database, metadata_max_age_ms=1, linger_ms=0)
    producer.send_and_wait(topic, b"v")
    appender.connection.run(appender.calls.add_partitions(topic, 5))

    def noticed() -> bool:
        producer.send_and_wait(topic, b"v")
        return len(producer.partitions_for(topic)) == 5

    eventually(noticed, "the fifth partition is known")


def test_topic_deleted_meanwhile_fails_its_records_and_no_others(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    appender.create("doomed", 2)
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    doomed = [
        producer.send("doomed", b"a", partition=0),
        producer.send_many("doomed", [b"b"], partition=1),
    ]
    fine = [producer.send(topic, b"%d" % number, partition=number) for number in range(4)]
    appender.connection.run(appender.calls.delete_topic("doomed"))
    producer.flush(ENOUGH_S)
    for future in doomed:
        with pytest.raises(UnknownTopicOrPartitionError):
            future.get(ENOUGH_S)
        assert future.failed()
    assert [future.get(ENOUGH_S).offset for future in fine] == [0] * 4
    with pytest.raises(UnknownTopicOrPartitionError):
        producer.send("doomed", b"c")


def test_topic_made_again_gets_the_records(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    futures = [producer.send(topic, b"%d" % number, partition=number) for number in (0, 3)]
    appender.connection.run(appender.calls.delete_topic(topic))
    appender.create(topic, 2)
    producer.flush(ENOUGH_S)
    assert futures[0].get(0).offset == 0
    with pytest.raises(UnknownTopicOrPartitionError, match="no partition 3"):
        futures[1].get(0)
    assert values(database) == [b"0"]


# ---- sizes and time stamps


def test_record_larger_than_the_topic_allows_is_not_sent(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("small", max_message_bytes="2000")
    producer = colour.producer(database)
    attempts: list[Callable[[], object]] = [
        lambda: producer.send("small", b"v" * 2000),
        lambda: producer.send_many("small", [b"v", b"v" * 2000]),
    ]
    for attempt in attempts:
        with pytest.raises(RecordTooLargeError, match=r"max.message.bytes of topic 'small', which is 2000"):
            attempt()
    producer.send_and_wait("small", b"v" * (2000 - BATCH_OVERHEAD - RECORD_OVERHEAD))
    assert len(values(database, "small")) == 1


def test_record_larger_than_the_producer_allows_is_not_sent(
    colour: Colour, database: str, topic: str
) -> None:
    producer = colour.producer(database, max_request_size=5000)
    with pytest.raises(RecordTooLargeError, match="max_request_size, which is 5000"):
        producer.send(topic, b"v" * 5000)


def test_limit_lowered_meanwhile_cuts_the_batch(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    futures = [producer.send(topic, b"%d" % number + b"v" * 500, partition=0) for number in range(40)]
    appender.connection.run(appender.calls.alter_topic(topic, {"max.message.bytes": "4000"}))
    other = producer.send(topic, b"other", partition=1)
    producer.flush(ENOUGH_S)
    assert [future.get(0).offset for future in futures] == list(range(40))
    assert other.get(0).offset == 0
    assert len(values(database)) == 41


def test_limit_lowered_below_a_record_fails_it(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    large = producer.send(topic, b"v" * 5000, partition=0)
    other = producer.send(topic, b"other", partition=1)
    appender.connection.run(appender.calls.alter_topic(topic, {"max.message.bytes": "1000"}))
    producer.flush(ENOUGH_S)
    with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes, 1000"):
        large.get(0)
    assert other.get(0).offset == 0


def test_timestamp_that_the_topic_refuses_fails_the_batch(
    colour: Colour, database: str, topic: str, appender: Appender
) -> None:
    appender.create("strict", message_timestamp_before_max_ms="1000")
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    late = producer.send("strict", b"v", timestamp_ms=5)
    other = producer.send(topic, b"v")
    producer.flush(ENOUGH_S)
    with pytest.raises(InvalidTimestampError):
        late.get(0)
    assert other.get(0).offset == 0


# ---- the buffer


def test_full_buffer_keeps_send_waiting_and_then_fails_it(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, buffer_memory=4000, max_block_ms=50, linger_ms=0)
    # Which may take it longer, and is waited for as long.
    eventually(lambda: succeeds(lambda: producer.partitions_for(topic)), "it knows the topic")
    futures = []
    with blocked(database, topic):
        with pytest.raises(BufferExhaustedError, match="4000 bytes stayed full for 50 ms"):
            while True:
                futures.append(producer.send(topic, b"v" * 100, partition=0))
        with pytest.raises(BufferExhaustedError) as caught:
            producer.send_many(topic, [b"v" * 100] * 20, partition=0)
        assert caught.value.details["accepted"] == 0
    assert [future.get(ENOUGH_S).offset for future in futures] == list(range(len(futures)))
    assert producer.send_and_wait(topic, b"v", partition=0).offset == len(futures)


def test_more_than_the_buffer_holds_goes_through_it(colour: Colour, database: str, topic: str) -> None:
    with colour.producer(
        database, buffer_memory=5000, linger_ms=60_000, delivery_timeout_ms=120_000
    ) as producer:
        for number in range(200):
            producer.send(topic, b"%06d" % number + b"v" * 200, partition=0)
        producer.send_many(topic, [b"%06d" % number + b"v" * 200 for number in range(200, 400)], partition=0)
    assert [int((value or b"")[:6]) for value in values(database)] == list(range(400))


# ---- the connection


@pytest.mark.every_server
def test_lost_connections_lose_no_record_and_no_order(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t", 2)
    producer = colour.producer(database, client_id="victim", linger_ms=0, retry_backoff_ms=1)
    futures = []
    for number in range(300):
        futures.append(producer.send("t", b"%d" % number, partition=number % 2))
        if number % 60 == 30:
            futures[-1].get(ENOUGH_S)
            terminate(database, "victim")
    producer.flush(ENOUGH_S)
    for future in futures:
        assert future.succeeded()
    for partition in (0, 1):
        got = [int(each.value or b"") for each in records(database, "t") if each.partition == partition]
        assert got == list(range(partition, 300, 2))


def test_answer_that_is_lost_is_an_unknown_outcome_without_retries(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, retries=0)
    proxy.cut_before_answer_to(b"watch for this")
    with pytest.raises(UnknownOutcomeError):
        producer.send_and_wait(topic, b"watch for this")
    assert values(database) == [b"watch for this"]
    proxy.cut_before_answer_to(None)
    assert producer.send_and_wait(topic, b"v").offset >= 0


def test_server_that_stays_away_fails_the_records_in_time(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, **IMPATIENT)
    producer.send_and_wait(topic, b"first", partition=0)
    proxy.refuse()
    futures = [producer.send(topic, b"%d" % number, partition=number) for number in range(4)]
    for future in futures:
        with pytest.raises(DeliveryTimeoutError, match=r"within 1000 ms\."):
            future.get(ENOUGH_S)
    proxy.refuse(False)
    connected(producer)
    assert producer.send_and_wait(topic, b"last", partition=0).offset == 1
    assert values(database) == [b"first", b"last"]


def test_server_that_stops_listening_fails_the_records_in_time(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    """Also in the middle of a request that is larger than what a socket takes."""
    producer = colour.producer(proxy.dsn, **IMPATIENT)
    producer.send_and_wait(topic, b"first", partition=0)
    proxy.freeze()
    futures = [producer.send_many(topic, [b"v" * 1000] * 900, partition=number) for number in range(4)]
    for future in futures:
        # Some were on their way: nobody knows how far they came.
        with pytest.raises((DeliveryTimeoutError, UnknownOutcomeError), match="within 1000 ms"):
            future.get(ENOUGH_S)
    proxy.freeze(False)
    eventually(lambda: succeeds(lambda: producer.send_and_wait(topic, b"v")), "the producer recovers")


def test_server_that_stays_away_keeps_a_topic_unknown(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, max_block_ms=100)
    proxy.refuse()
    with pytest.raises(RequestTimedOutError, match="'t' within 100 ms"):
        producer.send(topic, b"v")
    proxy.refuse(False)
    eventually(lambda: succeeds(lambda: producer.send_and_wait(topic, b"v")), "the producer recovers")


def succeeds(attempt: Any) -> bool:
    try:
        attempt()
    except LogstoreError:
        return False
    return True


@pytest.mark.parametrize(
    ("dsn", "kind", "says"),
    [
        ("postgresql://alice:secret@127.0.0.1:1/orders", ConnectionFailedError, "127.0.0.1:1/orders"),
        ("nonsense", ConfigurationError, "DSN"),
    ],
)
def test_producer_that_cannot_connect_says_so_when_it_is_made(
    colour: Colour, dsn: str, kind: type[LogstoreError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        colour.producer(dsn)
    assert "secret" not in str(caught.value)


def test_server_that_never_answers_is_given_up(colour: Colour) -> None:
    dsn = "host=127.0.0.1 user=a password=secret sslmode=disable port="
    with silent_server() as port, pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{port}"):
        colour.producer(dsn + str(port), request_timeout_ms=2000)


def test_database_without_a_log_says_which_command_makes_one(colour: Colour, empty_database: str) -> None:
    with pytest.raises(SchemaMissingError, match=r"logstore .*db upgrade"):
        colour.producer(empty_database)


def test_second_log_in_the_database_is_a_log_of_its_own(colour: Colour, database: str, topic: str) -> None:
    schema = 'other "log"'
    migrations.upgrade(database, schema)
    with Appender(database, schema) as other:
        other.create("theirs")
        producer = colour.producer(database, schema=schema)
        assert producer.send_and_wait("theirs", b"v").offset == 0
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send(topic, b"v")


# ---- the end


def test_close_delivers_what_was_sent(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    future = producer.send(topic, b"v")
    producer.close()
    assert future.succeeded()
    producer.close()
    attempts: list[Callable[[], object]] = [
        lambda: producer.send(topic, b"v"),
        lambda: producer.send_many(topic, [b"v"]),
        lambda: producer.flush(),
        lambda: producer.partitions_for(topic),
    ]
    for attempt in attempts:
        with pytest.raises(ClientClosedError):
            attempt()
    assert future.get(0).offset == 0


def test_block_left_by_an_exception_delivers_what_was_sent(colour: Colour, database: str, topic: str) -> None:
    with pytest.raises(ZeroDivisionError), colour.producer(database) as producer:
        producer.send(topic, b"v")
        raise ZeroDivisionError
    assert values(database) == [b"v"]


def test_close_in_a_hurry_fails_what_is_not_acknowledged(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, linger_ms=0)
    with blocked(database, topic):
        under_way = producer.send(topic, b"v", partition=0)
        eventually(lambda: waiting_for_a_lock(database), "the batch is under way")
        waiting = producer.send(topic, b"w", partition=0)
        producer.close(0)
        for future in (under_way, waiting):
            with pytest.raises(ClientClosedError, match="closed before"):
                future.get(0)


def test_flush_and_futures_give_up_in_time_and_nothing_is_lost(
    colour: Colour, database: str, topic: str
) -> None:
    producer = colour.producer(database)
    with blocked(database, topic):
        future = producer.send(topic, b"v")
        with pytest.raises(RequestTimedOutError, match=r"within 0\.02 s"):
            producer.flush(0.02)
        with pytest.raises(RequestTimedOutError, match=r"within 0\.01 s"):
            future.get(0.01)
        assert not future.done()
    assert future.get(ENOUGH_S).offset == 0


def test_close_ends_a_send_that_waits_for_room(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, buffer_memory=2000, linger_ms=0)
    raised: list[type[BaseException]] = []

    def send_until_it_fails() -> None:
        try:
            while True:
                producer.send(topic, b"v" * 100, partition=0)
        except LogstoreError as error:
            raised.append(type(error))

    with blocked(database, topic):
        sending = threading.Thread(target=send_until_it_fails)
        sending.start()
        eventually(lambda: producer.metrics()["buffer-available-bytes"] < 124, "the buffer is full")
        producer.close(0)
        sending.join()
    assert raised == [ClientClosedError]


def test_errback_gets_the_error(colour: Colour, database: str, topic: str, appender: Appender) -> None:
    producer = colour.producer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
    called: list[Any] = []
    future = producer.send(topic, b"v").add_errback(called.append).add_callback(called.append)
    appender.connection.run(appender.calls.delete_topic(topic))
    producer.flush(ENOUGH_S)
    assert len(called) == 1
    assert isinstance(called[0], UnknownTopicOrPartitionError)
    assert future.failed()


def test_flush_waits_for_callbacks(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, linger_ms=60_000)
    begun, go_on, called = threading.Event(), threading.Event(), list[Any]()
    if colour.name == "asyncio":
        go_on.set()  # a callback there cannot wait

    def call_back(metadata: object) -> None:
        begun.set()
        go_on.wait(ENOUGH_S)
        called.append(metadata)

    producer.send(topic, b"v").add_callback(call_back)
    if not go_on.is_set():
        with pytest.raises(RequestTimedOutError, match="called back for"):
            producer.flush(0.2)
        assert begun.wait(ENOUGH_S)
        go_on.set()
    producer.flush(ENOUGH_S)
    assert len(called) == 1


def test_flush_in_a_callback_is_refused(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, linger_ms=50)
    raised: list[BaseException] = []
    if colour.name == "asyncio":
        pytest.skip("a callback there is not a coroutine: it cannot wait at all")

    def flush(metadata: object) -> None:
        try:
            producer.flush()
        except IllegalStateError as error:
            raised.append(error)

    future = producer.send(topic, b"v").add_callback(flush)
    future.get(ENOUGH_S)
    eventually(lambda: len(raised) == 1, "the callback ran")


def test_server_that_restarts_is_found_again(colour: Colour, database: str, topic: str, proxy: Proxy) -> None:
    producer = colour.producer(proxy.dsn, retry_backoff_ms=1)
    producer.send_and_wait(topic, b"before", partition=0)
    proxy.refuse()
    future = producer.send(topic, b"after", partition=0)
    proxy.refuse(False)
    assert future.get(ENOUGH_S).offset == 1
    assert values(database) == [b"before", b"after"]


def test_unused_connection_that_was_lost_costs_nothing(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, client_id="victim", retry_backoff_ms=1)
    producer.send_and_wait(topic, b"1", partition=0)
    assert terminate(database, "victim") == 1
    assert producer.send_and_wait(topic, b"2", partition=0).offset == 1
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM logstore.records").fetchone()
    assert row == (2,)


def test_flush_waits_for_seconds_and_nothing_else(colour: Colour, database: str) -> None:
    producer = colour.producer(database)
    for wrong in ("soon", True):
        with pytest.raises(InvalidArgumentError, match="a number of seconds"):
            producer.flush(timeout=wrong)
        with pytest.raises(InvalidArgumentError, match="a number of seconds"):
            producer.close(timeout=wrong)
    producer.flush()
