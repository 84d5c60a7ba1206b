"""What a failover could take away is given to nobody, and what it cannot is given soon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

import logstore
from logstore import Producer, TopicPartition
from logstore._core import pace
from tests.support.appender import Appender, values
from tests.support.colours import Asyncio, Colour
from tests.support.programs import eventually
from tests.support.reading import ENOUGH_MS, read
from tests.support.standbys import Group, standbys

pytestmark = [pytest.mark.one_server, pytest.mark.long]
_numbers = count()
PATIENT = {"fetch_max_wait_ms": 20 * ENOUGH_MS}
"""A reader that does not know that something is about to become safe looks again after so long."""


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with standbys(1, "ANY 1 (s1)") as found:
        yield found


@pytest.fixture
def log(group: Group) -> Iterator[Appender]:
    """Appends as ``acks=1`` does."""
    with Appender(group.leader.dsn) as found:
        yield found


@pytest.fixture
def topic(log: Appender) -> str:
    name = f"t{next(_numbers)}"
    log.create(name)
    return name


@contextmanager
def cut_off(group: Group) -> Iterator[None]:
    """Nothing reaches the follower."""
    (follower,) = group.followers
    group.cut_off(follower)
    try:
        yield
    finally:
        group.follow(follower)


@contextmanager
def busy(group: Group) -> Iterator[None]:
    """The leader writes something all the time, which its follower has a moment later."""
    over = threading.Event()

    def write() -> None:
        with group.leader.connect() as connection:
            while not over.is_set():
                connection.execute("SELECT pg_logical_emit_message(false, 'noise', 'noise')")

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            yield
        finally:
            over.set()
            writing.result()


def read_now(colour: Colour, topic: str, dsn: str) -> list[bytes | None]:
    """What ``read()`` gives."""
    if not isinstance(colour, Asyncio):
        return [record.value for record in logstore.read(topic, dsn=dsn)]

    async def gather() -> list[bytes | None]:
        return [record.value async for record in logstore.async_read(topic, dsn=dsn)]

    found: list[bytes | None] = colour.run(gather)
    return found


def looked(consumer: Any) -> None:
    """Wait until ``consumer`` has looked a few times, and has got nothing."""
    fetches = consumer.metrics()["fetch-total"]
    eventually(
        lambda: consumer.poll() != {} or consumer.metrics()["fetch-total"] > fetches + len(pace.HASTE_S),
        "it looks again and again",
    )


def test_a_consumer_waits_for_the_followers(colour: Colour, group: Group, log: Appender, topic: str) -> None:
    consumer = colour.consumer(topic, dsn=group.leader.dsn, auto_offset_reset="earliest", **PATIENT)
    for number in range(3):
        log.append(topic, values(1, number))
        assert [record.value for record in read(consumer, 1)] == values(1, number)
    partition = TopicPartition(topic, 0)
    with cut_off(group):
        log.append(topic, values(2, 3))
        looked(consumer)
        # Without a follower the leader knows only what was sealed.
        assert consumer.highwater(partition) <= consumer.position(partition) == 3
        assert consumer.end_offsets([partition])[partition] <= 3
        assert read_now(colour, topic, group.leader.dsn) in [values(end) for end in range(4)]
        # A position between what may be read and the end is none that is out of range.
        consumer.seek(partition, 5)
        looked(consumer)
        assert consumer.position(partition) == 5
        consumer.seek(partition, 3)
    assert [record.value for record in read(consumer, 2)] == values(2, 3)
    assert read_now(colour, topic, group.leader.dsn) == values(5)


def test_a_share_consumer_waits_for_the_followers(
    colour: Colour, group: Group, log: Appender, topic: str
) -> None:
    consumer = colour.share_consumer(topic, dsn=group.leader.dsn, group_id=f"g-{topic}", **PATIENT)
    assert consumer.poll(timeout_ms=50) == {}
    (follower,) = group.followers
    group.cut_off(follower)
    log.append(topic, values(1))
    assert consumer.poll(timeout_ms=300) == {}
    with ThreadPoolExecutor() as pool:
        back = pool.submit(group.follow, follower)
        got = consumer.poll(timeout_ms=10 * ENOUGH_MS)  # it looks a last time when that is over
        back.result()
    assert [record.value for record in got[TopicPartition(topic, 0)]] == values(1)


def test_a_share_consumer_learns_that_followers_are_to_be_waited_for(
    colour: Colour, group: Group, log: Appender, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is made, and taken back, while it is connected."""
    for module in ("logstore._async.share_member", "logstore._sync.share_member"):
        monkeypatch.setattr(f"{module}.SETTING_S", 0.05)
    names = group.leader.execute("SHOW synchronous_standby_names")[0][0]
    group.synchronous("")
    consumer = colour.share_consumer(topic, dsn=group.leader.dsn, group_id=f"g-{topic}", **PATIENT)
    assert consumer.poll(timeout_ms=50) == {}

    def get() -> list[bytes | None]:
        (records,) = consumer.poll(timeout_ms=10 * ENOUGH_MS).values()
        consumer.commit()  # which has to be replicated, too
        return [record.value for record in records]

    log.append(topic, values(1))
    assert get() == values(1)
    (follower,) = group.followers
    group.synchronous(names)
    group.cut_off(follower)
    log.append(topic, values(1, 1))
    assert consumer.poll(timeout_ms=300) == {}
    with ThreadPoolExecutor() as pool:
        back = pool.submit(group.follow, follower)
        assert get() == values(1, 1)
        back.result()
    group.cut_off(follower)
    try:
        log.append(topic, values(1, 2))
        assert consumer.poll(timeout_ms=300) == {}
        group.leader.set(synchronous_standby_names="")
        assert get() == values(1, 2)
    finally:
        group.leader.set(synchronous_standby_names=names)
        group.follow(follower)


def test_a_transaction_waits_for_the_followers(
    colour: Colour, group: Group, log: Appender, topic: str
) -> None:
    consumer = colour.consumer(
        topic,
        dsn=group.leader.dsn,
        group_id=f"g-{topic}",
        auto_offset_reset="earliest",
        delivery="exactly_once",
        **PATIENT,
    )
    with cut_off(group):
        log.append(topic, values(1))
        with consumer.transaction(timeout_ms=300) as tx:
            assert tx.records == []
    with consumer.transaction(timeout_ms=ENOUGH_MS) as tx:
        assert [record.value for record in tx.records] == [b"0"]


def test_what_was_acknowledged_is_before_the_end(
    colour: Colour, group: Group, log: Appender, topic: str
) -> None:
    consumer = colour.consumer(topic, dsn=group.leader.dsn, auto_offset_reset="earliest", **PATIENT)
    partition = TopicPartition(topic, 0)
    with busy(group), Producer(group.leader.dsn, acks="all") as producer:
        for number in range(5):
            offset = producer.send_and_wait(topic, b"%d" % number).offset
            assert consumer.end_offsets([partition])[partition] > offset
            assert len(read_now(colour, topic, group.leader.dsn)) > offset


def test_without_followers_nothing_is_asked(
    colour: Colour, database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody promises that followers have it, everything may be read, and nobody seals."""
    from logstore._core.calls import Calls

    def refuse(_: Calls) -> None:
        raise AssertionError("nobody has to seal")

    monkeypatch.setattr(Calls, "seal", refuse)
    monkeypatch.setattr(Calls, "epoch_ends", refuse)
    appender.create("t")
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    for number in range(3):
        appender.append("t", values(1, number))
        assert [record.value for record in read(consumer, 1)] == values(1, number)
    partition = TopicPartition("t", 0)
    assert consumer.end_offsets([partition]) == {partition: 3}
    assert read_now(colour, "t", database) == values(3)
