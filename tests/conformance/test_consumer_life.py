"""Waiting, being woken, losing the connection, ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import cast

import pytest

from logstore._core.call import Call
from logstore._core.pace import UNDISTURBED_S
from logstore.errors import (
    ClientClosedError,
    ConfigurationError,
    ConnectionFailedError,
    InvalidArgumentError,
    SchemaMissingError,
    SchemaVersionError,
    WakeupError,
)
from logstore.records import TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.reading import ENOUGH_MS, read

pytestmark = pytest.mark.both_colours

TP = TopicPartition("t", 0)


LOOKS_APART_S = 0.02


class Watch:
    """What the server says of the connections whose application_name is ``name``."""

    def __init__(self, appender: Appender, name: str) -> None:
        self._connection = appender.connection
        self._call = Call(
            "SELECT pid, query_start FROM pg_catalog.pg_stat_activity WHERE application_name = $1::text",
            (name,),
            list,
            "pg_stat_activity",
        )

    def pids(self) -> list[int]:
        return [pid for pid, _ in self._connection.run(self._call)]

    def query_start(self) -> datetime:
        """When the only one made its last query."""
        ((_, start),) = self._connection.run(self._call)
        return cast(datetime, start)


def kill(appender: Appender, name: str) -> None:
    """End the connections whose application_name is ``name``."""
    text = (
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
        "WHERE application_name = $1::text"
    )
    appender.connection.run(Call(text, (name,), list, "pg_terminate_backend"))


# -- waiting


@pytest.mark.one_server  # nothing can be listened to behind a pooler
@pytest.mark.parametrize("wakeup", ["auto", "notify", "poll"])
def test_what_is_appended_while_it_waits_is_read(
    colour: Colour, database: str, appender: Appender, wakeup: str
) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database, wakeup=wakeup)
    consumer.poll()
    with ThreadPoolExecutor(1) as pool:
        for number in range(3):
            reading = pool.submit(read, consumer, 1)
            appender.append("t", values(1, number))
            assert [r.value for r in reading.result()] == values(1, number)


def test_wake_up_that_was_lost_costs_one_look(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database)
    consumer.poll()
    appender.append("t", [b"unannounced"], wake=False)
    assert [r.value for r in read(consumer, 1)] == [b"unannounced"]


@pytest.mark.one_server
def test_behind_a_pooler(pgbouncer_dsn: str, colour: Colour) -> None:
    with Appender(pgbouncer_dsn) as appender:
        appender.create("t", 2)
        consumer = colour.consumer("t", dsn=pgbouncer_dsn)
        consumer.poll()
        appender.append("t", [b"a"], 1)
        assert [r.value for r in read(consumer, 1)] == [b"a"]
        assert consumer.end_offsets([TP]) == {TP: 0}
        with pytest.raises(ConfigurationError, match="pooler"):
            colour.consumer("t", dsn=pgbouncer_dsn, wakeup="notify")


@pytest.mark.one_server  # counts the queries of the only connection to the database
def test_idle_consumer_makes_less_than_one_query_a_second(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t", 5)
    consumer = colour.consumer("t", dsn=database, client_id="idle")
    consumer.poll()
    watch = Watch(appender, "idle")
    starts = [watch.query_start()]
    # At first it announces itself and looks once more; then it has settled down.
    while len(starts) < 3 or (starts[-1] - starts[-3]).total_seconds() < 2 * UNDISTURBED_S:
        start = watch.query_start()
        if start != starts[-1]:
            starts.append(start)
        assert len(starts) < 40
        threading.Event().wait(LOOKS_APART_S)


@pytest.mark.one_server
@pytest.mark.parametrize("wakeup", ["notify", "poll"])
def test_idle_consumer_looks_as_often_as_it_is_told(
    colour: Colour, database: str, appender: Appender, wakeup: str
) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database, wakeup=wakeup, fetch_max_wait_ms=20)
    consumer.poll()

    def looks() -> float:
        return float(consumer.metrics()["fetch-total"])

    def looks_often() -> bool:
        before, began = looks(), time.monotonic()
        eventually(lambda: looks() > before + 20, "it looks")
        return time.monotonic() - began < UNDISTURBED_S

    eventually(looks_often, "it looks every few milliseconds")


# -- being interrupted


def test_wakeup(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database)
    consumer.wakeup()
    with pytest.raises(WakeupError):
        consumer.poll()
    with ThreadPoolExecutor(1) as pool:
        for wait in (lambda: consumer.poll(timeout_ms=ENOUGH_MS), lambda: next(consumer)):
            waiting = pool.submit(wait)
            consumer.wakeup()
            with pytest.raises(WakeupError):
                waiting.result()
    assert consumer.poll() == {}


@pytest.mark.parametrize("wait", ["poll", "next"])
def test_close_while_somebody_waits(colour: Colour, database: str, appender: Appender, wait: str) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database)
    consumer.poll()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            lambda: next(consumer) if wait == "next" else consumer.poll(timeout_ms=ENOUGH_MS)
        )
        consumer.close()
        with pytest.raises(ClientClosedError):
            waiting.result()


def test_closed_consumer_says_so(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    with colour.consumer("t", dsn=database, client_id="closing") as consumer:
        consumer.poll()
    consumer.close()
    calls: list[Callable[[], object]] = [
        consumer.poll,
        consumer.topics,
        consumer.assignment,
        consumer.paused,
        consumer.start,
        consumer.wakeup,
        consumer.seek_to_end,
        lambda: next(consumer),
        lambda: next(iter(consumer)),
        lambda: consumer.seek(TP, 0),
        lambda: consumer.position(TP),
        lambda: consumer.assign([TP]),
        lambda: consumer.end_offsets([TP]),
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
    watch = Watch(appender, "closing")
    while watch.pids():
        pass


# -- the connection


def test_connection_that_is_lost_is_made_anew(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(5))
    consumer = colour.consumer(
        "t", dsn=database, auto_offset_reset="earliest", client_id="victim", max_poll_records=3
    )
    read(consumer, 3)
    for number in range(5, 8):
        kill(appender, "victim")
        appender.append("t", values(1, number))
    assert [r.value for r in read(consumer, 5)] == values(5, 3)
    kill(appender, "victim")
    assert consumer.end_offsets([TP]) == {TP: 8}


def test_connection_is_lost_while_it_waits(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database, client_id="victim")
    consumer.poll()
    watch = Watch(appender, "victim")
    before = watch.pids()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, consumer, 1)
        kill(appender, "victim")
        while watch.pids() in ([], before):
            pass
        appender.append("t", [b"afterwards"])
        assert [r.value for r in reading.result()] == [b"afterwards"]


def test_no_server(colour: Colour) -> None:
    dsn = "postgresql://ann:s3cret@127.0.0.1:1/log"
    makers: list[Callable[[], object]] = [lambda: colour.consumer("t", dsn=dsn), lambda: colour.admin(dsn)]
    for make in makers:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:1") as caught:
            make()
        assert "s3cret" not in str(caught.value)


def test_database_without_a_log(colour: Colour, empty_database: str) -> None:
    makers: list[Callable[[], object]] = [
        lambda: colour.consumer("t", dsn=empty_database),
        lambda: colour.admin(empty_database),
    ]
    for make in makers:
        with pytest.raises(SchemaMissingError, match="logstore db upgrade --dsn"):
            make()


def test_log_of_another_version(colour: Colour, database: str, appender: Appender) -> None:
    appender.connection.execute("UPDATE logstore.alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaVersionError, match="logstore db upgrade --dsn"):
        colour.consumer("t", dsn=database)
    appender.connection.execute("UPDATE logstore.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaVersionError, match="pip install"):
        colour.admin(database)


# -- options


def test_options(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(9))
    dotted = {"max.poll.records": 4, "auto.offset.reset": "earliest"}
    assert len(read(colour.consumer("t", dsn=database, **dotted), 1)) == 4
    refused: list[tuple[dict[str, object], str]] = [
        ({"max_pol_records": 5}, "max_poll_records"),
        ({"max_poll_records": 0}, "from 1"),
        ({"fetch_max_bytes": "many"}, "fetch_max_bytes"),
        ({"auto_offset_reset": "oldest"}, "earliest"),
        ({"wakeup": "never"}, "auto, notify, poll"),
        ({"value_deserializer": 5}, "callable"),
        ({"dns": database}, "dsn"),
    ]
    for wrong, told in refused:
        with pytest.raises(ConfigurationError, match=told):
            colour.consumer("t", **{"dsn": database, **wrong})
    makers: list[Callable[[], object]] = [
        lambda: colour.consumer("t", dsn=5),
        lambda: colour.share_consumer("t", dsn=b"host=a", group_id="g"),
        lambda: colour.admin(5),
        lambda: colour.producer(5),
    ]
    for make in makers:
        with pytest.raises(InvalidArgumentError, match="dsn is a string"):
            make()


def test_nothing_is_left_behind(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("logstore")]

    assert threads() == []
    for _ in range(3):
        with colour.consumer("t", dsn=database) as consumer:
            consumer.poll()
    assert threads() == []
