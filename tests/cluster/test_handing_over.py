"""A follower is asked to lead, and does so soon."""

from __future__ import annotations

import pytest

from logstore import Admin
from logstore.cluster import LocalCluster
from tests.cluster.load import PARTITIONS, load
from tests.support.colours import Threads
from tests.support.programs import eventually


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
