"""Backups that start no new timeline: a dump that is restored in another cluster, a copy of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from logstore import Admin, Consumer, Producer
from logstore.errors import OutOfOrderSequenceError
from tests.support.log import records, watch
from tests.support.recovery import Archived, command, dump, execute, restore_dump, verified
from tests.support.servers import Server

ENOUGH_S = 30.0
ENOUGH_MS = 30_000
BURN = "DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ahead", [True, False], ids=["its xids ahead", "its xids behind"])
def test_a_dump_in_another_cluster(server: Archived, another: Server, tmp_path: Path, ahead: bool) -> None:
    dsn = server.dsn
    with Admin(dsn) as admin:
        admin.create_topic("t")
        admin.create_topic("staged")
    with Producer(dsn) as producer:
        for value in (b"a", b"b"):
            producer.send("t", value).get(ENOUGH_S)
    with Consumer("t", dsn=dsn, group_id="g", auto_offset_reset="earliest") as consumer:
        assert consumer.poll(timeout_ms=ENOUGH_MS)
        consumer.commit()
    execute(dsn, "SELECT logstore.stage('staged', 0, NULL, 'drained', NULL, NULL, NULL)")
    execute(dsn, "SELECT FROM logstore.drain()")
    execute(another.superuser_dsn or "", BURN)
    for _ in range(2 if ahead else 0):
        execute(server.superuser_dsn, BURN)
    execute(dsn, "SELECT logstore.stage('staged', 0, NULL, 'waiting', NULL, NULL, NULL)")
    execute(another.superuser_dsn or "", "CREATE DATABASE restored OWNER logstore")
    into = another.database("restored")
    dump(dsn, tmp_path / "log.dump")
    restore_dump(into, tmp_path / "log.dump")

    before = watch(into, "SELECT max(leader_epoch) FROM logstore.topic_partition")
    assert command(into, "db", "recovered")[0] == 0
    assert command(into, "db", "status", "--check")[0] == 0
    verified(into)
    assert [record.value for record in records(into, "t")] == [b"a", b"b"]
    for _ in range(3):
        execute(into, "SELECT FROM logstore.drain()")
    assert [record.value for record in records(into, "staged")] == [b"drained", b"waiting"]
    with Producer(into) as producer:
        assert producer.send("t", b"c").get(ENOUGH_S).offset == 2
    with Consumer("t", dsn=into, group_id="g", auto_offset_reset="earliest") as consumer:
        [[record]] = consumer.poll(timeout_ms=ENOUGH_MS).values()
        assert (record.value, record.leader_epoch > before + 255) == (b"c", True)
    with Producer(into) as producer:
        assert producer.send("staged", b"more").get(ENOUGH_S).offset == 2
    verified(into)


@pytest.mark.timeout(180)
def test_a_copy_of_the_disk_has_epochs_that_nobody_has_seen(server: Archived) -> None:
    """Both histories begin with a start of the server: without a word, they would have the same epoch."""
    dsn = server.dsn
    with Admin(dsn) as admin:
        admin.create_topic("t")
    with Producer(dsn) as producer:
        producer.send("t", b"a").get(ENOUGH_S)
        # As a snapshot: a base backup with the write-ahead log that it needs, and no recovery to any moment.
        copy = server.back_up(server.home / "copy")
        # The history that will be lost has had a restart, too.
        server.restart()
        producer.send("t", b"x").get(ENOUGH_S)
        producer.send("t", b"y").get(ENOUGH_S)
        lost = watch(dsn, "SELECT max(leader_epoch) FROM logstore.batches")
        server.copy_back(copy)
        assert command(dsn, "db", "recovered")[0] == 0
        with pytest.raises(OutOfOrderSequenceError):
            producer.send("t", b"b").get(ENOUGH_S)
        assert producer.send("t", b"c").get(ENOUGH_S).offset == 1
    assert watch(dsn, "SELECT max(leader_epoch) FROM logstore.batches") > lost + 250
    verified(dsn)
