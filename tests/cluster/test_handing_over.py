"""A follower is asked to lead, and does so soon."""

from __future__ import annotations

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster, rest
from logstore.cluster.layout import ETCD
from tests.cluster.load import PARTITIONS, load
from tests.cluster.topology import PATIENCE_S, topology
from tests.support.colours import Threads
from tests.support.programs import eventually

LEASE_S = 20.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("named", [False, True], ids=["any", "named"])
def test_a_switchover_is_short(cluster: LocalCluster, named: bool) -> None:
    """Three times in a row, measured."""
    dsn = cluster.status().dsn
    topic = f"switched.{named}"
    with Admin(dsn) as admin:
        admin.create_topic(topic, partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
    colour, silences = Threads(), []
    for _ in range(3):
        eventually(lambda: all(each.in_sync for each in cluster.status().members), "all are in sync", 90)
        found = cluster.status()
        assert found.leader is not None
        to = found.followers[-1].name if named else None
        with load(colour, dsn, topic, 8) as producers:
            before, after = cluster.switchover(to)
            assert before == found.leader.name
            assert after != before and to in (None, after)
            producers.advance()
        silences.append(producers.longest_silence())
        topic += "x"
        with Admin(dsn) as admin:
            admin.create_topic(topic, partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
    colour.close()
    print(f"switchover, {'named' if named else 'any'}: no record was taken for {silences} s")


@pytest.mark.timeout(400)
def test_a_switchover_after_etcd_was_out_of_reach_is_no_longer() -> None:
    """Followers that hear from a leader without etcd elect nobody for 20 s: until then it goes on."""
    with topology({"fsync": "off"}) as top:
        eventually(top.whole, "all are well", PATIENCE_S)
        leader, topic = top.leader(), "reached"
        with Admin(top.dsn) as admin:
            admin.create_topic(topic, partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
        top.relay.cut([(leader, ETCD)])

        def on_its_own() -> bool:
            seen = rest.members_seen(top.plan)
            return all(seen[name].failsafe for name in top.members if name != leader and name in seen)

        eventually(on_its_own, "the leader tells the followers that it goes on", PATIENCE_S)
        top.relay.heal()
        eventually(top.whole, "all are well", PATIENCE_S)
        colour = Threads()
        with load(colour, top.dsn, topic, 8) as producers:
            assert top.cluster.switchover(top.followers()[0])[0] == leader
            producers.advance()
        colour.close()
    silence = producers.longest_silence()
    print(f"switchover after etcd was out of reach: no record was taken for {silence} s")
    assert silence < LEASE_S / 2
