"""What transactions have staged gets into the log because somebody waits: nobody else drains here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from logstore import TopicPartition
from logstore._core import attendance
from tests.support.colours import Colour
from tests.support.log import records, terminate, watch
from tests.support.proxy import Proxy
from tests.support.sqllog import wait_until

SEATS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 0 "
    "AND classid = (hashtext('logstore seat logstore')::int8 & 4294967295)::oid "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
ARMED = SEATS.replace("seat", "doorbell")


@pytest.fixture
def execute(database: str) -> Callable[..., None]:
    """Run statements in a transaction."""

    def run(*statements: str) -> None:
        with psycopg.connect(database, prepare_threshold=None) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    run("SELECT logstore.create_topic('t', 2), logstore.create_topic('u', 1)")
    return run


def read(consumer: object, count: int) -> list[bytes]:
    """The values of the next ``count`` records."""
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, found
        for part in consumer.poll(timeout_ms=500).values():  # type: ignore[attr-defined]
            found += [record.value for record in part]
    return found


def test_a_waiting_consumer_drains(colour: Colour, database: str, execute: Callable[..., None]) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    execute("SELECT logstore.produce('t', 'k', 'first')")
    assert read(consumer, 1) == [b"first"]
    execute(
        "SELECT logstore.produce('t', 'k', 'second')",
        "SAVEPOINT s",
        "SELECT logstore.produce('t', 'k', 'never')",
        "ROLLBACK TO s",
        "SELECT logstore.produce('t', 'k', 'third')",
    )
    assert read(consumer, 2) == [b"second", b"third"]


def test_what_was_committed_before_is_no_news(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    execute("SELECT logstore.produce('t', 'k', 'before')")
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="latest")
    ends = [consumer.position(TopicPartition("t", number)) for number in (0, 1)]
    assert sorted(ends) == [0, 1]
    execute("SELECT logstore.produce('t', 'k', 'after')")
    assert read(consumer, 1) == [b"after"]


def test_one_that_waits_for_something_else_drains(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    consumer = colour.consumer("u", dsn=database, auto_offset_reset="earliest")
    assert consumer.poll() == {}
    execute("SELECT logstore.produce('t', 'k', 'v')")
    wait_until(lambda: [record.value for record in records(database, "t")] == [b"v"])


@pytest.mark.one_server
def test_one_whose_partitions_are_paused_goes_on_draining(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    wait_until(lambda: watch(database, SEATS) == 1)
    consumer.pause(TopicPartition("t", 0), TopicPartition("t", 1))
    execute("SELECT logstore.produce('u', 'k', 'v')")
    wait_until(lambda: [record.value for record in records(database, "u")] == [b"v"])


@pytest.mark.one_server
def test_one_has_the_seat_and_sleeps(colour: Colour, database: str, execute: Callable[..., None]) -> None:
    consumers = [colour.consumer(topic, dsn=database, auto_offset_reset="earliest") for topic in "tu"]
    wait_until(lambda: watch(database, SEATS) == 1)
    wait_until(lambda: watch(database, ARMED) == 1)
    execute("SELECT logstore.produce('t', 'k', 'v'), logstore.produce('u', 'k', 'w')")
    assert (read(consumers[0], 1), read(consumers[1], 1)) == ([b"v"], [b"w"])
    assert watch(database, SEATS) == 1


@pytest.mark.one_server
def test_somebody_else_takes_the_seat(colour: Colour, database: str, execute: Callable[..., None]) -> None:
    first = colour.consumer("u", dsn=database, auto_offset_reset="earliest", client_id="first")
    wait_until(lambda: watch(database, SEATS) == 1)
    second = colour.consumer("t", dsn=database, auto_offset_reset="earliest", client_id="second")
    execute("SELECT logstore.produce('t', 'k', 'a')")
    assert read(second, 1) == [b"a"]
    first.close()
    execute("SELECT logstore.produce('t', 'k', 'b')")
    assert read(second, 1) == [b"b"]
    wait_until(lambda: watch(database, SEATS) == 1)
    # Killed, armed or not, while records come: it comes back and drains again.
    terminate(database, "second")
    execute("SELECT logstore.produce('t', 'k', 'c')")
    assert read(second, 1) == [b"c"]
    wait_until(lambda: watch(database, SEATS) == 1)


@pytest.mark.one_server
def test_the_seat_is_left_before_anybody_listens(
    colour: Colour, database: str, execute: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who did not get it, and is not told that it is free, looks again before it waits."""
    monkeypatch.setattr(attendance, "UNDISTURBED_S", 600.0)
    left = threading.Event()
    with psycopg.connect(database, autocommit=True) as seated, Proxy(database) as proxy:

        def leave(data: bytes, send: Callable[[], None]) -> None:
            if b"LISTEN" in data and not left.is_set():
                seated.execute("SELECT logstore.leave_staging()")
                left.set()
            send()

        seated.execute("SELECT logstore.attend_staging()")
        proxy.on_request = leave
        consumer = colour.consumer("t", dsn=proxy.dsn, auto_offset_reset="earliest")
        assert consumer.poll() == {}
        assert left.wait(30)
        execute("SELECT logstore.produce('t', 'k', 'v')")
        assert read(consumer, 1) == [b"v"]
        consumer.close()


@pytest.mark.one_server
def test_the_seat_is_taken_and_nothing_happens(
    colour: Colour, database: str, execute: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has it is frozen, or hangs in the network: the others drain as well, if less often."""
    monkeypatch.setattr(attendance, "UNDISTURBED_S", attendance.UNDISTURBED_S / 10)
    with psycopg.connect(database, autocommit=True) as frozen:
        frozen.execute("SELECT logstore.attend_staging(), logstore.arm_doorbell()")
        consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
        wait_until(lambda: watch(database, "SELECT count(*) FROM logstore.drained") == 0)
        execute("SELECT logstore.produce('t', 'k', 'v')")
        assert read(consumer, 1) == [b"v"]


@pytest.mark.one_server
def test_a_share_consumer_drains_while_it_waits(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    consumer = colour.share_consumer("t", dsn=database, group_id="g")
    assert consumer.poll(timeout_ms=100) == {}
    execute("SELECT logstore.produce('t', 'k', 'v')")
    deadline = time.monotonic() + 30
    found: list[bytes] = []
    while not found:
        assert time.monotonic() < deadline
        found = [record.value for part in consumer.poll(timeout_ms=1000).values() for record in part]
    assert found == [b"v"]


@pytest.mark.one_server
def test_one_that_may_not_drain_still_reads(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    execute("ALTER FUNCTION logstore.drain(int4) RENAME TO drain_of_others")
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    wait_until(lambda: watch(database, SEATS) == 0)
    execute("SELECT logstore.produce('t', 'k', 'v')")
    execute("SELECT logstore.drain_of_others()")
    assert read(consumer, 1) == [b"v"]


@pytest.mark.one_server
def test_a_partition_that_somebody_holds_does_not_end_it(
    colour: Colour, database: str, execute: Callable[..., None]
) -> None:
    """Draining gives up soon, and tries again."""
    consumer = colour.consumer("u", dsn=database, auto_offset_reset="earliest")
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM logstore.topic_partition FOR UPDATE")
        execute("SELECT logstore.produce('u', 'k', 'v')")
        assert consumer.poll(timeout_ms=300) == {}
    assert read(consumer, 1) == [b"v"]
