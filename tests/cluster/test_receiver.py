"""A follower that goes on receiving from a server that it was told to leave."""

from __future__ import annotations

import re

import psycopg

from logstore.cluster import LocalCluster, processes
from logstore.cluster.receiver import astray
from tests.support.programs import eventually

ENOUGH_S = 60.0


def test_a_receiver_that_stays_with_the_wrong_server_is_led_back(cluster: LocalCluster) -> None:
    found, plan = cluster.status(), cluster.layout.read_plan()
    assert found.leader is not None and plan is not None
    follower, other = (cluster.layout.place(each.name) for each in found.followers)
    assert astray(follower) is None
    assert astray(cluster.layout.place(found.leader.name)) is None
    settings = follower.data / "postgresql.conf"
    told = settings.read_text()
    leaders, others = (f"port={plan.ports[name]}" for name in (found.leader.name, other.name))
    assert leaders in told
    passwords = follower.path / "pgpass"
    known = passwords.read_text()
    passwords.write_text(known + known.replace(leaders[5:], others[5:]))
    # Patroni would see to it at once, for here PostgreSQL has not missed what it is told.
    with processes.held_up([follower]):
        # The slot of its name is the leader's.
        changed = re.sub("(?m)^primary_slot_name = .*", "primary_slot_name = ''", told)
        settings.write_text(changed.replace(leaders, others))
        with psycopg.connect(cluster.layout.member_dsn(plan, follower.name), autocommit=True) as session:
            session.execute("SELECT pg_reload_conf()")

            def received() -> tuple[int, str] | None:
                return session.execute("SELECT pid, conninfo FROM pg_stat_wal_receiver").fetchone()

            def from_other() -> bool:
                now = received()
                return now is not None and others in now[1]

            eventually(from_other, "it receives from the other follower", ENOUGH_S)
            before = received()
            assert before is not None and astray(follower) is None
            settings.write_text(told)
            stray = astray(follower)
            assert stray is not None and stray.pid == before[0]
            eventually(lambda: not stray.is_running(), "that receiver ends", ENOUGH_S)
    eventually(lambda: cluster.status().phase == "ready", "all is well again", ENOUGH_S)
    eventually(lambda: all(each.in_sync for each in cluster.status().members), "all are in sync", ENOUGH_S)
