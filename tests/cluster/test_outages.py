"""Parts that are gone for long: etcd for a minute, the quorum until somebody brings it back."""

from __future__ import annotations

import time

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster, processes
from logstore.cluster.layout import ETCD
from logstore.errors import DeliveryTimeoutError, LogstoreError, NotEnoughReplicasError, UnknownOutcomeError
from tests.cluster.load import PARTITIONS, load
from tests.support.colours import Colour, Threads
from tests.support.log import records
from tests.support.programs import eventually

ENOUGH_S = 90.0
MINUTE_S = 60.0
DELIVERY_MS = 5000
"""How long the producer that is refused tries."""
SPARE_S = 5.0
"""And how late it may say so, on a machine that has other things to do."""


@pytest.mark.timeout(300)
def test_etcd_is_gone_for_a_minute(cluster: LocalCluster) -> None:
    """The leader goes on, and everything it takes is kept."""
    eventually(lambda: all(each.in_sync for each in cluster.status().members), "all are in sync", ENOUGH_S)
    found, colour = cluster.status(), Threads()
    assert found.leader is not None
    with Admin(found.dsn) as admin:
        admin.create_topic("minute", partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
    with load(colour, found.dsn, "minute", 8) as producers:
        cluster.kill(ETCD)
        until = time.monotonic() + MINUTE_S
        eventually(lambda: time.monotonic() > until or bool(producers.errors), "a minute", ENOUGH_S)
        leader = cluster.status().leader
        assert leader is not None and (leader.name, leader.pid) == (found.leader.name, found.leader.pid)
        producers.advance()
        assert cluster.up().phase == "ready"
        producers.advance()
    after = cluster.status().leader
    assert after is not None and after.name == found.leader.name
    print(f"etcd gone for a minute: for {producers.longest_silence():.1f} s no record was taken")
    colour.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_quorum_is_gone(cluster: LocalCluster, colour: Colour, how: str) -> None:
    """acks=all is refused in time, acks=1 goes on, and readers see it when it is safe."""
    eventually(lambda: all(each.in_sync for each in cluster.status().members), "all are in sync", ENOUGH_S)
    found, topic = cluster.status(), f"alone.{how}.{colour.name}"
    with Admin(found.dsn) as admin:
        admin.create_topic(topic, configs={"min.insync.replicas": "2"})
    impatient = {"delivery_timeout_ms": DELIVERY_MS, "request_timeout_ms": 4000}
    strong = colour.producer(found.dsn, acks="all", linger_ms=0, **impatient)
    weak = colour.producer(found.dsn, acks=1, linger_ms=0)
    consumer = colour.consumer(topic, dsn=found.dsn, auto_offset_reset="earliest")
    assert strong.send(topic, b"before", partition=0).get(ENOUGH_S).offset == 0
    assert weak.send(topic, b"before, too", partition=0).get(ENOUGH_S).offset == 1
    given: list[bytes] = []

    def read(count: int) -> bool:
        for batch in consumer.getmany(timeout_ms=200).values():
            given.extend(record.value for record in batch)
        return len(given) >= count

    eventually(lambda: read(2), "what is safe is given", ENOUGH_S)
    names = [member.name for member in found.followers]
    stopped = []
    try:
        if how == "killed":
            for name in names:
                cluster.kill(name)
        else:
            stopped = [process for name in names for process in processes.of(cluster.layout.place(name))]
            for process in stopped:
                process.suspend()
        begun = time.monotonic()
        future = strong.send(topic, b"refused", partition=0)
        with pytest.raises(LogstoreError) as refused:
            future.get(ENOUGH_S)
        took = time.monotonic() - begun
        print(f"{how}, {colour.name}: {type(refused.value).__name__} after {took:.1f} s")
        # Followers that are dead are known to be: nothing is written. Those that stand still may have it yet.
        expected = (DeliveryTimeoutError, NotEnoughReplicasError) if how == "killed" else UnknownOutcomeError
        assert isinstance(refused.value, expected)
        assert took < DELIVERY_MS / 1000 + SPARE_S
        # It has a lock of its own only while a refused commit still waits for followers.
        taken = weak.send(topic, b"taken", partition=0)
        if how == "killed":
            assert taken.get(ENOUGH_S).offset == 2
            assert not read(3), "nobody but the leader has it"
    finally:
        for process in stopped:
            process.resume()
    assert cluster.up().phase == "ready"
    assert taken.get(ENOUGH_S).offset >= 2
    eventually(lambda: read(3), "it is given when it is safe", ENOUGH_S)
    values = [record.value for record in records(found.dsn, topic)]
    assert given == values
    assert values[:2] == [b"before", b"before, too"] and b"taken" in values
