"""What is lost on the way is sent again, and is in the log once; what nobody knows is told as unknown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from logstore.errors import (
    DeliveryTimeoutError,
    OutOfOrderSequenceError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.log import blocked, records, terminate, waiting_for_a_lock, watch
from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server

pytestmark = pytest.mark.one_server

ENOUGH_S = 60.0
QUICK: dict[str, Any] = {"linger_ms": 0, "retry_backoff_ms": 1, "delivery_timeout_ms": 40_000}
IMPATIENT: dict[str, Any] = {**QUICK, "request_timeout_ms": 600, "delivery_timeout_ms": 800}


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


def values(database: str, partition: int = 0) -> list[bytes | None]:
    return [each.value for each in records(database, "t") if each.partition == partition]


def numbers(database: str) -> list[tuple[int, int, int]]:
    """Epoch, first and last sequence of each batch of partition 0."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT producer_epoch, base_sequence, last_sequence FROM logstore.batches WHERE partition = 0"
            " ORDER BY base_offset"
        ).fetchall()


@pytest.mark.every_server
def test_batches_are_numbered(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, **QUICK)
    for count in (1, 3, 2):
        producer.send_many(topic, [b"v"] * count, partition=0).get(ENOUGH_S)
    assert numbers(database) == [(0, 0, 0), (0, 1, 3), (0, 4, 5)]
    other = colour.producer(database, **QUICK)
    other.send_and_wait(topic, b"w", partition=0)
    assert watch(database, "SELECT count(DISTINCT producer_id) FROM logstore.batches") == 2
    plain = colour.producer(database, enable_idempotence=False)
    plain.send_and_wait(topic, b"x", partition=1)
    assert watch(database, "SELECT producer_id FROM logstore.batches WHERE partition = 1") is None


@pytest.mark.every_server
def test_a_connection_lost_while_the_server_works_costs_nothing(
    colour: Colour, database: str, topic: str
) -> None:
    """The server goes on with the first attempt, after the second one has come."""
    with Proxy(database) as proxy:
        producer = colour.producer(proxy.dsn, client_id="lost", **QUICK)
        producer.send_and_wait(topic, b"before", partition=0)
        with blocked(database, topic):
            future = producer.send(topic, b"v", partition=0)
            eventually(lambda: waits(database) == 1, "the first attempt waits")
            proxy.refuse()
            proxy.refuse(False)
            eventually(lambda: waits(database) == 2, "both attempts wait")
        assert future.get(ENOUGH_S).offset == 1
        eventually(lambda: waits(database) == 0, "both are done")
        assert producer.send_and_wait(topic, b"after", partition=0).offset == 2
    assert values(database) == [b"before", b"v", b"after"]


def waits(database: str) -> int:
    return int(
        watch(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%append%%'"
            " AND datname = current_database() AND pid <> pg_backend_pid()",
        )
    )


@pytest.mark.parametrize("fault", Fault)
def test_whatever_befalls_a_request(
    colour: Colour, database: str, topic: str, proxy: Proxy, fault: Fault
) -> None:
    """Each point of the protocol: before, during and after the commit."""
    options = {**QUICK, "request_timeout_ms": 300 if fault in (Fault.HALF_CLOSE, Fault.SILENCE) else 10_000}
    producer = colour.producer(proxy.dsn, **options)
    producer.send_and_wait(topic, b"before", partition=0)
    for number in (1, 2):
        proxy.strike(fault, b"watch for this")
        assert producer.send(topic, b"watch for this %d" % number, partition=0).get(ENOUGH_S).offset == number
        assert proxy.cuts == number
    assert values(database) == [b"before", b"watch for this 1", b"watch for this 2"]
    assert numbers(database) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]


@pytest.mark.every_server
def test_an_answer_that_is_lost_is_asked_for_again(colour: Colour, database: str, topic: str) -> None:
    with Proxy(database) as proxy:
        producer = colour.producer(proxy.dsn, **QUICK)
        proxy.cut_before_answer_to(b"watch for this")
        future = producer.send(topic, b"watch for this", partition=0)
        eventually(lambda: proxy.cuts > 2, "the answer was withheld, again and again")
        assert values(database) == [b"watch for this"]
        assert not future.done()
        proxy.cut_before_answer_to(None)
        assert future.get(ENOUGH_S).offset == 0
        assert producer.send_and_wait(topic, b"next", partition=0).offset == 1
    assert values(database) == [b"watch for this", b"next"]
    assert [first for _, first, _ in numbers(database)] == [0, 1]


def test_several_partitions_in_the_lost_request(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, linger_ms=60_000, delivery_timeout_ms=120_000, retry_backoff_ms=1)
    futures = [producer.send(topic, b"watch %d" % number, partition=number % 4) for number in range(40)]
    proxy.cut_before_answer_to(b"watch")
    with pytest.raises(Exception, match="within 0"):
        producer.flush(0.0)
    eventually(lambda: proxy.cuts > 0, "the answer was withheld")
    proxy.cut_before_answer_to(None)
    producer.flush(ENOUGH_S)
    assert [future.get(0).offset for future in futures] == [number // 4 for number in range(40)]
    assert len(records(database, topic)) == 40


@pytest.mark.every_server
def test_a_commit_that_takes_its_success_back_is_asked_about_again(
    colour: Colour, database: str, topic: str
) -> None:
    """As the server does when somebody cancels its wait for the followers: success, with a warning."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            """
            CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE WARNING 'canceling wait for synchronous replication due to user request'; RETURN NULL;
            END $$;
            CREATE TRIGGER cut AFTER INSERT ON logstore.b_1_0 FOR EACH ROW EXECUTE FUNCTION cut()"""
        )
    producer = colour.producer(database, **QUICK)
    assert producer.send_and_wait(topic, b"v", partition=0).offset == 0
    assert producer.metrics()["record-retry-total"] == 1
    assert values(database) == [b"v"]
    plain = colour.producer(database, enable_idempotence=False)
    with pytest.raises(UnknownOutcomeError, match="canceling wait"):
        plain.send_and_wait(topic, b"w", partition=0)
    assert values(database) == [b"v", b"w"], "and it was there"


def test_a_cancelled_wait_for_followers_is_no_success(
    colour: Colour, database: str, topic: str, server: Server
) -> None:
    if server.superuser_dsn is None:
        pytest.skip("needs a superuser")
    producer = colour.producer(database, client_id="waiter", **QUICK)
    waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'waiter'"
    with psycopg.connect(server.as_superuser(database), autocommit=True) as superuser:

        def followers(names: str) -> None:
            superuser.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            superuser.execute("SELECT pg_reload_conf()")

        def waits_for_them() -> bool:
            return bool(watch(database, f"SELECT count(*) {waiting}"))

        def retries() -> int:
            return int(producer.metrics()["record-retry-total"])

        followers("nobody")
        try:
            # The server learns of it some time.
            futures: list[Any] = []
            while not futures or futures[-1].done():
                futures.append(producer.send(topic, b"%d" % len(futures), partition=0))
                eventually(lambda: futures[-1].done() or waits_for_them(), "it is acknowledged, or waits")
            for times in range(1, 4):
                eventually(waits_for_them, "it waits")
                superuser.execute(f"SELECT pg_cancel_backend(pid) {waiting}")
                eventually(lambda times=times: retries() == times, "it is tried again")  # type: ignore[misc]
            eventually(waits_for_them, "it waits")
            sent = [b"%d" % number for number in range(len(futures))]
            assert values(database) == sent, "it is to be seen already"
            assert not futures[-1].done(), "but not on any follower"
        finally:
            followers("")
        assert futures[-1].get(ENOUGH_S).offset == len(futures) - 1
    assert values(database) == sent


def test_what_stays_unknown_is_told_so_and_the_next_epoch_begins(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, **IMPATIENT)
    producer.send_and_wait(topic, b"before", partition=0)
    proxy.cut_before_answer_to(b"watch for this")
    lost = producer.send(topic, b"watch for this", partition=0)
    with pytest.raises(UnknownOutcomeError, match="not known whether 1 records"):
        lost.get(ENOUGH_S)
    proxy.cut_before_answer_to(None)
    connected(producer)
    assert producer.send_and_wait(topic, b"after", partition=0).offset == 2
    assert values(database) == [b"before", b"watch for this", b"after"]
    assert numbers(database) == [(0, 0, 0), (0, 1, 1), (1, 0, 0)]


def test_what_never_left_is_a_failure(colour: Colour, database: str, topic: str, proxy: Proxy) -> None:
    producer = colour.producer(proxy.dsn, **IMPATIENT)
    producer.send_and_wait(topic, b"before", partition=0)
    proxy.refuse()
    # The connection was lost before there was anything to send.
    terminate(database, "logstore")
    with pytest.raises((DeliveryTimeoutError, UnknownOutcomeError)):
        producer.send(topic, b"first", partition=1).get(ENOUGH_S)
    with pytest.raises(DeliveryTimeoutError):
        producer.send(topic, b"second", partition=0).get(ENOUGH_S)
    proxy.refuse(False)
    connected(producer)
    assert producer.send_and_wait(topic, b"after", partition=0).offset == 1
    assert numbers(database) == [(0, 0, 0), (0, 1, 1)], "its number was free again"


def test_a_late_attempt_comes_before_what_follows_or_not_at_all(
    colour: Colour, database: str, topic: str
) -> None:
    producer = colour.producer(database, **IMPATIENT)
    producer.send_and_wait(topic, b"before", partition=0)
    with blocked(database, topic):
        lost = producer.send(topic, b"lost", partition=0)
        with pytest.raises(UnknownOutcomeError):
            lost.get(ENOUGH_S)
        assert waiting_for_a_lock(database), "the server is still at it"
        after = producer.send(topic, b"after", partition=0)
        eventually(lambda: waits(database) >= 2, "the next epoch waits behind it")
    after.get(ENOUGH_S)
    eventually(lambda: waits(database) == 0, "all attempts are over")
    assert values(database) in ([b"before", b"lost", b"after"], [b"before", b"after"])


def test_a_gap_in_the_log_is_told_once(colour: Colour, database: str, topic: str) -> None:
    """As after a crash of a server that had acknowledged more than it kept."""
    producer = colour.producer(database, **QUICK)
    for number in range(3):
        producer.send_and_wait(topic, b"%d" % number, partition=0)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM logstore.batches WHERE base_offset = 2")
    with pytest.raises(OutOfOrderSequenceError) as caught:
        producer.send_and_wait(topic, b"3", partition=0)
    assert caught.value.details["expected_sequence"] == 2
    assert producer.send_and_wait(topic, b"4", partition=0).offset == 2
    assert values(database) == [b"0", b"1", b"4"]
    assert numbers(database)[-1] == (1, 0, 0)


def test_what_was_appended_long_ago_is_done_without_an_offset(
    colour: Colour, database: str, topic: str
) -> None:
    producer = colour.producer(database, **QUICK)
    producer.send_and_wait(topic, b"0", partition=0)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE logstore.batches SET base_sequence = 1000, last_sequence = 1000")
    assert producer.send_and_wait(topic, b"1", partition=0).offset == -1
    assert values(database) == [b"0"]


def test_without_idempotence_nothing_is_repeated_either(
    colour: Colour, database: str, topic: str, proxy: Proxy
) -> None:
    producer = colour.producer(proxy.dsn, enable_idempotence=False, **QUICK)
    proxy.cut_before_answer_to(b"watch for this")
    with pytest.raises(UnknownOutcomeError):
        producer.send_and_wait(topic, b"watch for this", partition=0)
    proxy.cut_before_answer_to(None)
    producer.send_and_wait(topic, b"next", partition=0)
    assert values(database) == [b"watch for this", b"next"]


def test_a_limit_lowered_after_the_answer_was_lost(
    colour: Colour, database: str, topic: str, proxy: Proxy, appender: Appender
) -> None:
    producer = colour.producer(proxy.dsn, linger_ms=60_000, delivery_timeout_ms=120_000, retry_backoff_ms=1)
    futures = [producer.send(topic, b"watch" + b"v" * 500, partition=0) for _ in range(40)]
    proxy.cut_before_answer_to(b"watch")
    with pytest.raises(Exception, match="within 0"):
        producer.flush(0.0)
    eventually(lambda: proxy.cuts > 0, "the answer was withheld")
    appender.connection.run(appender.calls.alter_topic(topic, {"max.message.bytes": "4000"}))
    proxy.cut_before_answer_to(None)
    futures += [producer.send(topic, b"more" + b"v" * 500, partition=0) for _ in range(40)]
    producer.flush(ENOUGH_S)
    assert [future.get(0).offset for future in futures] == list(range(80))
    assert len(values(database)) == 80


def test_many_segments(colour: Colour, database: str, appender: Appender) -> None:
    """The numbers go on from segment to segment, whoever else writes there."""
    appender.connection.run(appender.calls.create_topic("t", 1, {"segment.bytes": "150"}))
    with Proxy(database) as proxy:
        first, second = (colour.producer(proxy.dsn, **QUICK) for _ in range(2))
        for number in range(20):
            futures = [each.send("t", b"watch%d" % number) for each in (first, second)]
            for future in futures:
                future.get(ENOUGH_S)
            if number % 7 == 3:
                before = proxy.cuts
                proxy.cut_before_answer_to(b"watch")
                futures = [each.send("t", b"watch, lost") for each in (first, second)]
                eventually(lambda before=before: proxy.cuts > before + 1, "answers were withheld")  # type: ignore[misc]
                proxy.cut_before_answer_to(None)
                for future in futures:
                    future.get(ENOUGH_S)
    assert watch(database, "SELECT count(DISTINCT segment) FROM logstore.batches") > 5
    found = values(database)
    assert found.count(b"watch, lost") == 6
    assert len(found) == 46
    kept = json.loads(
        watch(
            database,
            "SELECT json_agg(base_sequences ORDER BY producer_id)::text FROM logstore.producer_state",
        )
    )
    assert [len(sequences) for sequences in kept] == [5, 5]
