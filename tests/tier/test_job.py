"""What the job does: copies, reads back, lets go of what PostgreSQL has, deletes."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import logstore
from logstore.errors import ConfigurationError, OffsetOutOfRangeError, RemoteFileError, RemoteStorageError
from logstore.tier import files, store
from logstore.workers import connections, erasure, reclaim, retention, roll, tier, tier_restore
from tests.support import objectstore
from tests.support.appender import Appender
from tests.support.clock import DAY_MS, Clock
from tests.support.tiered import START_MS, TieredLog, shape


def everything(log: TieredLog) -> list[Any]:
    return [shape(record) for record in logstore.read("t", dsn=log.dsn)]


def names(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())


@pytest.mark.every_server
def test_copies_then_lets_go(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log(partitions=2, local_retention_ms="-2").fill()
    came_to = log.settle()
    assert (came_to.topics, came_to.released, came_to.segments) == (("t",), 0, 0)
    assert came_to.files == len(names(tmp_path)) > 4
    assert came_to.bytes == sum(found.stat().st_size for found in tmp_path.rglob("*.parquet"))
    # The second time there is nothing to do, and the records are in both places.
    assert log.settle() == tier.Tiered()
    assert log.value("SELECT count(*) FROM records") == 400
    log.alter(local_retention_ms="0")
    came_to = log.settle()
    assert (came_to.files, came_to.deleted) == (0, 0)
    assert (
        came_to.released
        == log.local_start(0) + log.local_start(1)
        == log.value("SELECT sum(records) FROM remote_segments WHERE NOT also_local")
    )
    assert came_to.segments > 1
    reclaim.run_once(log.dsn)
    assert everything(log) == log.everything()


def test_a_store_may_take_longer_than_a_session_may_be_idle(
    make_log: Callable[..., TieredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(local_retention_ms="0").fill()
    roll.run_once(log.dsn)
    # Every other job's would be ended between any two statements.
    assert connections.Limits.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(connections.Limits.__init__.__kwdefaults__, "idle_timeout_ms", 1)
    assert tier.run_once(log.dsn).files > 2
    assert tier_restore.restore(log.dsn, "t").files > 2


def test_space_is_given_back(make_log: Callable[..., TieredLog]) -> None:
    log = make_log(file_delete_delay_ms="0").fill()
    leaves = "SELECT count(*) FROM pg_class WHERE relname ~ '^b_[0-9]+_[0-9]+$' AND relkind = 'r'"
    before = log.value(leaves)
    log.settle()
    reclaim.run_once(log.dsn)
    assert log.value(leaves) <= before - 2
    assert everything(log) == log.everything()


def test_local_retention_ms(make_log: Callable[..., TieredLog]) -> None:
    with_clock = make_log(local_retention_ms=str(DAY_MS)).fill()
    with Clock(with_clock.dsn, START_MS + 1000 + DAY_MS) as clock:
        with_clock.settle()
        # Whole segments, all of whose records are older than a day.
        start = with_clock.local_start()
        assert 0 < start < 101
        clock.advance(500)
        with_clock.settle()
        assert start < with_clock.local_start() < 151
        assert everything(with_clock) == with_clock.everything()


def test_local_retention_bytes(make_log: Callable[..., TieredLog]) -> None:
    log = make_log(local_retention_ms="-2", local_retention_bytes="4000").fill()
    log.settle()
    left = log.value("SELECT bytes FROM partitions")
    assert 4000 <= left < 4000 + 1200
    assert everything(log) == log.everything()


def test_retention_deletes_files(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log().fill()
    log.settle()
    count = len(names(tmp_path))
    log.alter(retention_ms=str(DAY_MS))
    with Clock(log.dsn, START_MS + 700 + DAY_MS):
        retention.run_once(log.dsn)
        start = log.value("SELECT log_start FROM partitions")
        assert 0 < start < log.local_start()
        assert len(names(tmp_path)) == count
        assert log.settle().deleted == count - len(names(tmp_path)) > 0
        assert everything(log) == log.records[0][start:]
    # Size counts both: as much as two segments stay, which are in PostgreSQL.
    log.alter(retention_ms="-1", retention_bytes="2500", local_retention_bytes="-2")
    retention.run_once(log.dsn)
    log.settle()
    start = log.value("SELECT log_start FROM partitions")
    assert start > 100
    assert everything(log) == log.records[0][start:]
    log.rows("SELECT delete_records('t', 0, -1)")
    log.settle()
    assert names(tmp_path) == []


@pytest.mark.every_server
def test_deleting_a_topic_deletes_its_files(log: TieredLog, tmp_path: Path) -> None:
    assert names(tmp_path)
    log.rows("SELECT delete_topic('t')")
    came_to = log.settle()
    assert came_to.topics == (f"deleted topic {log.topic_id}",)
    assert list(tmp_path.iterdir()) == []
    assert log.rows("SELECT * FROM remote_segments") == []


def test_no_file_is_believed_that_does_not_come_back(
    make_log: Callable[..., TieredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log().fill()
    real = store.read

    def read(url: str, start: int, end: int) -> bytes:
        found = real(url, start, end)
        return bytes(len(found)) if start else found

    monkeypatch.setattr(store, "read", read)
    with pytest.raises(RemoteFileError, match="checksum"):
        log.settle()
    assert names(tmp_path) == []
    assert log.rows("SELECT * FROM remote_segments") == []
    assert log.local_start() == 0
    monkeypatch.setattr(store, "read", real)
    assert log.settle().released > 0


def test_a_copy_that_lacks_records_is_none(
    make_log: Callable[..., TieredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log().fill()
    real = files.FileWriter.add
    added: list[object] = []

    def add(self: files.FileWriter, row: Any) -> None:
        added.append(row)
        if len(added) != 2:
            real(self, row)

    monkeypatch.setattr(files.FileWriter, "add", add)
    with pytest.raises(RemoteFileError, match="could be copied"):
        log.settle()
    assert log.local_start() == 0


@pytest.mark.every_server
@pytest.mark.parametrize("erased", [False, True])
def test_what_begins_in_the_middle_of_a_batch(make_log: Callable[..., TieredLog], *, erased: bool) -> None:
    log = make_log().fill()
    if erased:
        # Batches have fewer records than offsets then.
        log.rows("SELECT erase_key('t', 'key-4'::text)")
        roll.run_once(log.dsn)
        erasure.run_once(log.dsn)
    log.rows("SELECT delete_records('t', 0, 33)")
    came_to = log.settle()
    left = [record for record in log.records[0][33:] if not (erased and record[3] == b"key-4")]
    assert came_to.records == sum(record[1] < log.local_start() for record in left) > 100
    assert everything(log) == left


def test_records_that_are_deleted_while_they_are_copied(
    make_log: Callable[..., TieredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log().fill()
    real = files.FileWriter.finish

    def finish(self: files.FileWriter) -> files.Written:
        monkeypatch.setattr(files.FileWriter, "finish", real)
        log.rows("SELECT delete_records('t', 0, 33)")
        return dataclasses.replace(real(self), records=1)

    monkeypatch.setattr(files.FileWriter, "finish", finish)
    assert log.settle().files == 0
    assert log.settle().files > 2
    assert everything(log) == log.records[0][33:]


def test_told_to_stop_in_the_middle_of_a_file(
    make_log: Callable[..., TieredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log().fill()
    stop = threading.Event()
    real = files.FileWriter.__init__

    def begin(self: files.FileWriter, *arguments: Any) -> None:
        stop.set()
        real(self, *arguments)

    monkeypatch.setattr(files.FileWriter, "__init__", begin)
    assert tier.run_once(log.dsn, stop=stop) == tier.Tiered()
    assert names(tmp_path) == []
    assert log.rows("SELECT * FROM remote_segments") == []
    assert log.settle().files > 2


def test_a_store_that_cannot_be_reached(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    objectstore.install()
    log = make_log(f"object://{tmp_path}/bucket").fill()
    down = tmp_path / "DOWN"
    down.touch()
    with pytest.raises(RemoteStorageError, match="timed out"):
        log.settle()
    assert log.local_start() == 0
    assert log.value("SELECT count(*) FROM records") == 200
    # What it could not clear away is cleared away by the next run.
    assert log.value("SELECT count(*) FROM remote_segments WHERE state = 'copying'") == 1
    down.unlink()
    came_to = log.settle()
    assert came_to.deleted == 1
    assert came_to.released > 0
    # Nor do records go when the store is lost later; they are refused, not skipped.
    down.touch()
    with pytest.raises(RemoteStorageError):
        everything(log)
    with pytest.raises(RemoteStorageError):
        log.rows("SELECT delete_records('t', 0, -1)")
        log.settle()
    down.unlink()
    log.settle()
    assert log.rows("SELECT * FROM remote_segments") == []


def test_one_bad_place_keeps_no_other_topic_from_being_copied(
    make_log: Callable[..., TieredLog], tmp_path: Path, appender: Appender
) -> None:
    log = make_log(f"object://{tmp_path}/bucket").fill()
    (tmp_path / "DOWN").touch()
    url = f"file://{tmp_path}/u"
    appender.create("u", segment_bytes="100", remote_storage_enable="true", remote_storage_url=url)
    for number in range(10):
        appender.append("u", [b"%d" % number * 100])
    with pytest.raises(RemoteStorageError):
        log.settle()
    assert names(tmp_path / "u")


@pytest.mark.parametrize("url", ["nosuch://x/y", "s3://bucket/x"])
def test_a_place_that_nothing_here_knows(make_log: Callable[..., TieredLog], url: str) -> None:
    log = make_log(url).fill()
    with pytest.raises(ConfigurationError):
        log.settle()
    assert log.local_start() == 0


def test_a_directory_that_cannot_be_written_to(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a directory is wanted")
    log = make_log(f"file://{tmp_path}/taken").fill()
    with pytest.raises(RemoteStorageError, match="Cannot write"):
        log.settle()
    assert log.local_start() == 0


def test_without_the_extra(make_log: Callable[..., TieredLog], monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log().fill()
    log.settle()
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'logstore-pg\[tier\]'"):
        everything(log)


def test_where_nobody_has_said(
    make_log: Callable[..., TieredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGSTORE_HOME", str(tmp_path / "a home"))
    log = make_log().fill()
    log.alter(remote_storage_url=None)
    log.settle()
    assert log.value("SELECT url FROM tier_location") == f"file://{tmp_path}/a home/tier"
    # It is what all workers go by from then on, until somebody says otherwise.
    monkeypatch.setenv("LOGSTORE_HOME", str(tmp_path / "another"))
    log.fill().settle()
    assert not (tmp_path / "another").exists()
    log.rows("SELECT set_tier_location(%s)", f"file://{tmp_path}/third")
    log.fill().settle()
    assert names(tmp_path / "third")
    assert everything(log) == log.everything()


def test_copying_can_be_stopped(make_log: Callable[..., TieredLog]) -> None:
    log = make_log(remote_log_copy_disable="true").fill()
    assert log.settle() == tier.Tiered()
    log.alter(remote_log_copy_disable=None)
    assert log.settle().files > 0
    log.alter(remote_log_copy_disable="true")
    log.fill()
    assert log.settle().files == 0
    assert everything(log) == log.everything()


def test_disabling_would_lose_records(log: TieredLog, tmp_path: Path) -> None:
    with pytest.raises(psycopg.Error) as caught:
        log.alter(remote_storage_enable="false")
    assert caught.value.sqlstate == "LS056"
    starts = {partition: log.local_start(partition) for partition in (0, 1)}
    log.alter(remote_storage_enable="false", remote_log_delete_on_disable="true")
    assert log.settle().deleted > 0
    assert names(tmp_path) == []
    assert everything(log) == [
        record for partition, records in log.records.items() for record in records[starts[partition] :]
    ]


def test_disabling_while_postgresql_has_it_all(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log(local_retention_ms="-2").fill()
    log.settle()
    log.alter(remote_storage_enable=None)
    log.settle()
    assert names(tmp_path) == []
    assert everything(log) == log.everything()


@pytest.mark.parametrize(
    "configs",
    [
        {"cleanup.policy": "compact"},
        {"cleanup.policy": "compact,delete"},
        {"local.retention.ms": "1001", "retention.ms": "1000"},
        {"local.retention.ms": "-1", "retention.ms": "1000"},
        {"local.retention.bytes": "1001", "retention.bytes": "1000"},
        {"local.retention.ms": "-3"},
        {"remote.storage.enable": "yes"},
        {"remote.storage.url": "/srv/log"},
        {"remote.storage.url": "sftp://me:secret@host/log"},
    ],
    ids=str,
)
def test_configs_that_make_no_sense(database: str, configs: dict[str, str]) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(
                "SELECT logstore.create_topic('u', 1, %s)",
                [json.dumps({"remote.storage.enable": "true", **configs})],
            )
        assert caught.value.sqlstate == "LS004"
        assert "secret" not in str(caught.value)


def test_what_a_share_group_has_not_finished_stays(make_log: Callable[..., TieredLog]) -> None:
    log = make_log().fill(20)
    log.rows(
        "INSERT INTO share_window (group_id, topic_id, partition, end_offset, start_offset)"
        " VALUES (1, %s, 0, 30, 30)",
        log.topic_id,
    )
    log.fill(20).settle()
    assert 0 < log.local_start() <= 30


@pytest.mark.parametrize("reset", ["earliest", "by_duration:P36500D"])
def test_a_share_group_does_not_leave_out_what_is_in_files_in_silence(log: TieredLog, reset: str) -> None:
    log.rows("SELECT alter_share_group('s', %s)", json.dumps({"share.auto.offset.reset": reset}))
    with pytest.raises(OffsetOutOfRangeError, match="in files only") as caught:
        logstore.ShareConsumer("t", dsn=log.dsn, group_id="s")
    place = {"topic": "t", "partition": 0, "offset": 0, "local_start": log.local_start()}
    assert place.items() <= caught.value.details.items()
    assert "tier restore" in caught.value.advice
    assert log.value("SELECT count(*) FROM share_groups") == 0


def test_a_share_group_begins_where_postgresql_does(log: TieredLog) -> None:
    start = log.local_start()
    log.rows("SELECT alter_share_group('s', '{\"share.auto.offset.reset\": \"earliest_local\"}')")
    with logstore.ShareConsumer("t", dsn=log.dsn, group_id="s") as consumer:
        found: list[Any] = []
        while len([record for record in found if record.partition == 0]) < 200 - start:
            polled = consumer.poll(timeout_ms=20_000)
            assert polled
            found += [record for records in polled.values() for record in records]
    assert min(record.offset for record in found if record.partition == 0) == start
    assert log.value("SELECT min(start_offset) FROM share_groups WHERE partition = 0") >= start


def test_two_at_once(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    log = make_log(partitions=2).fill()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: tier.run_once(log.dsn), range(4)))
    assert sum(result.files for result in results) == len(names(tmp_path))
    assert log.value("SELECT count(*) FROM remote_segments WHERE state <> 'copied'") == 0
    assert everything(log) == log.everything()


def test_appends_go_on_beside_it(make_log: Callable[..., TieredLog], monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log().fill()
    real = files.check

    def check(*arguments: Any) -> None:
        log.fill(3)
        real(*arguments)

    monkeypatch.setattr(tier, "check", check)
    assert log.settle().files > 3
    assert everything(log) == log.everything()
