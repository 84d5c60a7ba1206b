"""The runbooks of docs/replication.md, rehearsed: something breaks, and the commands there are run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from logstore import Admin, Producer
from logstore.cluster import LocalCluster, processes
from logstore.cluster.layout import ETCD
from logstore.errors import DeliveryTimeoutError
from tests.cluster.load import Load, load
from tests.cluster.runbook import Runbook
from tests.cluster.test_failover import another_leads, topic
from tests.support.colours import Colour, Threads
from tests.support.log import records
from tests.support.programs import eventually

__all__ = ["topic"]

ENOUGH_S = 120.0
PRODUCERS = 4


@pytest.fixture
def colour() -> Iterator[Colour]:
    """What clients notice is the other tests' subject."""
    made = Threads()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def writers(cluster: LocalCluster, colour: Colour, topic: str) -> Iterator[Load]:
    """Producers with acks=all, and in the end their judge."""
    patient = {"request_timeout_ms": 200_000, "delivery_timeout_ms": 300_000}
    with load(colour, cluster.status().dsn, topic, PRODUCERS, **patient) as made:
        yield made


def leader_of(cluster: LocalCluster) -> str:
    found = cluster.status().leader
    assert found is not None
    return found.name


def follower_of(cluster: LocalCluster) -> str:
    return next(member.name for member in cluster.status().followers if member.in_sync)


def ready(cluster: LocalCluster, what: str) -> None:
    eventually(lambda: cluster.status().phase == "ready", what, ENOUGH_S)


def say(what: str, writers: Load, began: float) -> None:
    whole = time.monotonic() - began
    print(f"{what}: for {writers.longest_silence():.1f} s no record was taken; whole after {whole:.1f} s")


def kill_at_once(cluster: LocalCluster, *names: str) -> None:
    """kill -9 several members before any of them sees that another one is gone."""
    places = [cluster.layout.place(name) for name in names]
    for place in places:
        place.held.touch(mode=0o600)
    for process in [process for place in places for process in processes.of(place)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for place in places:
        processes.kill(place)


@pytest.mark.timeout(300)
def test_a_planned_switchover(cluster: LocalCluster, writers: Load) -> None:
    before, after = leader_of(cluster), follower_of(cluster)
    began = time.monotonic()
    said = Runbook(cluster, "A planned switchover").run(on=before, MEMBER=after)
    assert "Quorum Standby" in said and "Successfully switched over" in said
    writers.advance()
    assert leader_of(cluster) == after
    ready(cluster, "the old leader follows")
    say("switchover to a certain member", writers, began)


@pytest.mark.timeout(300)
def test_the_leader_is_lost(cluster: LocalCluster, writers: Load) -> None:
    began = time.monotonic()
    before = cluster.kill("leader")
    another_leads(cluster, before)
    writers.advance()
    Runbook(cluster, "The leader is lost").run(on=leader_of(cluster))
    ready(cluster, "it follows")
    assert leader_of(cluster) != before
    say("kill -9 of the leader", writers, began)


@pytest.mark.timeout(300)
def test_a_members_disk_is_lost(cluster: LocalCluster, writers: Load) -> None:
    runbook = Runbook(cluster, "A member's disk is lost")
    leader = leader_of(cluster)
    began = time.monotonic()
    lost = cluster.kill("follower")
    writers.advance()
    runbook.run(0, on=lost)
    ready(cluster, "it is copied")
    assert leader_of(cluster) == leader
    say("a follower's disk", writers, began)

    began = time.monotonic()
    # It runs, and cannot go on: a part of it is gone.
    damaged = cluster.layout.place(lost).data
    shutil.rmtree(damaged / "base")
    runbook.run(1, on=leader, MEMBER=lost)
    ready(cluster, "it is copied once more")
    assert (damaged / "base").is_dir()
    writers.advance()
    say("a damaged follower", writers, began)

    began = time.monotonic()
    before = cluster.kill("leader")
    another_leads(cluster, before)
    runbook.run(0, on=before)
    ready(cluster, "the former leader is copied")
    assert leader_of(cluster) != before
    say("the leader's disk", writers, began)


@pytest.mark.timeout(400)
def test_the_leaders_disk_is_full(cluster: LocalCluster, topic: str, colour: Colour) -> None:
    follower = cluster.kill("follower")
    with on_small_disk(cluster, follower) as disk:
        assert cluster.up().phase == "ready"
        eventually(
            lambda: follower in {each.name for each in cluster.status().followers if each.in_sync},
            "it is copied, and in sync",
            ENOUGH_S,
        )
        cluster.switchover(follower)
        patient = {"request_timeout_ms": 200_000, "delivery_timeout_ms": 300_000}
        with load(colour, cluster.status().dsn, topic, PRODUCERS, **patient) as writers:
            began = time.monotonic()
            filler = fill(disk)
            log = cluster.layout.place(follower).log
            eventually(
                lambda: "No space left on device" in log.read_text(errors="replace"), "it is full", ENOUGH_S
            )
            assert leader_of(cluster) == follower, "nobody takes over by himself"
            ordered = time.monotonic()
            said = Runbook(cluster, "The leader's disk is full").run(on=follower, MEMBER=follower_of(cluster))
            assert "100%" in said
            another_leads(cluster, follower)
            writers.advance()
            print(f"another one took records {time.monotonic() - ordered:.1f} s after it was told to lead")
            filler.unlink()
            ready(cluster, "it follows by itself")
            say("the leader's disk is full", writers, began)
        kill_at_once(cluster, follower)
    cluster.layout.place(follower).data.rmdir()


@contextlib.contextmanager
def on_small_disk(cluster: LocalCluster, name: str) -> Iterator[Path]:
    """The data directory of a member that is held is an empty file system of 400 MB."""
    place = cluster.layout.place(name)
    owner = place.data.stat()
    shutil.rmtree(place.data)
    place.data.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=400M,mode=0700", "tmpfs", str(place.data)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program called mount")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        os.chown(place.data, owner.st_uid, owner.st_gid)
        yield place.data
    finally:
        subprocess.run(["umount", "--lazy", str(place.data)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


@pytest.mark.timeout(400)
def test_etcd_is_lost(cluster: LocalCluster, writers: Load) -> None:
    runbook = Runbook(cluster, "etcd is lost")
    leader = cluster.status().leader
    assert leader is not None
    members = [leader, *cluster.status().followers]
    for with_its_data in (False, True):
        began = time.monotonic()
        cluster.kill(ETCD)
        if with_its_data:
            shutil.rmtree(cluster.layout.place(ETCD).data)
        # Longer than the leader's lease.
        outlast(cluster, began, 25.0, writers)
        assert "continue to run as a leader because failsafe mode is enabled" in cluster.layout.place(
            leader.name
        ).log.read_text(errors="replace")
        if with_its_data:
            cluster.layout.place(ETCD).held.unlink()
            eventually(lambda: cluster.status().etcd == "running", "etcd is there, empty", ENOUGH_S)
            runbook.run(1, on=leader.name)
            for member in members[1:]:
                runbook.run(2, on=member.name)
        else:
            assert "Quorum Standby" in runbook.run(0, on=leader.name)
        eventually(lambda: cluster.status().phase == "ready", "etcd knows them all", ENOUGH_S)
        writers.advance()
        found = cluster.status().leader
        assert found is not None and (found.name, found.pid) == (leader.name, leader.pid)
        say("etcd and its data" if with_its_data else "etcd", writers, began)


def outlast(cluster: LocalCluster, began: float, seconds: float, writers: Load) -> None:
    """Records are taken for all that time."""
    while time.monotonic() - began < seconds:
        writers.advance()
        assert cluster.status().leader is not None


@pytest.mark.timeout(400)
def test_the_followers_are_lost(cluster: LocalCluster, topic: str) -> None:
    dsn = cluster.status().dsn
    kill_at_once(cluster, *(member.name for member in cluster.status().followers))
    with (
        Producer(dsn, acks="all", delivery_timeout_ms=5000, request_timeout_ms=3000) as producer,
        pytest.raises(DeliveryTimeoutError, match=r"min\.insync\.replicas is 2, but 1 servers"),
    ):
        eventually(lambda: cluster.status().followers == (), "both are gone", ENOUGH_S)
        producer.send(topic, b"refused").get(60)
    with Producer(dsn, acks=1) as producer:
        assert producer.send(topic, b"taken").get(60).offset == 0
    assert [record.value for record in records(dsn, topic)] == [b"taken"]
    cluster.up()
    with Producer(dsn, acks="all") as producer:
        producer.send(topic, b"taken by two").get(60)


@pytest.mark.timeout(400)
def test_the_quorum_is_lost(cluster: LocalCluster, topic: str) -> None:
    found = cluster.status()
    assert found.leader is not None and len(found.followers) == 2
    gone, left = found.followers[0].name, found.followers[1].name
    with Producer(found.dsn, acks="all") as producer:
        producer.send(topic, b"before").get(60)
        began = time.monotonic()
        kill_at_once(cluster, found.leader.name, gone)
        # Longer than the lease: it is not promoted by itself.
        eventually(lambda: time.monotonic() - began > 25, "the lease is over", ENOUGH_S)
        assert cluster.status().leader is None
        ordered = time.monotonic()
        said = Runbook(cluster, "The quorum is lost").run(on=left, MEMBER=left, LOGSTORE_DSN=found.dsn)
        assert "under newer leader epochs" in said
        assert leader_of(cluster) == left
        print(f"the last member leads {time.monotonic() - ordered:.1f} s after it was told to")
        disk = Runbook(cluster, "A member's disk is lost")
        for name in (found.leader.name, gone):
            shutil.rmtree(cluster.layout.place(name).data)
        disk.run(0, on=gone)
        ready(cluster, "it has followers")
        print(f"and has two followers {time.monotonic() - ordered:.1f} s after that")
        producer.send(topic, b"after").get(60)
    with Admin(found.dsn) as admin:
        assert topic in admin.list_topics()
    values = [record.value for record in records(found.dsn, topic)]
    # The one that is left may have been the follower that was not waited for.
    assert values in ([b"before", b"after"], [b"after"])
