"""fetch(): what it brings, what it costs, and in which order."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.support.servers import Server
from tests.support.sqllog import Session, append, rows, value

pytestmark = pytest.mark.every_server

Row = tuple[int, int | None, int | None, int | None, int | None]
MUCH = 50_000_000


def create(session: Session, partitions: int = 1, name: str = "t", **configs: Any) -> int:
    named = {key.replace("_", "."): text for key, text in configs.items()}
    created: int = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, json.dumps(named))
    return created


def fetch(
    session: Session, *wanted: tuple[int, int, int], max_bytes: int = MUCH, max_partition_bytes: int = MUCH
) -> list[Row]:
    return rows(
        session,
        'SELECT idx, log_start, high_watermark, base_offset, last_offset FROM "fetch"(%s, %s, %s, %s, %s)',
        [topic for topic, _, _ in wanted],
        [partition for _, partition, _ in wanted],
        [offset for _, _, offset in wanted],
        max_bytes,
        max_partition_bytes,
    )


def batch(idx: int, first: int, last: int | None = None) -> Row:
    return idx, None, None, first, first if last is None else last


def state(idx: int, start: int | None, end: int | None) -> Row:
    return idx, start, end, None, None


def test_whole_batches_from_the_one_that_holds_the_offset(session: Session) -> None:
    topic = create(session)
    for _ in range(3):
        append(session, topic, 10)
    assert fetch(session, (topic, 0, 0)) == [
        state(1, 0, 30),
        batch(1, 0, 9),
        batch(1, 10, 19),
        batch(1, 20, 29),
    ]
    assert fetch(session, (topic, 0, 15)) == [state(1, 0, 30), batch(1, 10, 19), batch(1, 20, 29)]
    assert fetch(session, (topic, 0, 29)) == [state(1, 0, 30), batch(1, 20, 29)]


def test_out_of_range_brings_the_range(session: Session) -> None:
    topic = create(session)
    assert fetch(session, (topic, 0, 0)) == [state(1, 0, 0)]
    for _ in range(3):
        append(session, topic, 10)
    session.execute("SELECT delete_records('t', 0, 15)")
    for offset in (-1, 0, 14, 30, 31, 2**62):
        assert fetch(session, (topic, 0, offset)) == [state(1, 15, 30)]
    assert fetch(session, (topic, 0, 15)) == [state(1, 15, 30), batch(1, 10, 19), batch(1, 20, 29)]


def test_what_does_not_exist_is_said_in_its_place(session: Session) -> None:
    topic = create(session)
    append(session, topic)
    assert fetch(session, (topic, 1, 0), (topic, 0, 0), (99, 0, 0)) == [
        state(1, None, None),
        state(2, 0, 1),
        batch(2, 0),
        state(3, None, None),
    ]
    assert fetch(session) == []


def test_limits_keep_batches_whole(session: Session) -> None:
    topic = create(session, 2)
    for partition in (0, 1):
        for _ in range(4):
            append(session, topic, [b"x" * 1000], partition)
    size = value(session, "SELECT DISTINCT size_bytes FROM batches")
    both = ((topic, 1, 0), (topic, 0, 0))

    def counts(**limits: int) -> list[int]:
        got = [idx for idx, *_, base, _ in fetch(session, *both, **limits) if base is not None]
        return [got.count(1), got.count(2)]

    assert counts(max_partition_bytes=3 * size) == [3, 3]
    assert counts(max_partition_bytes=3 * size - 1) == [2, 2]
    assert counts(max_partition_bytes=1) == [1, 1], "the first of a partition always"
    assert counts(max_bytes=5 * size) == [4, 1], "in the order of the arrays"
    assert counts(max_bytes=5 * size - 1) == [4, 0]
    assert counts(max_bytes=3 * size, max_partition_bytes=2 * size) == [2, 1]
    assert counts(max_bytes=1) == [1, 0], "the first of all always"
    assert counts(max_bytes=0) == [1, 0]


def test_older_segments_come_one_at_a_time(session: Session) -> None:
    topic = create(session, 2, segment_bytes=60)
    for number in range(6):
        append(session, topic, [b"%02d" % number])
    assert value(session, "SELECT active_segment FROM topic") == 3
    assert fetch(session, (topic, 0, 0)) == [state(1, 0, 6), batch(1, 0), batch(1, 1)]
    assert fetch(session, (topic, 0, 3)) == [state(1, 0, 6), batch(1, 3)]
    assert fetch(session, (topic, 1, 0), (topic, 0, 2)) == [
        state(1, 0, 0),
        state(2, 0, 6),
        batch(2, 2),
        batch(2, 3),
    ]
    offset, seen = 0, 0
    while got := [row for row in fetch(session, (topic, 0, offset)) if row[3] is not None]:
        seen += len(got)
        offset = (got[-1][4] or 0) + 1
    assert seen == 6


@pytest.mark.parametrize("partitions", [12, 13, 40])
def test_many_partitions_answer_like_one(session: Session, partitions: int) -> None:
    topic, other = create(session, partitions, segment_bytes=100), create(session, 1, "other")
    for partition in range(0, partitions, 2):
        for _ in range(1 + partition % 5):
            append(session, topic, [b"x" * 40], partition)
    append(session, other)
    wanted = [(topic, partition, 0) for partition in range(partitions)] + [(topic, 999, 0), (other, 0, 0)]
    alone = [[(idx, *rest[1:]) for rest in fetch(session, one)] for idx, one in enumerate(wanted, 1)]
    assert fetch(session, *wanted) == [row for answer in alone for row in answer]
    marks = rows(
        session,
        "SELECT log_start, high_watermark FROM high_watermarks(%s, %s)",
        [topic for topic, _, _ in wanted],
        [partition for _, partition, _ in wanted],
    )
    assert marks == [answer[0][1:3] for answer in alone]


def test_all_that_a_batch_has(session: Session) -> None:
    topic = create(session)
    append(session, topic, [b"v", None], keys=[None, b""], timestamps=[7, 5], headers=[(2, "h", None)])
    assert rows(
        session,
        """SELECT record_count, leader_epoch, timestamp_type, max_timestamp, timestamps, keys, "values",
                  header_records, header_keys, header_values, offset_deltas
           FROM "fetch"(%s, '{0}', '{0}', 99, 99) WHERE base_offset IS NOT NULL""",
        [topic],
    ) == [(2, 0, 0, 7, [7, 5], [None, b""], [b"v", None], [2], ["h"], [None], None)]


def test_its_plans_read_the_leaf_by_its_index(session: Session, release: Server, log_dsn: str) -> None:
    """Also while the server knows nothing of a leaf just filled, as well as after ANALYZE."""
    if release.superuser_dsn is None:
        pytest.skip("reading the plans inside a function needs a superuser")
    first, second = create(session, 2), create(session, 2, "u")
    session.execute(
        # To the planner, reading all of a partition may look cheaper by a scan and a sort.
        "SELECT count(append(t, i %% 2, 1, 1000 + i, null, null, '{v}', null, null, null, 1::int2))"
        " FROM generate_series(1, 2000) i, (VALUES (%s), (%s)) u (t)",
        (first, second),
    )
    plans: list[str] = []
    with psycopg.connect(release.as_superuser(log_dsn), autocommit=True) as watcher:
        watcher.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        for setting in (
            "log_min_duration = 0",
            "log_nested_statements = on",
            "log_analyze = on",
            "log_timing = off",
        ):
            watcher.execute("LOAD 'auto_explain'")
            watcher.execute(f"SET auto_explain.{setting}")
        watcher.execute("SET search_path = logstore")
        watcher.execute("SET client_min_messages = log")
        for _ in range(2):
            plans.clear()
            assert len(fetch(watcher, (first, 0, 0), max_partition_bytes=1)) == 2
            of_leaves = [plan for plan in plans if " on b_" in plan]
            assert len(of_leaves) == 2, "one for the end, one for the batches"
            assert not any(f"b_{second}_" in plan for plan in plans), "no other leaf"
            assert not any(
                "Seq Scan on b_" in plan or "Sort" in plan.replace("Sort Key", "") for plan in of_leaves
            )
            assert all(f"using b_{first}_0_offset" in plan for plan in of_leaves)
            session.execute("ANALYZE")
