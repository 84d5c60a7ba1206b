"""Segments are dropped beside appends, reads and transactions that stay open, and by several at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from logstore.workers import reclaim, retention, roll
from logstore.workers.connections import Limits, opened
from tests.support.sqllog import Connect, Session, append, refused, rows, value, wait_until, waits_for_lock

pytestmark = pytest.mark.every_server

CONFIGS = {"segment.bytes": "100", "retention.ms": "-1", "file.delete.delay.ms": "0"}
LEAVES = "SELECT count(*) FROM pg_class WHERE relname ~ '^b_[0-9]+_' AND relkind = 'r'"


def create(session: Session, name: str = "t", partitions: int = 1) -> int:
    created: int = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, json.dumps(CONFIGS))
    return created


def fill(session: Session, topic: int, count: int = 3) -> None:
    """A segment with each of ``count`` records, and one more in the active segment."""
    for _ in range(count):
        append(session, topic, [b"x" * 100])
    append(session, topic, [b"x"])


def drop(session: Session, dsn: str, before: int, name: str = "t") -> None:
    """Take segments out of the catalog; their tables are still there."""
    session.execute("SELECT delete_records(%s, 0, %s)", (name, before))
    retention.run_once(dsn)


@contextmanager
def waiting(session: Session, worker: Session, statement: str) -> Iterator[Callable[[], bool]]:
    """``statement`` waits for a lock meanwhile; whether it still does."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(refused, worker, statement)
        wait_until(lambda: waits_for_lock(session, worker))
        yield lambda: bool(waits_for_lock(session, worker))
        session.execute("SELECT pg_cancel_backend(%s)", (worker.info.backend_pid,))


def test_appends_that_roll_wait_for_no_detach(connect: Connect, session: Session, log_dsn: str) -> None:
    topic = create(session)
    fill(session, topic)
    reader, worker, hurried = connect(), connect(), connect(lock_timeout="20ms")
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(reader, "SELECT count(*) FROM records")
    drop(session, log_dsn, 3)
    for action in ("detach", "finalize"):
        ((_, _, _, found, statement),) = rows(session, "SELECT * FROM next_drop()")
        assert found == action
        with waiting(session, worker, statement) as still:
            for _ in range(4):
                append(hurried, topic, [b"y" * 100])
            assert value(hurried, "SELECT count(*) FROM read('t')") >= 5
            assert still()
    active = value(session, "SELECT active_segment FROM topic")
    assert active >= 7, "beside a detach segments are made as ever"
    append(hurried, topic, [b"y" * 100])
    assert value(session, "SELECT active_segment FROM topic") > active, "and once it is over"
    assert value(reader, "SELECT count(*) FROM records") == 4, "it sees what it saw"
    reader.execute("COMMIT")
    assert reclaim.run_once(log_dsn).segments == 3


def test_all_are_detached_before_one_is_dropped(session: Session, log_dsn: str) -> None:
    """What readers and appends could notice is over before the disk is busy with files."""
    topic = create(session)
    fill(session, topic, 3)
    drop(session, log_dsn, 3)
    actions = []
    while found := rows(session, "SELECT action, statement FROM next_drop()"):
        ((action, statement),) = found
        actions.append(action)
        session.execute(statement)
    assert actions == ["detach"] * 3 + ["drop"] * 3
    append(session, topic)


def test_what_somebody_else_changes_is_for_the_next_run(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    topic = create(session)
    fill(session, topic, 3)
    session.execute("SELECT delete_records('t', 0, 3)")
    other = connect()
    with other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(lock_class('guard'), %s)", (topic,))
        came_to = retention.run_once(log_dsn)
        assert (came_to.segments, came_to.evacuations) == (0, 0)
    assert retention.run_once(log_dsn).segments == 3


def test_a_leaf_written_anew_takes_its_place_when_nobody_changes_the_topic(
    connect: Connect, session: Session
) -> None:
    topic = create(session, partitions=2)
    for _ in range(3):
        append(session, topic, [b"x" * 100])
        append(session, topic, [b"x"], 1)
    append(session, topic, [b"x" * 100])
    append(session, topic, [b"x" * 100], 1)
    session.execute("SELECT delete_records('t', 0, 3)")
    assert value(session, "SELECT start_rewrite(%s, 'evacuate', '{1}')", topic)
    while value(session, "SELECT phase FROM rewrite") != "swap":
        value(session, "SELECT phase FROM rewrite_step(%s)", topic)
    live = "SELECT array_agg(segment ORDER BY place) FROM topic_segment WHERE live"
    before, other = value(session, live), connect()
    with other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(lock_class('guard'), %s)", (topic,))
        assert value(session, "SELECT phase FROM rewrite_step(%s)", topic) == "busy"
        assert value(session, live) == before
    assert value(session, "SELECT finished FROM rewrite_step(%s)", topic)
    assert value(session, live) != before


def test_where_no_leaf_can_be_made_the_other_topics_are_looked_after(
    connect: Connect, session: Session, log_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, other = create(session, partitions=2), create(session, "other")
    for _ in range(3):
        append(session, topic, [b"x" * 100])
        append(session, topic, [b"x"], 1)
    append(session, topic, [b"x" * 100])
    append(session, topic, [b"x" * 100], 1)
    fill(session, other)
    session.execute("SELECT delete_records('t', 0, 3), delete_records('other', 0, 3)")
    assert value(session, "SELECT start_rewrite(%s, 'evacuate', '{1}')", topic)
    monkeypatch.setattr(retention, "opened", partial(opened, limits=Limits(lock_timeout_ms=20)))
    holder = connect()
    with holder.transaction():
        # As whoever detaches one of its segments, and waits.
        holder.execute(f"LOCK TABLE ONLY b_{topic} IN SHARE UPDATE EXCLUSIVE MODE".encode())
        came_to = retention.run_once(log_dsn)
        assert (came_to.topics, came_to.segments) == (("t", "other"), 4)
        assert value(session, "SELECT target FROM rewrite") is None
    retention.run_once(log_dsn)
    assert value(session, "SELECT count(*) FROM rewrite") == 0


def test_what_is_written_to_stays_while_no_segment_can_be_made(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    topic = create(session)
    fill(session, topic, 3)
    session.execute("SELECT alter_topic('t', '{\"retention.ms\": 0}')")
    other = connect()
    with other.transaction():
        other.execute(f"LOCK TABLE ONLY b_{topic} IN SHARE UPDATE EXCLUSIVE MODE".encode())
        retention.run_once(log_dsn)
        assert value(session, "SELECT log_start FROM topic_partition") == 3
        assert value(session, "SELECT count(*) FROM records") == 1
    retention.run_once(log_dsn)
    assert value(session, "SELECT log_start FROM topic_partition") == 4


def test_a_snapshot_delays_the_space_and_nothing_else(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    topic = create(session)
    fill(session, topic, 5)
    reader = connect()
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert value(reader, "SELECT count(*) FROM logstore_topics.t") == 6
    drop(session, log_dsn, 2)
    assert reclaim.run_once(log_dsn, lock_timeout_ms=20).segments_waiting == (topic,)
    drop(session, log_dsn, 4)
    assert [offset for (offset,) in rows(session, 'SELECT "offset" FROM records')] == [4, 5]
    assert reclaim.run_once(log_dsn, lock_timeout_ms=20).segments_waiting == (topic,)
    append(session, topic)
    assert value(reader, "SELECT count(*) FROM logstore_topics.t") == 6
    reader.execute("COMMIT")
    assert reclaim.run_once(log_dsn).segments == 4
    assert value(session, LEAVES) == 2
    assert [offset for (offset,) in rows(session, 'SELECT "offset" FROM records')] == [4, 5, 6]


def test_whoever_holds_a_transaction_open_delays_only_the_space(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    topic = create(session, partitions=2)
    append(session, topic, partition=1)
    fill(session, topic)
    slow, hurried = connect(), connect(lock_timeout="20ms")
    slow.execute("BEGIN")
    append(slow, topic, partition=1)
    roll.run_once(log_dsn)
    drop(session, log_dsn, 2)
    assert retention.run_once(log_dsn).segments == 0, "the first segment has a record that stays"
    assert reclaim.run_once(log_dsn, lock_timeout_ms=20).segments_waiting == (topic,)
    append(hurried, topic, [b"y" * 100])
    append(hurried, topic)
    assert value(hurried, "SELECT count(*) FROM records") == 5
    slow.execute("COMMIT")
    assert reclaim.run_once(log_dsn).segments == 1


def test_it_goes_on_from_wherever_it_was_stopped(session: Session, log_dsn: str) -> None:
    topic = create(session)
    for steps in range(5):
        fill(session, topic, 2)
        end = value(session, "SELECT max(last_offset) FROM batches")
        drop(session, log_dsn, end)
        for _ in range(steps):
            ((_, _, _, _, statement),) = rows(session, "SELECT * FROM next_drop()")
            session.execute(statement)
        reclaim.run_once(log_dsn)
        assert value(session, LEAVES) == 1
        assert rows(session, "SELECT FROM dropped_segment") == []


def test_a_topic_is_deleted_with_segments_on_their_way_out(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    topics = [create(session, f"t{number}") for number in range(3)]
    reader = connect()
    for number, topic in enumerate(topics):
        fill(session, topic)
        drop(session, log_dsn, 2, f"t{number}")
    ((_, _, _, _, statement),) = rows(session, "SELECT * FROM next_drop(%s)", topics[1:])
    session.execute(statement)  # of t0 one is detached
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(reader, "SELECT count(*) FROM records")
    worker = connect(lock_timeout="10ms")
    ((_, _, _, _, statement),) = rows(session, "SELECT * FROM next_drop(%s)", [topics[0], topics[2]])
    assert refused(worker, statement).sqlstate == "55P03"  # of t1 one is in between, of t2 none
    session.execute("SELECT delete_topic(name) FROM topic")
    assert reclaim.run_once(log_dsn, lock_timeout_ms=10).dropped == ()
    reader.execute("COMMIT")
    assert sorted(reclaim.run_once(log_dsn).dropped) == topics
    reclaim.run_once(log_dsn)
    assert value(session, LEAVES) == 0
    assert rows(session, "SELECT FROM dropped_segment") == []


def test_a_topic_of_very_many_segments_can_be_deleted(session: Session, log_dsn: str) -> None:
    topic = create(session)
    fill(session, topic, 150)
    session.execute("SELECT delete_topic('t')")
    assert reclaim.run_once(log_dsn).dropped == (topic,)
    assert value(session, LEAVES) == 0


@pytest.mark.parametrize("partitions", [1, 40])
def test_several_at_once(connect: Connect, session: Session, log_dsn: str, partitions: int) -> None:
    topics = [create(session, f"t{number}", partitions) for number in range(2)]
    for topic in topics:
        for partition in range(partitions):
            for _ in range(2):
                append(session, topic, [b"x" * 100], partition)
    writer = connect(lock_timeout="5s")

    def work(_: int) -> int:
        segments = 0
        for _ in range(3):
            roll.run_once(log_dsn)
            segments += retention.run_once(log_dsn).segments
            reclaim.run_once(log_dsn)
        return segments

    for number in range(2):
        session.execute(
            "SELECT delete_records(%s, p, 1) FROM generate_series(0, %s) p", (f"t{number}", partitions - 1)
        )
    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work, number) for number in range(3)]
        for count in range(30):
            append(writer, topics[count % 2], [b"y" * 100], count % partitions)
        dropped = sum(job.result() for job in working)
    roll.run_once(log_dsn)
    dropped += retention.run_once(log_dsn).segments
    reclaim.run_once(log_dsn)
    assert dropped >= 2
    assert rows(session, "SELECT FROM dropped_segment") == []
    assert value(session, "SELECT count(*) FROM topic_segment") == value(session, LEAVES)
    assert value(session, "SELECT count(*) FROM records") == 2 * partitions + 30


def test_through_a_pooler_everything_but_the_space(pgbouncer_dsn: str) -> None:
    with psycopg.connect(pgbouncer_dsn, autocommit=True, prepare_threshold=None) as session:
        query = "SELECT logstore.create_topic('t', 2, %s)"
        topic = value(session, query, json.dumps({**CONFIGS, "segment.ms": "1"}))
        for _ in range(3):
            session.execute(
                "SELECT logstore.append(%s::int4, 0, 1, 5, null, null, %s::bytea[], null, null, null,"
                " 1::int2)",
                (topic, [b"x" * 100]),
            )
        session.execute("SELECT logstore.delete_records('t', 0, 2)")
        assert roll.run_once(pgbouncer_dsn).partitions == 2
        assert retention.run_once(pgbouncer_dsn).segments >= 2
        assert reclaim.run_once(pgbouncer_dsn) == reclaim.Reclaimed((), ())
        assert value(session, "SELECT count(*) FROM logstore.dropped_segment") >= 2
        assert value(session, "SELECT count(*) FROM logstore.records") == 1
