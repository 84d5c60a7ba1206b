"""Bringing segments back, and taking keys out of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import logstore
from logstore.errors import (
    InvalidArgumentError,
    LockTimeoutError,
    RemoteFileError,
    UnknownTopicOrPartitionError,
)
from logstore.workers import erasure, reclaim, roll, tier, tier_restore
from tests.support.clock import DAY_MS, Clock
from tests.support.tiered import START_MS, TieredLog, shape

pytestmark = pytest.mark.long


def everything(log: TieredLog) -> list[Any]:
    return [shape(record) for record in logstore.read("t", dsn=log.dsn)]


def consumed(log: TieredLog) -> list[Any]:
    """What a consumer gets until it has come to the end."""
    found: list[Any] = []
    with logstore.Consumer(dsn=log.dsn, auto_offset_reset="earliest") as consumer:
        parts = [logstore.TopicPartition("t", partition) for partition in log.records]
        consumer.assign(parts)
        ends = consumer.end_offsets(parts)
        while any(consumer.position(part) < ends[part] for part in parts):
            polled = consumer.poll(timeout_ms=20_000)
            assert polled, f"nothing came after {len(found)} records"
            found += [shape(record) for records in polled.values() for record in records]
    return sorted(found)


def local(log: TieredLog) -> list[tuple[Any, ...]]:
    return log.rows('SELECT partition, "offset", key, value FROM records ORDER BY 1, 2')


def as_rows(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(record[0], record[1], record[3], record[4]) for record in records]


@pytest.mark.every_server
def test_everything_comes_back(log: TieredLog) -> None:
    reclaim.run_once(log.dsn)
    count = log.value("SELECT count(*) FROM remote_segments")
    came_to = tier_restore.restore(log.dsn, "t")
    assert came_to.files == count
    assert came_to.records == came_to.offsets > 300
    assert local(log) == as_rows(log.everything())
    # As good as new: by offset, by time, with headers, and the files have not to be there.
    for path in log.files() + log.files(1):
        path.unlink()
    assert everything(log) == log.everything()
    for offset in range(0, 200, 7):
        query = "SELECT min(\"offset\") FROM read('t', 0, from_time => to_timestamp(%s::float8 / 1000))"
        found = log.value(query, START_MS + offset * 10)
        assert found == offset


def test_a_part_of_it(log: TieredLog) -> None:
    start = log.local_start()
    came_to = tier_restore.restore(log.dsn, "t", partition=0, from_offset=start - 30)
    assert came_to.files >= 1
    assert start - 60 < log.local_start() <= start - 30
    assert local(log)[: start - log.local_start()] == as_rows(log.records[0][log.local_start() : start])
    assert everything(log) == log.everything()


def test_it_stays_for_a_while(log: TieredLog) -> None:
    with Clock(log.dsn) as clock:
        tier_restore.restore(log.dsn, "t", keep_ms=DAY_MS)
        assert log.settle().released == 0
        clock.advance(DAY_MS + 1)
        before = log.value("SELECT count(*) FROM remote_segments")
        came_to = log.settle()
        assert (came_to.files, came_to.released > 300) == (0, True)
        assert log.value("SELECT count(*) FROM remote_segments") == before
        assert everything(log) == log.everything()


def test_what_is_still_there_is_not_copied(log: TieredLog) -> None:
    # A long transaction keeps the tables, say; here a partition that was never appended to keeps the segment.
    log.alter(local_retention_ms="-2")
    log.fill()
    tier.run_once(log.dsn)
    log.rows("UPDATE topic_partition SET local_start = 250 WHERE partition = 0")
    segments = log.value("SELECT count(*) FROM topic_segment")
    tier_restore.restore(log.dsn, "t", partition=0, from_offset=240)
    assert log.value("SELECT count(*) FROM topic_segment") == segments
    assert log.local_start() < 250
    assert everything(log) == log.everything()


def test_a_changed_file_is_not_restored(log: TieredLog) -> None:
    path = log.files()[-1]
    content = path.read_bytes()
    path.write_bytes(content[:30] + b"?" + content[31:])
    start = log.local_start()
    with pytest.raises(RemoteFileError):
        tier_restore.restore(log.dsn, "t", partition=0)
    assert log.local_start() == start
    # What was begun is cleared away, and it works as soon as the file is good.
    assert log.value("SELECT count(*) FROM tier_restore") == 1
    path.write_bytes(content)
    tier_restore.restore(log.dsn, "t")
    assert log.value("SELECT count(*) FROM tier_restore") == 0
    assert local(log) == as_rows(log.everything())
    assert log.value("SELECT count(*) FROM topic_segment WHERE NOT live") == 0


def test_what_cannot_be_restored(log: TieredLog) -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        tier_restore.restore(log.dsn, "u")
    with pytest.raises(UnknownTopicOrPartitionError):
        tier_restore.restore(log.dsn, "t", partition=2)
    with pytest.raises(InvalidArgumentError):
        tier_restore.restore(log.dsn, "t", from_offset=-1)
    with tier.claimed(log.dsn, "logstore", log.topic_id), pytest.raises(LockTimeoutError):
        tier_restore.restore(log.dsn, "t")


def erase(log: TieredLog, key: bytes) -> None:
    log.rows("SELECT erase_key('t', %s::bytea)", key)
    for _ in range(6):
        roll.run_once(log.dsn)
        log.settle()  # nothing is copied that has the key
        erasure.run_once(log.dsn)
        log.settle()
        reclaim.run_once(log.dsn)


def without(records: list[Any], key: bytes) -> list[Any]:
    return [record for record in records if record[3] != key]


@pytest.mark.every_server
def test_a_key_is_erased_from_files(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log(partitions=2, file_delete_delay_ms="0").fill()
    log.settle()
    before = log.everything()
    erase(log, b"key-3")
    # The tables that were replaced are dropped by a session of one's own only, and not through a pooler.
    pooled = log.sql.info.backend_pid != log.value("SELECT pg_backend_pid()")
    assert log.rows("SELECT state, records FROM erasures") == [
        ("removed" if pooled else "finished", sum(record[3] == b"key-3" for record in before))
    ]
    assert everything(log) == without(before, b"key-3")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"key-3" not in pyarrow.parquet.read_table(path)["key"].to_pylist()
    # What comes later stays; offsets are what they were; it can all be brought back.
    log.fill(1)
    after = [*without(before, b"key-3"), *(record for each in log.records.values() for record in each[200:])]
    assert everything(log) == sorted(after)
    tier_restore.restore(log.dsn, "t")
    assert local(log) == as_rows(sorted(after))
    assert consumed(log) == sorted(after)


def test_a_file_may_lose_all_its_records(make_log: Callable[..., TieredLog]) -> None:
    log = make_log(file_delete_delay_ms="0")
    for base in range(0, 60, 5):
        log._appender.append("t", [b"x" * 90] * 5, keys=[b"one"] * 5, timestamps=[START_MS + base] * 5)
    log.settle()
    start = log.local_start()
    erase(log, b"one")
    assert log.value("SELECT sum(records) FROM remote_segments") == 0
    log._appender.append("t", [b"y"], keys=[b"two"])
    assert [record[1] for record in consumed(log)] == [60]
    tier_restore.restore(log.dsn, "t")
    assert log.local_start() == 0 < start
    assert [record.offset for record in logstore.read("t", dsn=log.dsn)] == [60]
