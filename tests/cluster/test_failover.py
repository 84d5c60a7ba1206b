"""What producers are told is safe stays, whatever becomes of the leader."""

from __future__ import annotations

import os
import signal

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster, processes
from tests.cluster.load import PARTITIONS, load
from tests.support.colours import Colour
from tests.support.log import records
from tests.support.programs import eventually

ENOUGH_S = 90.0
PRODUCERS = 8


@pytest.fixture
def topic(cluster: LocalCluster, request: pytest.FixtureRequest) -> str:
    name = str(request.node.name).replace("[", ".").replace("]", "")
    with Admin(cluster.status().dsn) as admin:
        admin.create_topic(name, partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
    return name


def another_leads(cluster: LocalCluster, before: str) -> None:
    def done() -> bool:
        leader = cluster.status().leader
        return leader is not None and leader.name != before

    eventually(done, "another leads", ENOUGH_S)


def say(what: str, seconds: float) -> None:
    print(f"{what}: for {seconds:.1f} s no record was taken")


@pytest.mark.timeout(240)
def test_a_killed_leader_takes_nothing_with_it(cluster: LocalCluster, colour: Colour, topic: str) -> None:
    dsn = cluster.status().dsn
    with load(colour, dsn, topic, PRODUCERS) as producers:
        before = cluster.kill("leader")
        another_leads(cluster, before)
        producers.advance()
        # It comes back while they write, and follows.
        assert cluster.up().phase == "ready"
        producers.advance()
    say(f"kill -9 of the leader, {colour.name}", producers.longest_silence())


@pytest.mark.timeout(240)
def test_a_switchover_is_hardly_noticed(cluster: LocalCluster, colour: Colour, topic: str) -> None:
    dsn = cluster.status().dsn
    with load(colour, dsn, topic, PRODUCERS) as producers:
        cluster.switchover()
        producers.advance()
    say(f"switchover, {colour.name}", producers.longest_silence())


@pytest.mark.timeout(240)
def test_a_follower_may_come_and_go(cluster: LocalCluster, colour: Colour, topic: str) -> None:
    dsn = cluster.status().dsn
    with load(colour, dsn, topic, PRODUCERS) as producers:
        cluster.kill("follower")
        producers.advance()
        assert cluster.up().phase == "ready"
    say(f"kill -9 of a follower, {colour.name}", producers.longest_silence())


@pytest.mark.timeout(240)
def test_a_leader_that_is_lost_with_its_machine_is_waited_for(
    cluster: LocalCluster, colour: Colour, topic: str
) -> None:
    """Nobody is left who knows that it is dead: the lease has to end."""
    found = cluster.status()
    assert found.leader is not None
    with load(colour, found.dsn, topic, PRODUCERS) as producers:
        os.kill(found.supervisor_pid, signal.SIGSTOP)
        try:
            processes.kill(cluster.layout.place(found.leader.name))
            another_leads(cluster, found.leader.name)
            producers.advance()
        finally:
            os.kill(found.supervisor_pid, signal.SIGCONT)
        producers.advance()
    say(f"loss of the leader and of whoever knows it, {colour.name}", producers.longest_silence())


@pytest.mark.timeout(300)
def test_a_leader_that_is_stopped_is_left_and_does_no_harm_when_it_goes_on(
    cluster: LocalCluster, colour: Colour, topic: str
) -> None:
    """SIGSTOP: every connection stays open, and nothing is answered."""
    found = cluster.status()
    assert found.leader is not None
    stopped = processes.of(cluster.layout.place(found.leader.name))
    # Nobody is saved by a deadline.
    patient = {"request_timeout_ms": 200_000, "delivery_timeout_ms": 300_000}
    with load(colour, found.dsn, topic, PRODUCERS, **patient) as producers:
        try:
            for process in stopped:
                os.kill(process.pid, signal.SIGSTOP)
            another_leads(cluster, found.leader.name)
            producers.advance()
        finally:
            for process in stopped:
                os.kill(process.pid, signal.SIGCONT)
        producers.advance()
        # Until then whoever knows no timelines, as the judge, may take it for the leader that it was.
        eventually(lambda: cluster.status().phase == "ready", "it follows", ENOUGH_S)
    say(f"SIGSTOP of the leader, {colour.name}", producers.longest_silence())


@pytest.mark.timeout(240)
def test_acks_1_can_lose_what_it_acknowledged_and_acks_all_cannot(
    cluster: LocalCluster, colour: Colour, topic: str
) -> None:
    found = cluster.status()
    assert found.leader is not None
    receivers = [
        process
        for member in found.followers
        for process in processes.of(cluster.layout.place(member.name))
        if any("walreceiver" in word for word in process.cmdline())
    ]
    assert len(receivers) == 2
    weak = colour.producer(found.dsn, acks=1, linger_ms=0)
    strong = colour.producer(found.dsn, acks="all", linger_ms=0)
    # Each knows the topic, and is known to it.
    assert weak.send_and_wait(topic, b"weak 0", partition=0).offset == 0
    assert strong.send_and_wait(topic, b"strong 0", partition=0).offset == 1
    try:
        for process in receivers:
            process.suspend()
        assert weak.send_and_wait(topic, b"weak 1", partition=0).offset == 2
        future = strong.send(topic, b"strong 1", partition=0)
        cluster.kill("leader")
        assert not future.done()
    finally:
        for process in receivers:
            process.resume()
    another_leads(cluster, found.leader.name)
    # Its offset was that of the record that is lost, which acks=1 had called safe on the leader alone.
    assert future.get(ENOUGH_S).offset == 2
    values = [record.value for record in records(found.dsn, topic)]
    assert values == [b"weak 0", b"strong 0", b"strong 1"]


@pytest.mark.timeout(240)
def test_a_reader_goes_on_at_the_new_leader(cluster: LocalCluster, colour: Colour, topic: str) -> None:
    """It is given everything once, in order, whoever leads."""
    dsn = cluster.status().dsn
    producer = colour.producer(dsn, acks="all", linger_ms=0)
    consumer = colour.consumer(topic, dsn=dsn, auto_offset_reset="earliest")
    given: list[bytes] = []

    def read(count: int) -> None:
        while len(given) < count:
            for batch in consumer.getmany(timeout_ms=1000).values():
                given.extend(record.value for record in batch)

    wanted = [b"%d" % number for number in range(60)]
    for number, value in enumerate(wanted):
        if number == 20:
            before = cluster.kill("leader")
        if number == 40:
            another_leads(cluster, before)
            assert cluster.up().phase == "ready"
            cluster.switchover()
        assert producer.send(topic, value, partition=0).get(ENOUGH_S).offset == number
        if number % 10 == 9:
            read(number + 1)
    assert given == wanted
