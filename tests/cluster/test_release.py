"""What the service manager does when Patroni has ended: the followers need not wait for its lease."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from logstore.cluster import LocalCluster, processes, rest
from logstore.cluster.layout import Place
from logstore.cluster.release import in_sync, release
from tests.cluster import keys
from tests.support.programs import eventually

ENOUGH_S = 60.0


def let_go(place: Place) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "logstore.cluster.release", str(place.configuration)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_key_of_a_dead_leader_goes_and_that_of_a_living_one_stays(cluster: LocalCluster) -> None:
    found = cluster.status()
    assert found.leader is not None
    leader = cluster.layout.place(found.leader.name)
    kept = let_go(leader)
    assert (kept.returncode, kept.stdout) == (0, "")
    follower = cluster.layout.place(found.followers[0].name)
    # The one that would do it stands still.
    os.kill(found.supervisor_pid, signal.SIGSTOP)
    try:
        processes.kill(follower)
        assert let_go(follower).stdout == ""
        assert cluster.status().leader == found.leader
        processes.kill(leader)
        released = let_go(leader)
        assert (released.returncode, released.stdout) == (
            0,
            f"{leader.name} led and is dead: its key is released\n",
        )
        assert let_go(leader).stdout == ""
    finally:
        os.kill(found.supervisor_pid, signal.SIGCONT)
    eventually(lambda: cluster.status().phase == "ready", "all are back", ENOUGH_S)


def test_nobody_is_waited_for_who_would_not_be_elected(cluster: LocalCluster) -> None:
    """A member that was in sync a moment ago, and is not any more as etcd has it."""
    eventually(lambda: all(each.in_sync for each in cluster.status().members), "all are in sync", ENOUGH_S)
    found, plan = cluster.status(), cluster.layout.read_plan()
    assert found.leader is not None and plan is not None
    leader = cluster.layout.place(found.leader.name)
    able, unable = (each.name for each in found.followers)
    document = json.loads(leader.configuration.read_text())
    assert in_sync(document) == frozenset({able, unable})
    os.kill(found.supervisor_pid, signal.SIGSTOP)
    try:
        with processes.held_up([leader]):
            known = json.loads(keys.get(plan, "sync") or "")
            keys.put(plan, "sync", json.dumps({**known, "sync_standby": able, "quorum": 0}))
            assert in_sync(document) == frozenset({able})
            processes.kill(leader)
            assert release(document, in_favour_of=unable)
        # Patroni leaves an empty one behind where one was named earlier.
        assert not json.loads(keys.get(plan, "failover") or "{}")
        eventually(lambda: rest.members_seen(plan)[able].leads, f"{able} leads", ENOUGH_S)
    finally:
        os.kill(found.supervisor_pid, signal.SIGCONT)
    eventually(lambda: cluster.status().phase == "ready", "all are back", ENOUGH_S)


@pytest.mark.parametrize("hosts", ["127.0.0.1:1", ["127.0.0.1:1", "127.0.0.1:2"]])
def test_without_etcd_it_says_so(cluster: LocalCluster, hosts: object) -> None:
    document = {
        "scope": "s", "name": "n", "postgresql": {"data_dir": "/nonexistent"}, "etcd3": {"hosts": hosts}
    }  # fmt: skip
    assert release(document) is None
