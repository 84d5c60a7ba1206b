"""What producers are told is safe stays, whatever becomes of the leader."""

from __future__ import annotations

import os
import signal

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster, processes
from tests.cluster.load import PARTITIONS, load
from tests.support.colours import Colour
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


@pytest.mark.timeout(300)
def test_a_leader_that_is_stopped_is_left_and_does_no_harm_when_it_goes_on(
    cluster: LocalCluster, colour: Colour, topic: str
) -> None:
    """SIGSTOP: every connection stays open, and nothing is answered."""
    found = cluster.status()
    assert found.leader is not None
    stopped = processes.of(cluster.layout.place(found.leader.name))
    with load(colour, found.dsn, topic, PRODUCERS) as producers:
        try:
            for process in stopped:
                os.kill(process.pid, signal.SIGSTOP)
            another_leads(cluster, found.leader.name)
            producers.advance()
        finally:
            for process in stopped:
                os.kill(process.pid, signal.SIGCONT)
        producers.advance()
    say(f"SIGSTOP of the leader, {colour.name}", producers.longest_silence())
    eventually(lambda: cluster.status().phase == "ready", "it follows", ENOUGH_S)
