"""Old records go, by time, by size, or because somebody says so; whole segments, and never one too many."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from logstore.workers import reclaim, retention, roll
from tests.support.clock import DAY_MS, HOUR_MS, Clock
from tests.support.sqllog import Connect, Session, append, refused, rows, value

SIZE = 128
"""Of a batch of one record of 100 bytes, as it is measured."""


@pytest.fixture
def clock(log_dsn: str) -> Iterator[Clock]:
    with Clock(log_dsn) as clock:
        yield clock


def create(session: Session, partitions: int = 1, name: str = "t", **configs: Any) -> int:
    named = {key.replace("_", "."): str(text) for key, text in configs.items()}
    created: int = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, json.dumps(named))
    return created


def write(session: Session, topic: int, clock: Clock, partition: int = 0, count: int = 1) -> None:
    for _ in range(count):
        append(session, topic, [b"x" * 100], partition, at=clock.now_ms)


def expire(dsn: str) -> retention.Retained:
    """Roll, then retention; what this came to."""
    roll.run_once(dsn)
    return retention.run_once(dsn)


def starts(session: Session) -> list[int]:
    return [
        start
        for (start,) in rows(session, "SELECT log_start FROM topic_partition ORDER BY topic_id, partition")
    ]


def segments(session: Session) -> list[int]:
    return [number for (number,) in rows(session, "SELECT segment FROM topic_segment ORDER BY segment")]


def tables(session: Session) -> list[str]:
    return [
        name
        for (name,) in rows(
            session, "SELECT relname FROM pg_class WHERE relname ~ '^b_' AND relkind = 'r' ORDER BY oid"
        )
    ]


def test_segments_go_when_their_newest_record_is_old_enough(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, segment_bytes=2 * SIZE, retention_ms=DAY_MS)
    for _ in range(3):
        write(session, topic, clock)
        clock.advance(HOUR_MS)
        write(session, topic, clock)
    clock.advance(DAY_MS - 2 * HOUR_MS + 1)  # the second segment has one old record, and one that is not
    came_to = expire(log_dsn)
    assert (came_to.topics, came_to.partitions, came_to.records, came_to.bytes) == (("t",), 1, 2, 2 * SIZE)
    assert (starts(session), segments(session)) == ([2], [1, 2, 3])
    assert came_to.segments == 1
    assert came_to.segment_bytes > 8192
    assert expire(log_dsn) == retention.Retained((), 0, 0, 0, 0, 0)
    assert [offset for (offset,) in rows(session, 'SELECT "offset" FROM records')] == [2, 3, 4, 5]


def test_what_nobody_writes_to_any_more_expires_too(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, 2, retention_ms=DAY_MS)
    write(session, topic, clock, count=3)
    clock.advance(DAY_MS)
    assert expire(log_dsn).records == 0
    clock.advance(1)
    assert expire(log_dsn).records == 3
    assert (starts(session), segments(session)) == ([3, 0], [1])
    assert append(session, topic, at=clock.now_ms)[0] == 3, "offsets go on"
    assert rows(session, "SELECT * FROM high_watermarks(%s, '{0}')", [topic]) == [(1, 3, 4)]


def test_one_partition_of_many_is_past_it(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, 3, retention_ms=DAY_MS)
    for partition in range(3):
        write(session, topic, clock, partition, 2)
    clock.advance(DAY_MS + 1)
    write(session, topic, clock, 1)
    expire(log_dsn)
    assert starts(session) == [2, 0, 2]
    clock.advance(DAY_MS + 1)
    expire(log_dsn)
    assert starts(session) == [2, 3, 2]


def test_the_oldest_segments_go_while_what_is_left_is_large_enough(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, 2, segment_bytes=2 * SIZE, retention_bytes=3 * SIZE, retention_ms=-1)
    write(session, topic, clock, count=6)
    write(session, topic, clock, partition=1)
    roll.run_once(log_dsn)
    assert [row[1:] for row in rows(session, "SELECT * FROM retention_parts(%s)", topic)] == [
        (0, 0, 1, 2, 2 * SIZE, clock.now_ms, False, "retention.bytes"),
        (1, 2, 3, 2, 2 * SIZE, clock.now_ms, False, None),
        (2, 4, 5, 2, 2 * SIZE, clock.now_ms, False, None),
        (3, 0, 0, 1, SIZE, clock.now_ms, True, None),
    ]
    expire(log_dsn)
    assert (starts(session), segments(session)) == ([2, 0], [1, 2, 3])
    write(session, topic, clock)
    expire(log_dsn)
    assert starts(session) == [4, 0], "with the one it writes to there is enough without the next as well"


@pytest.mark.parametrize("policy", ["", "compact"])
def test_nothing_goes_by_age_or_size_without_the_policy(
    session: Session, clock: Clock, log_dsn: str, policy: str
) -> None:
    topic = create(session, segment_bytes=SIZE, retention_ms=1, retention_bytes=0, cleanup_policy=policy)
    for _ in range(3):
        append(session, topic, [b"x" * 100], keys=[b"k"], at=clock.now_ms)
    clock.advance(1000 * DAY_MS)
    assert expire(log_dsn) == retention.Retained((), 0, 0, 0, 0, 0)
    assert starts(session) == [0]
    session.execute("SELECT delete_records('t', 0, 2)")
    assert expire(log_dsn).segments == 2, "what was deleted goes whatever the policy"
    assert tables(session)[-2:] == ["b_1_2", "b_1_3"]


def test_compacted_topics_expire_too_if_they_say_delete(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, segment_bytes=SIZE, retention_ms=DAY_MS, cleanup_policy="compact,delete")
    append(session, topic, [b"x" * 100], keys=[b"k"], at=clock.now_ms)
    clock.advance(DAY_MS + 1)
    assert expire(log_dsn).records == 1


def test_minus_one_is_for_ever(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, segment_bytes=SIZE, retention_ms=-1)
    write(session, topic, clock, count=3)
    clock.advance(1000 * DAY_MS)
    assert expire(log_dsn).records == 0


def test_deleted_records_give_their_space_back(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, 2, segment_bytes=2 * SIZE, retention_ms=-1)
    write(session, topic, clock, count=5)
    session.execute("SELECT delete_records('t', 0, 3)")
    expire(log_dsn)
    assert segments(session) == [1, 2], "the second segment has a record that stays"
    session.execute("SELECT delete_records('t', 0, -1)")
    came_to = expire(log_dsn)
    assert (came_to.records, came_to.segments) == (0, 2), "the one it wrote to as well"
    clock.advance(60_000)
    assert reclaim.run_once(log_dsn).segments == 3
    assert tables(session) == ["b_1_3"]
    assert value(session, "SELECT pg_total_relation_size('b_1_3')") < 50_000
    assert append(session, topic, at=clock.now_ms)[0] == 5


def test_after_a_large_table_commits_have_the_disk_for_a_while(
    session: Session, clock: Clock, log_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = create(session, segment_bytes=100, file_delete_delay_ms=0)
    rests: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0)
            return False

    for large, rested in ((1 << 30, 0), (1, 3)):
        monkeypatch.setattr(reclaim, "LARGE", large)
        write(session, topic, clock, count=3)
        session.execute("SELECT delete_records('t', 0, -1)")
        expire(log_dsn)
        came_to = reclaim.run_once(log_dsn, stop=Stop())
        assert (came_to.segments, len(rests), came_to.rested_s) == (3, rested, sum(rests))
        assert all(0 < rest <= reclaim.LONGEST_REST_S for rest in rests)


def test_tables_stay_for_a_while_for_those_who_read_them(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, segment_bytes=SIZE, retention_ms=DAY_MS, file_delete_delay_ms=5000)
    write(session, topic, clock)
    clock.advance(DAY_MS + 1)
    expire(log_dsn)
    assert reclaim.run_once(log_dsn) == reclaim.Reclaimed((), ())
    assert value(session, "SELECT count(*) FROM pg_inherits WHERE inhrelid = 'b_1_0'::regclass") == 0
    assert value(session, "SELECT count(*) FROM b_1_0") == 1
    clock.advance(5000)
    came_to = reclaim.run_once(log_dsn)
    assert (came_to.segments, came_to.bytes > 0) == (1, True)
    assert tables(session) == ["b_1_1"]


def test_a_reader_in_the_dropped_part_is_told_where_the_log_starts(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, segment_bytes=2 * SIZE, retention_ms=DAY_MS)
    write(session, topic, clock, count=4)
    clock.advance(DAY_MS + 1)
    write(session, topic, clock)
    expire(log_dsn)
    clock.advance(60_000)
    reclaim.run_once(log_dsn)
    fetch = "SELECT log_start, high_watermark, base_offset FROM \"fetch\"(%s, '{0}', %s, 1000000, 1000000)"
    for offset in (0, 3):
        assert rows(session, fetch, [topic], [offset]) == [(4, 5, None)]
    assert rows(session, fetch, [topic], [4]) == [(4, 5, None), (None, None, 4)]
    assert rows(session, "SELECT \"offset\" FROM list_offsets(%s, '{0}', '{-2}')", [topic]) == [(4,)]
    assert rows(session, "SELECT \"offset\" FROM list_offsets(%s, '{0}', '{0}')", [topic]) == [(4,)]


def test_partitions_are_taken_along_when_a_segment_is_old(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, 4, segment_ms=HOUR_MS)
    write(session, topic, clock)
    write(session, topic, clock, 2)
    clock.advance(HOUR_MS)
    assert roll.run_once(log_dsn) == roll.Rolled(("t",), 4)
    assert rows(session, "SELECT segment, segment_start FROM topic_partition ORDER BY partition") == [
        (1, 1),
        (1, 0),
        (1, 1),
        (1, 0),
    ]
    assert roll.run_once(log_dsn) == roll.Rolled((), 0)
    clock.advance(5 * HOUR_MS)
    assert roll.run_once(log_dsn) == roll.Rolled((), 0), "a segment without records is not old"
    write(session, topic, clock)
    clock.advance(HOUR_MS - 1)
    assert roll.run_once(log_dsn).topics == ()
    clock.advance(1)
    assert roll.run_once(log_dsn).topics == ("t",)


def test_rolling_waits_less_by_the_jitter(session: Session, clock: Clock, log_dsn: str) -> None:
    for number in range(20):
        topic = create(session, name=f"t{number}", segment_ms=DAY_MS, segment_jitter_ms=DAY_MS // 2)
        write(session, topic, clock)
    clock.advance(DAY_MS // 2 - 1)
    assert roll.run_once(log_dsn).topics == ()
    clock.advance(DAY_MS // 4)
    some = len(roll.run_once(log_dsn).topics)
    assert 0 < some < 20
    clock.advance(DAY_MS // 4 + 1)
    assert len(roll.run_once(log_dsn).topics) == 20 - some


def test_a_partition_that_somebody_has_locked_is_for_the_next_run(
    connect: Any, session: Session, clock: Clock, log_dsn: str
) -> None:
    topic = create(session, 2, segment_bytes=SIZE, retention_ms=DAY_MS)
    write(session, topic, clock, 0, 2)
    write(session, topic, clock, 1, 2)
    clock.advance(DAY_MS + 1)
    slow = connect()
    slow.execute("BEGIN")
    append(slow, topic, partition=0, at=clock.now_ms)
    assert expire(log_dsn).records == 2
    assert starts(session) == [0, 2]
    slow.execute("COMMIT")
    assert expire(log_dsn).records == 2
    assert starts(session) == [2, 2]


def test_however_little_time_there_is_it_comes_to_an_end(session: Session, clock: Clock) -> None:
    topic = create(session, 5, segment_bytes=SIZE, retention_ms=DAY_MS)
    for partition in range(5):
        write(session, topic, clock, partition)
    clock.advance(DAY_MS + 1)
    query = "SELECT partitions, records, more FROM apply_retention(%s, budget_ms => 0)"
    found = [rows(session, query, topic)[0] for _ in range(6)]
    assert sum(partitions for partitions, _, _ in found) == 5
    assert [more for _, _, more in found][-1] is False
    assert starts(session) == [1] * 5


def test_what_is_appended_meanwhile_stays(session: Session, clock: Clock, log_dsn: str) -> None:
    """Between the look and the lock."""
    topic = create(session, retention_ms=DAY_MS)
    write(session, topic, clock, count=2)
    clock.advance(DAY_MS + 1)
    assert value(session, "SELECT more FROM apply_retention(%s)", topic), "the next segment first"
    write(session, topic, clock)
    assert rows(session, "SELECT segment, segment_start FROM topic_partition") == [(1, 2)]
    expire(log_dsn)
    assert starts(session) == [2]


def test_a_slow_partition_does_not_keep_what_a_fast_one_has_lost(
    session: Session, clock: Clock, log_dsn: str
) -> None:
    """The fast one loses records by size; the slow one never has so many, and has one in every segment."""
    topic = create(
        session, 2, segment_bytes=4 * SIZE, retention_bytes=40 * SIZE, retention_ms=-1, file_delete_delay_ms=0
    )
    for _ in range(30):
        write(session, topic, clock, 0, 4)
        write(session, topic, clock, 1)
    for _ in range(6):
        expire(log_dsn)
    reclaim.run_once(log_dsn)
    assert starts(session) == [80, 0]
    assert value(session, "SELECT count(*) FROM records WHERE partition = 1") == 30
    assert value(session, "SELECT count(*) FROM records WHERE partition = 0") == 40
    assert value(session, "SELECT sum(size_bytes) FROM batches") < 1.1 * (30 + 40) * SIZE
    assert len(segments(session)) == len(tables(session)) <= 16
    fetch = "SELECT base_offset, last_offset FROM \"fetch\"(%s, '{1}', %s, 100000, 100000)"
    position = 0
    while position < 30:
        found = rows(session, fetch, [topic], [position])[1:]
        assert found[0][0] <= position
        assert [low for low, _ in found[1:]] == [high + 1 for _, high in found[:-1]]
        position = found[-1][1] + 1


def test_nothing_is_written_anew_for_a_partition_that_is_only_busy(
    session: Session, connect: Connect, clock: Clock, log_dsn: str
) -> None:
    """Its start moves in the next run, and then the same segments are dropped as they are."""
    topic = create(session, 2, segment_bytes=4 * SIZE, retention_ms=DAY_MS, file_delete_delay_ms=0)
    for _ in range(10):
        write(session, topic, clock, 0, 4)
        write(session, topic, clock, 1)
    clock.advance(DAY_MS + 1)
    write(session, topic, clock, 0)
    write(session, topic, clock, 1)
    busy = connect()
    busy.execute("BEGIN")
    append(busy, topic, [b"x"], 1, at=clock.now_ms)
    came_to = expire(log_dsn)
    assert starts(session) == [40, 0]
    assert (came_to.partitions, came_to.evacuations) == (1, 0)
    busy.execute("COMMIT")
    came_to = expire(log_dsn)
    assert starts(session) == [40, 9], "its last old record is in a segment with its new one"
    assert came_to.evacuations == 0
    assert len(segments(session)) <= 2


def test_a_slow_partition_expires_as_soon_as_a_fast_one(session: Session, clock: Clock, log_dsn: str) -> None:
    topic = create(session, 2, segment_bytes=4 * SIZE, retention_ms=DAY_MS)
    write(session, topic, clock, 1)
    clock.advance(DAY_MS + 1)
    write(session, topic, clock, 0, 3)
    expire(log_dsn)
    assert starts(session) == [0, 1], "the slow one's is gone, the fast one's in the same segment are not"
    assert value(session, "SELECT count(*) FROM records") == 3


def test_small_neighbours_become_one(session: Session, clock: Clock, log_dsn: str) -> None:
    """Unless records would expire later by that than segment.ms lets them."""
    topic = create(session, 1, segment_bytes=100 * SIZE, segment_ms=HOUR_MS, retention_ms=DAY_MS)
    for _ in range(20):
        write(session, topic, clock)
        clock.advance(HOUR_MS)
        roll.run_once(log_dsn)
    expire(log_dsn)
    assert len(segments(session)) == 21
    session.execute("SELECT alter_topic('t', '{\"segment.ms\": 86400000}')")
    expire(log_dsn)
    assert len(segments(session)) == 2
    assert value(session, "SELECT count(*) FROM records") == 20
    assert rows(session, "SELECT min(first_offset), max(last_offset), count(*) FROM sealed_segment") == [
        (0, 19, 1)
    ]


def test_a_negative_or_contradictory_policy_is_refused(session: Session) -> None:
    make = "SELECT create_topic('bad', 1, %s)"
    for configs in (
        {"retention.ms": "-2"},
        {"retention.bytes": "-5"},
        {"segment.bytes": "-1"},
        {"segment.ms": "0"},
        {"file.delete.delay.ms": "-1"},
        {"cleanup.policy": "delete,forget"},
        {"segment.ms": "1000", "segment.jitter.ms": "1001"},
        {"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "9"},
    ):
        error = refused(session, make, json.dumps(configs))
        assert error.sqlstate == "LS004"
        assert any(name in str(error) for name in configs)
    create(session, segment_ms=1000)
    assert refused(session, "SELECT alter_topic('t', '{\"segment.jitter.ms\": 2000}')").sqlstate == "LS004"


def test_what_may_not_have_been_meant_is_said(session: Session) -> None:
    def warned(**configs: str) -> list[str]:
        named = {name.replace("_", "."): text for name, text in configs.items()}
        return [
            name for (name,) in rows(session, "SELECT config FROM config_warnings(%s)", json.dumps(named))
        ]

    assert warned() == []
    assert warned(retention_bytes="1000") == ["retention.bytes"]
    assert warned(retention_ms="1000", file_delete_delay_ms="99000") == [
        "file.delete.delay.ms",
        "retention.ms",
    ]
    assert warned(cleanup_policy="compact", retention_ms="1000") == ["retention.ms"]
    assert warned(cleanup_policy="", delete_retention_ms="1") == ["delete.retention.ms"]
    assert warned(segment_bytes="1000") == ["segment.bytes"]
