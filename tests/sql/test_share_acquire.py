"""Acquiring: who gets which records, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from logstore.errors import InvalidArgumentError, InvalidGroupError, UnknownTopicOrPartitionError
from logstore.share import RELEASE
from tests.support.appender import Appender, values
from tests.support.share import Queue, Row


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database) as made:
        yield made


def test_each_record_goes_to_one_member_in_order(queue: Queue) -> None:
    queue.append("t", values(5))
    queue.append("t", values(20))
    assert queue.take("a", 4) == [(offset, 1) for offset in range(4)]
    assert queue.offsets("b", 10) == list(range(4, 14))
    assert queue.offsets("a") == list(range(14, 25))
    assert queue.offsets("c") == []


def test_a_batch_of_records_is_one_row_and_a_finished_one_none(queue: Queue) -> None:
    queue.append("t", values(30))
    queue.append("t", values(30))
    queue.offsets("a", 50)
    assert queue.rows() == [Row(0, 49, "a", 1)]
    queue.acknowledge("a", 0, 49)
    assert queue.rows() == []
    assert queue.start() == 50


def test_start_advances_over_the_finished_prefix_only(queue: Queue) -> None:
    queue.append("t", values(10))
    queue.offsets("a")
    queue.acknowledge("a", 3, 5)
    assert queue.start() == 0
    queue.acknowledge("a", 0, 1)
    assert queue.start() == 2
    queue.acknowledge("a", 2)
    assert queue.start() == 6
    queue.acknowledge("a", 6, 9)
    assert queue.start() == 10


def test_records_come_again_when_their_lock_runs_out(queue: Queue) -> None:
    queue.append("t", values(10))
    queue.offsets("a", 6)
    queue.pass_time(29)
    assert queue.offsets("b") == [6, 7, 8, 9]
    queue.pass_time(1.1)
    assert queue.take("c", 4) == [(0, 2), (1, 2), (2, 2), (3, 2)]
    assert queue.take("c") == [(4, 2), (5, 2)]
    assert queue.rows() == [Row(0, 3, "c", 2), Row(4, 5, "c", 2), Row(6, 9, "b", 1)]


def test_older_deliveries_come_before_new_records(queue: Queue) -> None:
    queue.append("t", values(10))
    queue.offsets("a", 4)
    queue.acknowledge("a", 1, 2, RELEASE)
    assert queue.take("b", 5) == [(1, 2), (2, 2), (4, 1), (5, 1), (6, 1)]


def test_no_more_records_are_in_flight_than_the_limit(queue: Queue) -> None:
    queue.alter(share_partition_max_record_locks="7")
    queue.append("t", values(20))
    assert queue.offsets("a", 5) == [0, 1, 2, 3, 4]
    assert queue.offsets("b") == [5, 6]
    assert queue.offsets("c") == []
    queue.acknowledge("a", 1, 3)
    assert queue.offsets("c") == [7, 8, 9]


def test_a_group_begins_where_its_config_says(queue: Queue) -> None:
    queue.append("t", values(3), timestamps=[1_000_000_000_000] * 3)
    queue.append("t", values(4))
    for group, reset, expected in (
        ("new", "latest", []),
        ("old", "earliest", list(range(7))),
        ("hour", "by_duration:PT1H", [3, 4, 5, 6]),
    ):
        queue.group = group
        queue.alter(share_auto_offset_reset=reset)
        assert queue.offsets("a") == expected
    queue.group = "new"
    queue.append("t", [b"x"])
    assert queue.offsets("a") == [7]


def test_a_partition_that_is_added_later_begins_at_its_start(queue: Queue) -> None:
    queue.alter(share_auto_offset_reset="latest")
    assert queue.offsets("a") == []
    queue.connection.run(queue.calls.add_partitions("t", 3))
    queue.append("t", values(4), 2)
    assert queue.take("a") == [(offset, 1) for offset in range(4)]


def test_members_share_many_partitions_and_topics(database: str) -> None:
    with Queue(database, 4) as queue:
        queue.create("u", 2)
        for partition in range(4):
            queue.append("t", values(10), partition)
        for partition in range(2):
            queue.append("u", values(10), partition)
        got = [
            (each.topic_id, each.partition, offset)
            for _ in range(10)
            for each in queue.ask("a", 6, "t", "u").ranges
            for offset in range(each.first_offset, each.last_offset + 1)
        ]
        assert len(got) == len(set(got)) == 60


def test_what_is_not_committed_is_not_handed_out(queue: Queue, database: str) -> None:
    queue.append("t", values(2))
    with queue.transaction():
        queue.append("t", values(2), wake=False)
        with Appender(database) as other:
            answer = other.connection.run(queue.share.acquire("g", "a", ("t",), 10))
            assert [(each.first_offset, each.last_offset) for each in answer.ranges] == [(0, 1)]
    assert queue.offsets("a") == [2, 3]


def test_retention_takes_records_from_the_group_as_well(queue: Queue) -> None:
    queue.append("t", values(20))
    queue.offsets("a", 4)
    queue.offsets("b", 4)
    queue.acknowledge("a", 0, 3, RELEASE)
    queue.acknowledge("b", 6, 7, RELEASE, delay_ms=60_000)
    queue.connection.run(queue.calls.delete_records("t", 0, 10))
    assert queue.offsets("c", 3) == [10, 11, 12]
    # What a member has acquired stays its own until it is acknowledged or the lock runs out.
    assert queue.rows() == [Row(4, 5, "b", 1), Row(10, 12, "c", 1)]
    queue.pass_time(61)
    assert queue.take("d") == [(10, 2), (11, 2), (12, 2), *((offset, 1) for offset in range(13, 20))]
    assert queue.rows() == [Row(10, 12, "d", 2), Row(13, 19, "d", 1)]
    assert queue.delayed() == []


def test_a_range_that_reaches_below_the_log_start_is_cut(queue: Queue) -> None:
    queue.append("t", values(10))
    queue.offsets("a", 8)
    queue.acknowledge("a", 0, 7, RELEASE)
    queue.connection.run(queue.calls.delete_records("t", 0, 5))
    assert queue.take("b", 5) == [(5, 2), (6, 2), (7, 2), (8, 1), (9, 1)]
    assert queue.rows() == [Row(5, 7, "b", 2), Row(8, 9, "b", 1)]


def test_holes_that_compaction_leaves_are_never_handed_out(queue: Queue) -> None:
    for _ in range(4):
        queue.append("t", values(10))
    # The second batch keeps records 11, 12 and 17; the third one is gone altogether.
    queue.raw.execute(
        """update batches set offset_deltas = '{1,2,7}', record_count = 3, "values" = "values"[1:3]
           where base_offset = 10"""
    )
    queue.raw.execute("delete from batches where base_offset = 20")
    assert queue.offsets("a", 11) == [*range(10), 11]
    assert queue.offsets("b", 4) == [12, 17, 30, 31]
    assert [row[:3] for row in queue.rows()] == [
        (0, 9, "a"),
        (11, 11, "a"),
        (12, 12, "b"),
        (17, 17, "b"),
        (30, 31, "b"),
    ]


def test_an_acquirer_passes_over_what_others_are_acquiring(queue: Queue, database: str) -> None:
    queue.append("t", values(10))
    queue.offsets("x", 6)
    for offset in (0, 2, 4):
        queue.acknowledge("x", offset, kind=RELEASE)
    with closing(psycopg.connect(database)) as slow:
        slow.execute("set lock_timeout = '1min'")
        assert slow.execute(
            "select first_offset from logstore.acquire('g', 'slow', '{t}', 1)"
        ).fetchall() == [(0,)]
        # Not committed yet: record 0 is locked, the rest is free.
        assert queue.offsets("fast", 2) == [2, 4]
        assert queue.offsets("fast", 2) == [6, 7]
        slow.rollback()
    assert queue.offsets("fast") == [0, 8, 9]


def test_an_acquirer_without_anything_else_queues_up_for_the_window(queue: Queue, database: str) -> None:
    queue.append("t", values(10))
    queue.offsets("x", 1)
    with (
        closing(psycopg.connect(database)) as first,
        closing(psycopg.connect(database, autocommit=True)) as second,
    ):
        first.execute("select from logstore.acquire('g', 'first', '{t}', 4)")
        got: list[tuple[int, int]] = []
        query = "select first_offset, last_offset from logstore.acquire('g', 'second', '{t}', 4)"
        waiter = threading.Thread(target=lambda: got.extend(second.execute(query).fetchall()))
        waiter.start()
        queue.until_it_waits(second.info.backend_pid)
        first.commit()
        waiter.join()
        assert got == [(5, 8)]


def test_acquiring_says_when_something_will_be_due(queue: Queue) -> None:
    assert queue.ask("a").wait_ms is None
    queue.append("t", values(2))
    queue.offsets("a", 1)
    queue.acknowledge("a", 0, kind=RELEASE, delay_ms=20_000)
    queue.offsets("a", 1)
    answer = queue.ask("b")
    assert answer.ranges == []
    assert answer.lock_ms == 30_000
    assert answer.wait_ms is not None
    assert 5_000 < answer.wait_ms <= 20_000, "before the lock of the other one runs out"


@pytest.mark.parametrize(
    ("member", "topics", "count"), [("", ("t",), 1), ("a", (), 1), ("a", ("t",), 0), ("a", ("t",), 100_001)]
)
def test_nonsense_is_refused(queue: Queue, member: str, topics: tuple[str, ...], count: int) -> None:
    with pytest.raises(InvalidArgumentError):
        queue.connection.run(queue.share.acquire("g", member, topics, count))


def test_a_topic_that_does_not_exist_is_named(queue: Queue) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="nowhere"):
        queue.take("a", 1, "nowhere")


def test_a_name_that_is_no_group_is_refused(queue: Queue) -> None:
    for name in ("", "x" * 256, "a\nb"):
        queue.group = name
        with pytest.raises(InvalidGroupError):
            queue.take("a")


def test_a_consumer_group_is_not_a_share_group(queue: Queue) -> None:
    queue.raw.execute("insert into log_group (name, kind) values ('c', 'consumer')")
    queue.group = "c"
    with pytest.raises(InvalidGroupError, match="consumer"):
        queue.take("a")


def test_an_old_snapshot_is_refused(queue: Queue) -> None:
    with (
        queue.raw.transaction(),
        pytest.raises(psycopg.DatabaseError, match="READ COMMITTED"),
    ):
        queue.raw.execute("set transaction isolation level repeatable read")
        queue.raw.execute("select from acquire('g', 'a', '{t}')")


def test_a_deleted_topic_leaves_nothing_behind(queue: Queue) -> None:
    queue.append("t", values(4))
    queue.offsets("a")
    queue.acknowledge("a", 1, kind=RELEASE, delay_ms=1000)
    queue.connection.run(queue.calls.delete_topic("t"))
    assert queue.one("select count(*) from share_groups") == 0
    queue.create("u")
    queue.take("a", 1, "u")
    left = """select (select count(*) from share_flight) + (select count(*) from share_delay)
                     + (select count(*) from share_window) + (select count(*) from share_partition)"""
    assert queue.one(left) == 2  # of the topic that is there
