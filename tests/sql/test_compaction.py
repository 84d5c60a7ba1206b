"""What compaction leaves, and what it never changes."""

from __future__ import annotations

import random

import pytest

from tests.support.clock import Clock
from tests.support.compacting import (
    HOURS,
    all_records,
    audit,
    close_segments,
    compact,
    compacted,
    create,
    ends,
    keyed,
    sources,
    start,
    steps,
)
from tests.support.sqllog import NOW_MS, Connect, Session, append, refused, rows, value


def fill(session: Session, topic_id: int, batches: int, rng: random.Random, partitions: int = 3) -> None:
    """Batches of all shapes: few and many records, long keys, tombstones, headers, one or many times."""
    for _ in range(batches):
        count = rng.choice((1, 1, 2, 7, 19))
        keys = [
            rng.choice((b"k%d" % rng.randrange(25), b"L" * 70 + b"%d" % rng.randrange(3), b""))
            for _ in range(count)
        ]
        values = [rng.choice((None, b"", b"v%d" % rng.randrange(10**6))) for _ in range(count)]
        stamps = [NOW_MS - rng.randrange(10_000) for _ in range(count)] if rng.random() < 0.5 else None
        headers = None
        if rng.random() < 0.4:
            ordinals = sorted(rng.choices(range(1, count + 1), k=3))
            headers = [(each, f"h{n}", rng.choice((None, b"x%d" % n))) for n, each in enumerate(ordinals)]
        append(
            session,
            topic_id,
            values,
            rng.randrange(partitions),
            keys=keys,
            timestamps=stamps,
            headers=headers,
        )


def test_the_last_record_of_each_key_stays_with_its_offset(session: Session, log_dsn: str) -> None:
    rng = random.Random(4711)
    topic_id = create(session, partitions=3, segment_bytes="20000")
    fill(session, topic_id, 120, rng)
    close_segments(session, topic_id)
    fill(session, topic_id, 20, rng)
    wanted = compacted(all_records(session), ends(session, topic_id))

    phases = compact(session, topic_id, max_records=150)
    assert phases.count("swap") >= 1 and phases.count("write") > 5, "in many steps"
    assert all_records(session) == wanted
    assert audit(session, topic_id) == []
    read = 'SELECT partition, "offset", key, value, "timestamp", headers::text FROM '
    assert rows(session, read + "read('t')") == wanted
    assert rows(session, read + "logstore_topics.t ORDER BY 1, 2") == wanted
    held = "SELECT sum(records) FROM partitions WHERE topic = 't'"
    assert value(session, held) == len(wanted)

    # Once more, with what was the head: sparse batches are compacted like all others.
    close_segments(session, topic_id)
    wanted = compacted(wanted, ends(session, topic_id))
    compact(session, topic_id)
    assert all_records(session) == wanted
    assert value(session, held) == len(wanted)
    assert audit(session, topic_id) == []


def test_nobody_sees_a_compaction_that_is_under_way(session: Session) -> None:
    rng = random.Random(7)
    topic_id = create(session, partitions=3, segment_bytes="8000")
    fill(session, topic_id, 60, rng)
    close_segments(session, topic_id)
    before = all_records(session)
    wanted = compacted(before, ends(session, topic_id))
    start(session, topic_id)
    finished = False
    while not finished:
        ((_, _, finished),) = rows(session, "SELECT * FROM rewrite_step(%s, 60)", topic_id)
        seen = all_records(session)
        assert set(wanted) <= set(seen) <= set(before)
        assert seen == sorted(seen, key=lambda record: record[:2])
        assert rows(session, "SELECT partition, \"offset\" FROM read('t')") == [each[:2] for each in seen]
    assert seen == wanted


def test_appends_and_fetches_go_on_beside_every_step(session: Session, connect: Connect) -> None:
    topic_id = create(session, segment_bytes="3000")
    for number in range(60):
        keyed(session, topic_id, a=f"{number}", b=f"{number}" * 20)
    close_segments(session, topic_id)
    other = connect(lock_timeout="1ms")
    start(session, topic_id)
    finished = False
    appended = 0
    while not finished:
        with session.transaction():
            ((_, _, finished),) = rows(session, "SELECT * FROM rewrite_step(%s, 20)", topic_id)
            # Its locks are held until the end of the transaction.
            keyed(other, topic_id, c="beside")
            appended += 1
            fetched = 'SELECT count(*) FROM "fetch"(array[%s], array[0], array[0], 1000000, 1000000)'
            assert value(other, fetched, topic_id) > 1
    found = all_records(session)
    assert [key for _, _, key, *_ in found if key != b"c"] == [b"a", b"b"]
    assert sum(key == b"c" for _, _, key, *_ in found) == appended, "the head is as it was"


def test_a_tombstone_stays_for_delete_retention_ms(session: Session, log_dsn: str) -> None:
    with Clock(log_dsn) as clock:
        topic_id = create(session, delete_retention_ms=str(2 * HOURS))
        keyed(session, topic_id, a="1", b="1")
        keyed(session, topic_id, a=None, c="1")
        close_segments(session, topic_id)
        compact(session, topic_id)
        left = [(2, b"a", None), (3, b"c", b"1")]
        assert [(o, k, v) for _, o, k, v, *_ in all_records(session)] == [(1, b"b", b"1"), *left]

        clock.advance(2 * HOURS - 1)
        assert rows(session, "SELECT reason FROM topics_to_compact()") == []
        keyed(session, topic_id, b="2")
        close_segments(session, topic_id)
        compact(session, topic_id)
        assert [(o, k, v) for _, o, k, v, *_ in all_records(session)] == [*left, (4, b"b", b"2")]

        clock.advance(1)
        assert rows(session, "SELECT reason FROM topics_to_compact()") == [("tombstones",)]
        compact(session, topic_id)
        assert [(o, k) for _, o, k, *_ in all_records(session)] == [(3, b"c"), (4, b"b")]
        assert audit(session, topic_id) == []


def test_what_is_worth_compacting(session: Session, log_dsn: str) -> None:
    due = "SELECT sources, reason FROM topics_to_compact()"
    with Clock(log_dsn) as clock:
        topic_id = create(session, min_cleanable_dirty_ratio="0.6", min_compaction_lag_ms=str(HOURS))
        assert rows(session, due) == []
        for _ in range(4):
            append(session, topic_id, [b"x" * 100], keys=[b"k"], at=clock.now_ms)
        assert rows(session, due) == [], "the head is never compacted"
        close_segments(session, topic_id)
        assert rows(session, due) == [], "it is too young"
        clock.advance(HOURS)
        assert rows(session, due) == [([0], "dirty")]
        compact(session, topic_id)
        assert rows(session, due) == [], "it is clean"

        append(session, topic_id, [b"x" * 100], keys=[b"k"], at=clock.now_ms)
        close_segments(session, topic_id)
        clock.advance(HOURS)
        assert rows(session, due) == [], "half of it is dirty, and 0.6 are wanted"
        session.execute("""SELECT alter_topic('t', '{"max.compaction.lag.ms": "7200000"}')""")
        assert rows(session, due) == []
        roll_at = value(session, "SELECT roll_at FROM topic WHERE topic_id = %s", topic_id)
        assert roll_at <= clock.now_ms + 2 * HOURS, "the head is closed in time to be compacted"
        clock.advance(HOURS + 1)
        ((_, reason),) = rows(session, due)
        assert reason == "lag"
        session.execute("""SELECT alter_topic('t', '{"cleanup.policy": "delete"}')""")
        assert rows(session, due) == []


def test_records_without_a_key_are_refused(session: Session) -> None:
    topic_id = create(session)
    append(session, topic_id, [b"v"], keys=[b"k"])
    for keys in (None, [b"k", None]):
        given = "append(%s, 0, 2, 1, null, %s::bytea[], array['a', 'b']::bytea[], null, null, null, 1::int2)"
        assert refused(session, "SELECT " + given, topic_id, keys).sqlstate == "LS050"
    assert refused(session, "SELECT produce('t', null::text, 'v'::text)").sqlstate == "LS050"
    assert len(all_records(session)) == 1


def test_a_topic_may_become_compacted_later(session: Session) -> None:
    topic_id = create(session, cleanup_policy="delete")
    append(session, topic_id, [b"no key"])
    keyed(session, topic_id, a="1", b="1")
    # Staged before, drained after: it goes in, and compaction leaves it out.
    session.execute("SELECT produce('t', null::text, 'staged'::text)")
    session.execute("""SELECT alter_topic('t', '{"cleanup.policy": "compact"}')""")
    session.execute("SELECT drain()")
    keyed(session, topic_id, a="2")
    assert [record[3] for record in all_records(session)] == [b"no key", b"1", b"1", b"staged", b"2"]
    close_segments(session, topic_id)
    compact(session, topic_id)
    assert [(record[1], record[3]) for record in all_records(session)] == [(2, b"1"), (4, b"2")]
    assert audit(session, topic_id) == []
    # And back: nothing more is compacted, records need no key.
    session.execute("""SELECT alter_topic('t', '{"cleanup.policy": "delete"}')""")
    append(session, topic_id, [b"no key again"])
    assert all_records(session)[-1][3] == b"no key again"


def test_a_crash_of_the_server_costs_only_work(session: Session) -> None:
    topic_id = create(session, segment_bytes="3000")
    for number in range(60):
        keyed(session, topic_id, a=f"{number}", b=f"{number}" * 20)
    close_segments(session, topic_id)
    start(session, topic_id)
    phases = []
    while "write" not in phases:
        phases += [value(session, "SELECT phase FROM rewrite_step(%s, 40)", topic_id)]
    # What recovery does to unlogged tables.
    session.execute(f"TRUNCATE r_{topic_id}_key, r_{topic_id}_winner, r_{topic_id}_chunk")
    again = steps(session, topic_id)
    assert again[0] == "restart" and again[-1] == "swap"
    assert [(key, text) for _, _, key, text, *_ in all_records(session)] == [
        (b"a", b"59"),
        (b"b", b"59" * 20),
    ]
    assert audit(session, topic_id) == []
    assert rows(session, "SELECT relname FROM pg_class WHERE relname ~ '^r_[0-9]'") == []


def test_only_one_session_is_at_it(session: Session, connect: Connect) -> None:
    topic_id = create(session)
    keyed(session, topic_id, a="1")
    close_segments(session, topic_id)
    start(session, topic_id)
    given = sources(session, topic_id)
    assert not value(session, "SELECT start_rewrite(%s, 'compact', %s)", topic_id, given)
    with session.transaction():
        assert value(session, "SELECT phase FROM rewrite_step(%s)", topic_id) == "gather"
        assert rows(connect(), "SELECT * FROM rewrite_step(%s)", topic_id) == [("busy", 0, False)]
    assert value(session, "SELECT cancel_rewrite(%s)", topic_id)
    assert rows(session, "SELECT * FROM rewrite_step(%s)", topic_id) == [("none", 0, True)]
    assert len(all_records(session)) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [([99], "there are no such segments"), ([4], "still writes"), ([0, 3], "another segment lies between")],
)
def test_only_closed_neighbours_are_written_anew(session: Session, given: list[int], why: str) -> None:
    topic_id = create(session)
    for number in range(4):
        keyed(session, topic_id, a=f"{number}")
        close_segments(session, topic_id)
    error = refused(session, "SELECT start_rewrite(%s, 'compact', %s)", topic_id, given)
    assert error.sqlstate == "LS051" and why in str(error)


def test_deleting_a_topic_ends_its_compaction(session: Session) -> None:
    topic_id = create(session)
    keyed(session, topic_id, a="1")
    close_segments(session, topic_id)
    start(session, topic_id)
    assert value(session, "SELECT phase FROM rewrite_step(%s)", topic_id) == "gather"
    session.execute("SELECT delete_topic('t')")
    assert rows(session, "SELECT * FROM rewrite_step(%s)", topic_id) == [("none", 0, True)]
    assert rows(session, "SELECT relname FROM pg_class WHERE relname ~ '^r_[0-9]'") == []


def test_positions_in_holes_read_the_next_survivor(session: Session) -> None:
    topic_id = create(session)
    for number in range(30):
        keyed(session, topic_id, a=f"{number}", **{f"k{number % 3}": "v"})
    close_segments(session, topic_id)
    compact(session, topic_id)
    keyed(session, topic_id, z="head")
    left = [record[1] for record in all_records(session)]
    assert left == [55, 57, 58, 59, 60]
    fetched = """
        SELECT base_offset, last_offset, record_count, offset_deltas
        FROM "fetch"(array[%s], array[0], array[%s::int8], 1000000, 1000000) WHERE base_offset IS NOT NULL"""
    for position in range(61):
        ((base, last, count, deltas),) = rows(session, fetched, topic_id, position)[:1]
        assert base <= position <= last, "some batch covers each offset"
        offsets = [base + delta for delta in deltas] if deltas else list(range(base, base + count))
        assert [each for each in offsets if each >= position] == [o for o in left if position <= o <= last]


def test_look_ups_by_time_know_of_batches_without_records(session: Session) -> None:
    topic_id = create(session)
    append(session, topic_id, [b"1"], keys=[b"a"], at=NOW_MS + 5000)
    close_segments(session, topic_id)
    append(session, topic_id, [b"2"], keys=[b"a"], at=NOW_MS)
    close_segments(session, topic_id)
    compact(session, topic_id)
    assert (
        value(session, "SELECT count(*) FROM batches JOIN topic_segment USING (topic_id, segment) WHERE live")
        >= 1
    )
    listed = 'SELECT "offset", "timestamp" FROM list_offsets(array[%s], array[0], array[%s::int8])'
    assert rows(session, listed, topic_id, -3) == [(1, NOW_MS)]
    assert rows(session, listed, topic_id, NOW_MS + 1) == [(None, None)]
    assert rows(session, listed, topic_id, 0) == [(1, NOW_MS)]
