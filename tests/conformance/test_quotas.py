"""Clients that have a quota keep to it, are told so, and stay usable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from logstore import ClientQuotaEntity
from logstore._core import throttle
from logstore._core.call import Call
from logstore.errors import (
    BufferExhaustedError,
    DeliveryTimeoutError,
    InvalidArgumentError,
    InvalidConfigError,
    RequestTimedOutError,
    ThrottlingQuotaExceededError,
)
from logstore.quotas import DEFAULT_ENTITY
from logstore.records import TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.reading import ENOUGH_MS, read

ENOUGH_S = 60.0
ETL = ClientQuotaEntity(client_id="etl")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits asks ten times as often: what these tests change is noticed that much sooner."""
    monkeypatch.setattr(throttle, "ASK_EVERY_S", throttle.ASK_EVERY_S / 10)


@pytest.fixture
def alter(colour: Colour, database: str) -> Callable[..., None]:
    """Sets quotas of the client id "etl"."""
    admin = colour.admin(database)

    def set_(**rates: int | None) -> None:
        admin.alter_client_quotas({ETL: rates})

    return set_


def charge(appender: Appender, kind: str, size: int) -> None:
    """Use up a part of the quota of "etl", as another connection of its would."""
    with appender.connection.transaction():
        appender.connection.execute("SET LOCAL application_name = 'etl'")
        text = "SELECT logstore.charge_quota($1::text, $2::int8, false)"
        appender.connection.run(Call(text, (kind, size), list, "charge_quota"))


def appended(appender: Appender) -> list[tuple[int, int]]:
    """When (the server's ms) each batch came, and how many bytes it has."""
    text = "SELECT append_time, size_bytes FROM logstore.batches ORDER BY append_time"
    return [(at, size) for at, size in appender.connection.run(Call(text, (), list, "batches"))]


# -- setting


@pytest.mark.one_server
def test_quotas_are_set_described_and_taken_away(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    assert admin.describe_client_quotas() == {}
    both = ClientQuotaEntity("app", DEFAULT_ENTITY)
    admin.alter_client_quotas({ETL: {"producer_byte_rate": 10**6}, both: {"consumer_byte_rate": 5.0}})
    assert admin.describe_client_quotas() == {
        ETL: {"producer_byte_rate": 10**6},
        both: {"consumer_byte_rate": 5},
    }
    assert admin.describe_client_quotas([both, ClientQuotaEntity(user="app")]) == {
        both: {"consumer_byte_rate": 5}
    }
    # All or none.
    with pytest.raises(InvalidConfigError):
        admin.alter_client_quotas({ETL: {"producer_byte_rate": None}, both: {"bytes": 1}})
    assert ETL in admin.describe_client_quotas()
    for nonsense in (ClientQuotaEntity(), "etl", (1, None), ("", "")):
        with pytest.raises(InvalidArgumentError):
            admin.alter_client_quotas({nonsense: {"producer_byte_rate": 1}})
    for rate in (0.5, "1", True):
        with pytest.raises(InvalidArgumentError):
            admin.alter_client_quotas({ETL: {"producer_byte_rate": rate}})
    admin.alter_client_quotas({ETL: {"producer_byte_rate": None}, both: {"consumer_byte_rate": None}})
    assert admin.describe_client_quotas() == {}


# -- producers


def test_producers_together_keep_the_rate(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    rate, count, seconds = 200_000, 3, 3
    appender.create("t", 2)
    alter(producer_byte_rate=rate)
    # What a second allows at once is used up before; so it is measured from the first record on.
    charged_ms = time.time_ns() // 1_000_000
    charge(appender, "produce", rate)

    def produce(_: int) -> dict[str, float]:
        producer = colour.producer(database, client_id="etl", linger_ms=0, max_request_size=4096)
        for _ in range(rate * seconds // count // 1100):
            producer.send("t", b"x" * 1000)
        producer.flush()
        return dict(producer.metrics())

    with ThreadPoolExecutor(count) as pool:
        metrics = list(pool.map(produce, range(count)))
    # Each producer's first batch is sent before it can be told to wait.
    batches = appended(appender)[count - 1 :]
    began_ms = batches.pop(0)[0]
    took_s, used = (batches[-1][0] - began_ms) / 1000, sum(size for _, size in batches)
    # While the producers of a busy machine are still on their way, a second's worth gathers again at most.
    gathered_s = min(1.0, (began_ms - charged_ms) / 1000)
    assert 0.9 * rate * took_s <= used <= 1.1 * rate * (took_s + gathered_s)
    for each in metrics:
        assert 0 < each["produce-throttle-time-avg"] <= each["produce-throttle-time-max"]
        assert each["record-retry-total"] == each["record-error-total"] == 0


@pytest.mark.one_server
def test_the_record_s_metadata_and_the_log_say_it(
    colour: Colour,
    database: str,
    appender: Appender,
    alter: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    appender.create("t")
    alter(producer_byte_rate=100_000)
    producer = colour.producer(database, client_id="etl")
    assert producer.send_and_wait("t", b"x").throttle_time_ms == 0
    charge(appender, "produce", 200_000)
    with caplog.at_level("WARNING", "logstore.producer"):
        first = producer.send_and_wait("t", b"x")
        second = producer.send_and_wait("t", b"x")
        (bulk,) = producer.send_many("t", [b"x", b"x"]).get(ENOUGH_S)
    assert 0 < first.throttle_time_ms <= 1100
    assert (second.offset, bulk.base_offset) == (2, 3)
    (line,) = [each.getMessage() for each in caplog.records if each.name == "logstore.producer"]
    assert "'etl'" in line and "producer quota" in line


@pytest.mark.one_server
def test_a_throttled_producer_fills_its_buffer_and_gives_up_in_time(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    alter(producer_byte_rate=1000)
    producer = colour.producer(
        database,
        client_id="etl",
        buffer_memory=10_000,
        max_block_ms=300,
        linger_ms=0,
        request_timeout_ms=1000,
        delivery_timeout_ms=1500,
    )

    def knows() -> bool:
        with contextlib.suppress(RequestTimedOutError):
            return bool(producer.partitions_for("t"))
        return False

    # Which may take it longer than it waits for room.
    eventually(knows, "it knows the topic")
    assert producer.send_and_wait("t", b"x" * 5000).throttle_time_ms > 3000
    waiting = producer.send("t", b"y" * 5000)
    with pytest.raises(BufferExhaustedError):
        producer.send("t", b"z" * 5000)
    with pytest.raises(DeliveryTimeoutError, match="quota is used up"):
        waiting.get(ENOUGH_S)
    assert len(appended(appender)) == 1


@pytest.mark.one_server
def test_who_is_refused_waits_and_goes_on(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    alter(producer_byte_rate=1000)
    producer = colour.producer(database, client_id="etl", retries=0)
    charge(appender, "produce", 20_000)
    future = producer.send("t", b"x")
    eventually(lambda: producer.metrics()["produce-throttle-time-max"] > 10_000, "it was told to wait")
    assert not future.done()
    alter(producer_byte_rate=None)
    assert future.get(ENOUGH_S).offset == 0, "it was no failed attempt, and it did not wait for 19 s"
    assert producer.metrics()["record-error-total"] == 0


@pytest.mark.one_server
def test_a_transaction_waits_before_it_writes(
    colour: Colour,
    database: str,
    appender: Appender,
    alter: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody looks by the way, and what is waited for does not pass by itself.
    monkeypatch.setattr(f"logstore._{'async' if colour.name == 'asyncio' else 'sync'}.sender.IDLE_S", 600.0)
    appender.create("t")
    alter(producer_byte_rate=10_000)
    producer = colour.producer(database, client_id="etl", transactional_id="till")
    producer.init_transactions()
    for number in range(3):
        producer.begin_transaction()
        producer.send("t", b"%d" % number * 7000)
        producer.commit_transaction()
    charge(appender, "produce", 2_000_000)
    producer.begin_transaction()
    future = producer.send("t", b"last")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(producer.commit_transaction)
        eventually(lambda: producer.metrics()["produce-throttle-time-max"] > 10_000, "it was told to wait")
        assert not commit.done()
        alter(producer_byte_rate=10**9)
        commit.result(ENOUGH_S)
    assert future.get(ENOUGH_S).offset == 3


@pytest.mark.one_server
def test_staging_beyond_the_quota_is_refused(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    alter(producer_byte_rate=1)
    charge(appender, "produce", 20)
    with appender.connection.transaction():
        appender.connection.execute("SET LOCAL application_name = 'etl'")
        with pytest.raises(ThrottlingQuotaExceededError) as refused:
            appender.connection.run(appender.calls.produce("t", None, b"x"))
    assert refused.value.retriable
    assert refused.value.details["throttle_time_ms"] > 10_000


# -- consumers


def test_consumers_together_keep_the_rate(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t", 2)
    for number in range(60):
        appender.append("t", [b"x" * 5000], partition=number % 2)
    size = appended(appender)[0][1]
    rate = 15 * size
    alter(consumer_byte_rate=rate)
    charge(appender, "fetch", rate)
    # From here on, because what a second allows gathers while the consumers are on their way.
    began = time.monotonic()

    def consume(partition: int) -> tuple[float, dict[str, float]]:
        consumer = colour.consumer(dsn=database, client_id="etl", auto_offset_reset="earliest")
        consumer.assign([TopicPartition("t", partition)])
        assert len(read(consumer, 30)) == 30
        return time.monotonic() - began, dict(consumer.metrics())

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(consume, range(2)))
    # Each fetch brings a second's worth at most, and the last one of each is not waited for.
    assert max(took for took, _ in ended) >= 1.5
    for _, metrics in ended:
        assert 0 < metrics["fetch-throttle-time-avg"] <= metrics["fetch-throttle-time-max"]
        assert metrics["fetch-total"] >= 2


@pytest.mark.one_server
def test_a_throttled_consumer_answers_and_ends_at_once(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    appender.append("t", values(10))
    appender.append("t", values(10))
    alter(consumer_byte_rate=1)
    group = colour.consumer(
        "t",
        dsn=database,
        client_id="etl",
        group_id="g",
        auto_offset_reset="earliest",
        session_timeout_ms=1000,
        heartbeat_interval_ms=200,
    )
    assert len(read(group, 10)) == 10
    # The second batch may not come for a minute or more; the member stays one for longer than its lease.
    assert group.poll(timeout_ms=1500) == {}
    assert group.assignment() == {TopicPartition("t", 0)}
    assert group.position(TopicPartition("t", 0)) == 10
    group.commit()
    assert group.committed(TopicPartition("t", 0)) == 10
    assert group.end_offsets([TopicPartition("t", 0)]) == {TopicPartition("t", 0): 20}
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(group.poll, timeout_ms=ENOUGH_MS)
        eventually(lambda: group.metrics()["fetch-throttle-time-max"] > 0, "it was told to wait")
        alter(consumer_byte_rate=None)
        ((_, records),) = polling.result(ENOUGH_S).items()
    assert [record.offset for record in records] == list(range(10, 20))


@pytest.mark.one_server
def test_closing_does_not_wait_for_the_quota(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    appender.append("t", values(3))
    appender.append("t", values(3))
    alter(consumer_byte_rate=1)
    consumer = colour.consumer("t", dsn=database, client_id="etl", auto_offset_reset="earliest")
    assert len(read(consumer, 3)) == 3
    with ThreadPoolExecutor(1) as pool:
        polling: Any = pool.submit(consumer.poll, timeout_ms=ENOUGH_MS)
        eventually(lambda: consumer.metrics()["fetch-throttle-time-max"] > 5_000, "it was told to wait")
        consumer.close()
        assert polling.exception(ENOUGH_S / 2) is not None


@pytest.mark.one_server
def test_a_share_group_keeps_the_rate(
    colour: Colour, database: str, appender: Appender, alter: Callable[..., None]
) -> None:
    appender.create("t")
    for _ in range(6):
        appender.append("t", [b"x" * 5000])
    size = appended(appender)[0][1]
    alter(consumer_byte_rate=2 * size)
    colour.admin(database).alter_share_configs("s", {"share.auto.offset.reset": "earliest"})
    consumer = colour.share_consumer("t", group_id="s", dsn=database, client_id="etl")
    polled = [list(consumer.poll(timeout_ms=ENOUGH_MS).values()) for _ in range(3)]
    assert [len(records) for (records,) in polled] == [2, 2, 2]
    metrics = consumer.metrics()
    # The first two come at once, the third waits for what the second has used.
    assert (metrics["fetch-total"], metrics["records-fetched-total"]) == (3, 6)
    assert 500 <= metrics["fetch-throttle-time-max"] <= 1000
    charge(appender, "fetch", 40 * size)
    appender.append("t", [b"last"])
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(consumer.poll, timeout_ms=ENOUGH_MS)
        eventually(lambda: consumer.metrics()["fetch-throttle-time-max"] > 10_000, "it was told to wait")
        alter(consumer_byte_rate=None)
        ((records,),) = [polling.result(ENOUGH_S).values()]
    assert [record.value for record in records] == [b"last"]
    assert records[0].delivery_count == 1, "to have been refused is no delivery"
