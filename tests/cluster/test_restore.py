"""A group that is brought back to an earlier moment, as docs/howto/backup.md says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from logstore import Admin, Producer
from logstore.cluster import LocalCluster
from logstore.cluster.layout import ETCD, REPLICATION
from logstore.embedded import EmbeddedServer, binaries
from tests.cluster.conftest import SETTINGS
from tests.support.log import records, watch
from tests.support.programs import eventually
from tests.support.recovery import command, verified

ENOUGH_S = 120.0


@pytest.mark.timeout(400)
def test_a_group_goes_back_to_a_moment(home: Path) -> None:
    archive, base = home / "archive", home / "base"
    archive.mkdir()
    keep = f"test ! -f {archive}/%f && cp %p {archive}/%f"
    cluster = LocalCluster(home)
    found = cluster.up(3, {**SETTINGS, "archive_mode": "on", "archive_command": keep})
    assert found.leader is not None
    before = found.leader.name
    back_up(cluster, before, base)
    with Admin(found.dsn) as admin:
        admin.create_topic("t", configs={"min.insync.replicas": "2"})
    with Producer(found.dsn) as producer:
        producer.send("t", b"a").get(60)
        with psycopg.connect(found.superuser_dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_create_restore_point('good')")
        producer.send("t", b"x").get(60)
    last = watch(found.superuser_dsn, "SELECT pg_walfile_name(pg_switch_wal())")
    eventually((archive / last).exists, "the archive has it")
    lost = watch(found.dsn, "SELECT max(leader_epoch) FROM logstore.batches")

    cluster.down()
    place = cluster.layout.place(before)
    restore(base, home / "alone", archive, keep)
    for name in ("pg1", "pg2", "pg3"):
        shutil.rmtree(cluster.layout.place(name).data)
    (home / "alone" / "data").rename(place.data)
    # What `patronictl remove` does: etcd knows how far the group was.
    shutil.rmtree(cluster.layout.place(ETCD).data)
    # First the one that was restored, alone: one without data might take itself for the first of a new group.
    for name in {"pg1", "pg2", "pg3"} - {before}:
        cluster.layout.place(name).held.touch()
    cluster._plan(None, None)
    cluster._spawn()

    def leads() -> bool:
        leader = cluster.status().leader
        return leader is not None and leader.name == before

    eventually(leads, "the restored one leads", ENOUGH_S)
    assert cluster.up().phase == "ready"
    dsn = cluster.status().dsn
    assert [record.value for record in records(dsn, "t")] == [b"a"]
    with Producer(dsn) as producer:
        assert producer.send("t", b"b").get(60).offset == 1
    assert watch(dsn, "SELECT max(leader_epoch) FROM logstore.batches") > lost
    verified(dsn)


def back_up(cluster: LocalCluster, member: str, base: Path) -> None:
    plan = cluster.layout.read_plan()
    assert plan is not None
    programs = binaries.find()
    done = subprocess.run(
        [
            programs.directory / "pg_basebackup", "--no-sync", "--checkpoint=fast", "--pgdata", base,
            "--dbname", cluster.layout.member_dsn(plan, member, REPLICATION),
        ],
        check=False, capture_output=True, text=True,
        env={**programs.environment(), "PGPASSWORD": plan.passwords[REPLICATION]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def restore(base: Path, alone: Path, archive: Path, keep: str) -> None:
    """The server by itself, without Patroni, until it has got there and was told that it was restored."""
    alone.mkdir()
    shutil.copytree(base, alone / "data")
    (alone / "data" / "recovery.signal").touch()
    with (alone / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("\ninclude 'logstore.conf'\n")
    (alone / "data" / "pg_hba.conf").write_text("local all all trust\n")
    settings = {
        **SETTINGS,
        "hot_standby": "off",
        "archive_mode": "on",
        "archive_command": keep,
        "restore_command": f"cp {archive}/%f %p",
        "recovery_target_name": "good",
        "recovery_target_action": "promote",
        # Patroni has written where they were.
        "hba_file": str(alone / "data" / "pg_hba.conf"),
        "ident_file": str(alone / "data" / "pg_ident.conf"),
        # Nobody follows it yet.
        "synchronous_standby_names": "",
        "max_connections": "100",
        "max_locks_per_transaction": "256",
    }
    server = EmbeddedServer(alone, settings, idle_s=60)
    with server.start_or_join() as handle:
        code, printed = command(handle.dsn, "db", "recovered")
        assert code == 0, printed
    server.stop()
