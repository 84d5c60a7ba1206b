"""What is in files only does not stay in PostgreSQL because of a slow partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import logstore
from logstore.workers import reclaim, retention, roll, tier_restore
from tests.support import audit
from tests.support.tiered import TieredLog, shape


def everything(log: TieredLog) -> list[Any]:
    return [shape(record) for record in logstore.read("t", dsn=log.dsn)]


def local(log: TieredLog) -> list[tuple[Any, ...]]:
    return log.rows('SELECT partition, "offset", key, value FROM records ORDER BY 1, 2')


def as_rows(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(record[0], record[1], record[3], record[4]) for record in records]


def lopsided(make_log: Callable[..., TieredLog]) -> TieredLog:
    """Partition 1 has a few records in each segment, which stay; most of partition 0 is in files only."""
    log = make_log(
        partitions=2, local_retention_ms="-2", local_retention_bytes="6000", file_delete_delay_ms="0"
    )
    for _ in range(16):
        log.fill(3, only=0).fill(1, only=1)
    roll.run_once(log.dsn)
    log.settle()
    return log


def parts(log: TieredLog) -> list[tuple[Any, ...]]:
    """What each segment has of each partition, as far as it is not in files only."""
    return log.rows(
        "SELECT z.partition, z.first_offset, z.last_offset FROM sealed_segment z"
        " JOIN topic_partition p USING (topic_id, partition) WHERE z.last_offset >= p.local_start"
        " ORDER BY z.partition, z.last_offset"
    )


def in_postgresql(log: TieredLog) -> int:
    size: int = log.value("SELECT sum(size_bytes)::int8 FROM batches WHERE topic_id = %s", log.topic_id)
    return size


def test_a_slow_partition_keeps_no_others_that_are_in_files(make_log: Callable[..., TieredLog]) -> None:
    log = lopsided(make_log)
    before, files = in_postgresql(log), log.value("SELECT count(*) FROM remote_segments")
    assert log.local_start(0) > log.local_start(1) == 0
    there = parts(log)
    assert retention.run_once(log.dsn).evacuations == 1
    reclaim.run_once(log.dsn)
    assert in_postgresql(log) < 0.8 * before
    assert everything(log) == log.everything()
    assert parts(log) == there, "they leave PostgreSQL with the file that has them, as ever"
    assert log.settle().files == 0, "what is written anew is no other than before"
    assert log.value("SELECT count(*) FROM remote_segments") == files
    assert retention.run_once(log.dsn).evacuations == 0
    tier_restore.restore(log.dsn, "t")
    assert local(log) == as_rows(log.everything())
    assert audit.faults(log.dsn) == []


def test_what_comes_back_while_it_is_being_left_out(make_log: Callable[..., TieredLog]) -> None:
    """PostgreSQL still has it when it is asked for, and must not lose it in the next moment."""
    log = lopsided(make_log)
    assert log.value("SELECT start_evacuation(%s)", log.topic_id)
    while log.value("SELECT phase FROM rewrite") != "swap":
        log.value("SELECT phase FROM rewrite_step(%s)", log.topic_id)
    segments = log.value("SELECT count(*) FROM topic_segment")
    tier_restore.restore(log.dsn, "t")
    assert log.value("SELECT count(*) FROM topic_segment") == segments, "it was there still"
    assert log.local_start(0) == 0
    retention.run_once(log.dsn)
    assert log.value("SELECT count(*) FROM rewrite") == 0
    reclaim.run_once(log.dsn)
    assert local(log) == as_rows(log.everything())
    assert audit.faults(log.dsn) == []
