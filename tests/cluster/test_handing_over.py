"""A follower is asked to lead, and does so soon."""

from __future__ import annotations

import signal

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster, rest
from logstore.cluster.layout import ETCD
from tests.cluster import keys
from tests.cluster.faults import signal_all
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
@pytest.mark.parametrize("how", ["hands over", "killed", "killed without its lease"])
def test_a_leader_that_was_without_etcd_is_replaced_as_soon_as_any(how: str) -> None:
    """Followers that hear from such a leader elect nobody for 20 s, unless they are told that it is dead."""
    with topology({"fsync": "off"}) as top:
        eventually(top.whole, "all are well", PATIENCE_S)
        leader, topic = top.leader(), "reached"
        with Admin(top.dsn) as admin:
            admin.create_topic(topic, partitions=PARTITIONS, configs={"min.insync.replicas": "2"})
        top.relay.cut([(leader, ETCD)])

        def heard() -> bool:
            seen = rest.members_seen(top.plan)
            return all(seen[name].failsafe for name in top.members if name != leader and name in seen)

        eventually(heard, "the leader tells the followers that it goes on", PATIENCE_S)
        if how == "killed without its lease":
            eventually(lambda: keys.get(top.plan, "leader") is None, "its lease ends", PATIENCE_S)
            # It would take it again.
            signal_all(top.patroni(leader), signal.SIGSTOP)
        top.relay.heal()
        if how != "killed without its lease":
            eventually(top.whole, "all are well", PATIENCE_S)
        assert heard()
        colour = Threads()
        with load(colour, top.dsn, topic, 8) as producers:
            if how == "hands over":
                assert top.cluster.switchover(top.followers()[0])[0] == leader
            else:
                top.cluster.kill(leader)
                eventually(lambda: top.leader() != leader, "another leads", PATIENCE_S)
            producers.advance()
        colour.close()
    silence = producers.longest_silence()
    print(f"{how} after etcd was out of reach: no record was taken for {silence} s")
    assert silence < LEASE_S / 2
