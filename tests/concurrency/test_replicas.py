"""Who has a copy of the log, as SQL, the CLI and Prometheus are told, while followers come and go."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logstore import Admin, Producer
from logstore.cli.failures import guarded
from logstore.cli.root import root
from logstore.errors import InvalidReplicationFactorError, NotEnoughReplicasError
from logstore.workers import replica_metrics
from tests.support.programs import eventually
from tests.support.standbys import Group, standbys

pytestmark = pytest.mark.long

BOTH = "ANY 1 (s1, s2)"


@pytest.fixture(scope="module")
def servers() -> Iterator[Group]:
    with standbys(2, BOTH) as found:
        yield found


@pytest.fixture
def group(servers: Group) -> Iterator[Group]:
    """Two followers that stream, one of which each commit waits for, and no topic."""
    yield servers
    for follower in servers.followers:
        servers.follow(follower)
    servers.leader.set(synchronous_standby_names=BOTH)
    eventually(lambda: in_sync(servers) == ["p", "s1", "s2"], "all are in sync")
    with Admin(servers.leader.dsn) as admin:
        admin.delete_topics(admin.list_topics())


class Commands:
    """`run("replicas")`: what a command prints."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *argv: str, dsn: str) -> tuple[str, str]:
        self._capture.readouterr()
        assert guarded(root, [*argv, "--dsn", dsn]) == 0
        out, err = self._capture.readouterr()
        return out, err

    def json(self, *argv: str, dsn: str) -> Any:
        return json.loads(self(*argv, "--output", "json", dsn=dsn)[0])


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    monkeypatch.setenv("LOGSTORE_HOME", str(tmp_path))
    return Commands(capfd)


def in_sync(group: Group) -> list[str]:
    with Admin(group.leader.dsn) as admin:
        return [each.name for each in admin.describe_replicas() if each.in_sync]


def listed(group: Group, condition: str) -> list[str]:
    """The topics of a view, which has one row a partition."""
    view = f"logstore.{condition}_partitions"
    return [topic for topic, *_ in group.leader.execute(f"TABLE {view} ORDER BY topic, partition")]


def everywhere(group: Group, run: Commands) -> tuple[list[str], list[str], list[str]]:
    """The topics that are under-replicated, under min ISR, at min ISR: SQL, CLI and metrics agree."""
    dsn = group.leader.dsn
    found = []
    summary = run.json("replicas", dsn=dsn)["partitions"]
    numbers = metrics(group)
    for condition, gauge in (
        ("under_replicated", "under_replicated_partitions"),
        ("under_min_isr", "under_min_isr_partition_count"),
        ("at_min_isr", "at_min_isr_partition_count"),
    ):
        topics = listed(group, condition)
        flag = f"--{condition.replace('_', '-')}-partitions"
        assert [row["topic"] for row in run.json("topic", "describe", flag, dsn=dsn)] == topics
        assert summary[condition] == len(topics) == int(numbers[f"logstore_{gauge}"])
        found.append(topics)
    return found[0], found[1], found[2]


def metrics(group: Group) -> dict[str, str]:
    lines = replica_metrics.lines(group.leader.dsn, "logstore")
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_each_follower_that_is_cut_off_shows_everywhere(group: Group, run: Commands) -> None:
    dsn = group.leader.dsn
    s1, s2 = group.followers
    with Admin(dsn) as admin, Producer(dsn, acks="all", retries=0, linger_ms=0) as producer:
        for name, factor, insync in (("all", -1, 1), ("two", 2, 2), ("three", 3, 3)):
            admin.create_topic(name, 1, {"min.insync.replicas": insync}, replication_factor=factor)
        producer.send("two", b"1").get(30)
        # One follower's answer is enough for a commit, so two servers have it, and not three.
        assert everywhere(group, run) == ([], ["three"], [])
        with pytest.raises(NotEnoughReplicasError, match=r"min\.insync\.replicas is 3, but 2"):
            producer.send("three", b"1").get(30)
        out, _ = run("topic", "describe", "two", dsn=dsn)
        assert "leader p, replicas p,s1,s2, in sync p,s1,s2\n" in out
        assert metrics(group)['logstore_replicas{state="streaming"}'] == "2"

        group.cut_off(s2)
        assert everywhere(group, run) == (["all", "three"], ["three"], ["two"])
        out, _ = run("topic", "describe", "two", dsn=dsn)
        assert "in sync p,s1 (at min ISR: min.insync.replicas 2)\n" in out
        out, _ = run("replicas", dsn=dsn)
        assert "3 partitions: 2 under-replicated, 1 under min ISR, 1 at min ISR" in out
        (gone,) = [each for each in admin.describe_replicas() if each.name == "s2"]
        assert (gone.state, gone.in_sync, gone.flush_lag_bytes) == ("missing", False, None)
        assert metrics(group)['logstore_replica_in_sync{replica="s2",role="follower"}'] == "0"
        producer.send("two", b"2").get(30)
        with pytest.raises(InvalidReplicationFactorError, match=r"of 3 was .* but 2 servers"):
            admin.create_topic("more", replication_factor=3)

        group.cut_off(s1)
        assert everywhere(group, run) == (["all", "three", "two"], ["three", "two"], ["all"])
        with pytest.raises(NotEnoughReplicasError, match=r"min\.insync\.replicas is 2, but 1"):
            producer.send("two", b"3").get(30)

        group.follow(s1)
        group.follow(s2)
        eventually(lambda: everywhere(group, run) == ([], ["three"], []), "all is well again")
        assert producer.send("two", b"3").get(30).offset == 2


def test_a_group_has_so_many_replicas(group: Group) -> None:
    with Admin(group.leader.dsn) as admin:
        admin.create_topic("t", replication_factor=3)
        with pytest.raises(InvalidReplicationFactorError, match=r"of 4 was .* but 3 servers") as refused:
            admin.create_topic("u", replication_factor=4)
        assert refused.value.details["servers"] == ["p", "s1", "s2"]
        admin.alter_replication_factor("t", 2)
        (held,) = admin.describe_partition_replicas(["t"])
        assert (held.replication_factor, held.replicas) == (2, ["p", "s1", "s2"])


def test_followers_that_no_commit_waits_for_are_replicas_and_not_in_sync(group: Group, run: Commands) -> None:
    group.leader.set(synchronous_standby_names="")
    with Admin(group.leader.dsn) as admin:
        eventually(lambda: in_sync(group) == ["p"], "nobody is in sync")
        admin.create_topic("t", 2, {"min.insync.replicas": 2}, replication_factor=3)
        assert everywhere(group, run) == ([], ["t", "t"], [])
        assert {each.sync_state for each in admin.describe_replicas()} == {None, "async"}


def test_a_slot_that_nobody_uses_is_a_server_that_is_missing(group: Group) -> None:
    leader = group.leader
    leader.execute("SELECT pg_create_physical_replication_slot('s3', true)")
    try:
        with Admin(leader.dsn) as admin:
            admin.create_topic("t")
            assert [(e.name, e.state) for e in admin.describe_replicas()][1:] == [
                ("s1", "streaming"),
                ("s2", "streaming"),
                ("s3", "missing"),
            ]
            assert listed(group, "under_replicated") == ["t"]
            admin.alter_replication_factor("t", 3)
            assert listed(group, "under_replicated") == []
    finally:
        leader.execute("SELECT pg_drop_replication_slot('s3')")


def test_lag_is_told(group: Group) -> None:
    (s1, _) = group.followers
    with Admin(group.leader.dsn) as admin:
        s1.execute("SELECT pg_wal_replay_pause()")
        try:
            admin.create_topic("t")

            def lags() -> list[bool]:
                followers = [each for each in admin.describe_replicas() if each.role == "follower"]
                return [each.flush_lag_bytes == 0 < (each.replay_lag_bytes or 0) for each in followers]

            eventually(lambda: lags() == [True, False], "s1 has it all and shows nothing of it")
        finally:
            s1.execute("SELECT pg_wal_replay_resume()")


def test_who_may_not_see_followers_is_told_so(group: Group, run: Commands) -> None:
    with Admin(group.leader.dsn) as admin:
        admin.create_topic("t")
        with blind(group):
            (held,) = admin.describe_partition_replicas()
            assert (held.under_replicated, held.under_min_isr, held.at_min_isr) == (None, None, None)
            assert listed(group, "under_replicated") == ["t"], "silence would be taken for health"
            for command in (("replicas",), ("topic", "describe", "--at-min-isr-partitions")):
                _, err = run(*command, dsn=group.leader.dsn)
                assert "GRANT pg_read_all_stats" in err
            assert metrics(group)["logstore_replicas_known"] == "0"
            assert "logstore_under_replicated_partitions" not in metrics(group)
            with pytest.raises(InvalidReplicationFactorError) as refused:
                admin.create_topic("u", replication_factor=3)
            assert "GRANT pg_read_all_stats" in refused.value.advice


@contextlib.contextmanager
def blind(group: Group) -> Iterator[None]:
    """The owner of the log may not see who follows."""
    group.leader.execute("REVOKE pg_monitor FROM logstore")
    try:
        yield
    finally:
        group.leader.execute("GRANT pg_monitor TO logstore")


def test_a_follower_cannot_tell(group: Group, run: Commands) -> None:
    (s1, _) = group.followers
    with Admin(group.leader.dsn) as admin:
        admin.create_topic("t")
    group.caught_up(s1)
    with Admin(s1.dsn) as admin:
        leader, own = admin.describe_replicas()
        assert (leader.role, leader.in_sync) == ("leader", None)
        assert (own.name, own.role, own.state, own.in_sync) == ("s1", "follower", "streaming", None)
    out, err = run("topic", "describe", "--under-min-isr-partitions", dsn=s1.dsn)
    assert "not known" in out
    assert "ask the leader" in err
