"""The right to erasure."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from logstore.workers import compaction, erasure, reclaim, rewriting
from tests.support.clock import Clock
from tests.support.compacting import all_records, audit, close_segments, compact, create, keyed, start
from tests.support.sqllog import (
    NOW_MS,
    Connect,
    Session,
    append,
    refused,
    rows,
    value,
    wait_until,
    waits_for_lock,
)

STATE = "SELECT state, records, key_sha256 FROM erasures ORDER BY erasure_id"


def holding(session: Session, secret: bytes) -> list[str]:
    """The tables of the log that have the bytes in a row, live or not."""
    found = []
    for (table,) in rows(
        session, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^b_'"
    ):
        query = f"SELECT count(*) FROM {table} t WHERE position(%s IN t::text) > 0"  # noqa: S608 (our own)
        if value(session, query, secret.hex()):
            found.append(table)
    return found


def test_a_key_goes_from_the_whole_log(session: Session, log_dsn: str) -> None:
    topic_id = create(
        session, partitions=2, cleanup_policy="delete", segment_bytes="2000", file_delete_delay_ms="0"
    )
    for number in range(30):
        append(
            session,
            topic_id,
            [b"1", b"secret-%d" % number, None, b"3"],
            number % 2,
            keys=[b"k%d" % (number % 3), b"alice", None, b"other"],
            timestamps=[NOW_MS, NOW_MS + 9, NOW_MS - 5, NOW_MS + 3],
            headers=[(1, "a", b"1"), (2, "b", b"secret"), (2, "c", None), (4, "d", b"4"), (4, "d", b"5")],
        )
    before = all_records(session)
    session.execute("SELECT erase_key('t', 'alice'::text)")
    append(session, topic_id, [b"after"], keys=[b"alice"])
    sha256 = hashlib.sha256(b"alice").hexdigest()
    assert rows(session, STATE) == [("pending", 0, sha256)]

    first = erasure.run_once(log_dsn)
    assert first.rewritten > 1 and not first.more
    left = all_records(session)
    assert [each for each in left if each[3] != b"after"] == [each for each in before if each[2] != b"alice"]
    assert [each[3] for each in left if each[2] == b"alice"] == [b"after"]
    assert audit(session, topic_id) == []
    assert rows(session, STATE) == [("removed", 30, sha256)]
    assert holding(session, b"secret"), "the old tables are still there, for those who read them"

    assert reclaim.run_once(log_dsn).segments == first.rewritten
    assert erasure.run_once(log_dsn).finished == 1
    assert rows(session, STATE) == [("finished", 30, sha256)]
    assert holding(session, b"secret") == []
    assert value(session, "SELECT count(*) FROM erasure WHERE key IS NOT NULL") == 0
    assert rows(session, "SELECT requested_by = session_user FROM erasures") == [(True,)]
    # Offsets stay valid, those of erased records too.
    assert value(session, "SELECT count(*) FROM read('t', 0, 1, 2)") == 0
    fetched = 'SELECT count(base_offset) FROM "fetch"(array[%s], array[0], array[1::int8], 1, 1)'
    assert value(session, fetched, topic_id) == 1


def test_nothing_to_erase(session: Session, log_dsn: str) -> None:
    topic_id = create(session, cleanup_policy="delete")
    keyed(session, topic_id, a="1")
    before = all_records(session)
    session.execute("SELECT erase_key('t', 'bob'::text)")
    came_to = erasure.run_once(log_dsn)
    assert (came_to.rewritten, came_to.finished) == (0, 1)
    assert all_records(session) == before
    assert refused(session, "SELECT erase_key('t', null::bytea)").sqlstate == "LS052"
    assert refused(session, "SELECT erase_key('nothing', 'a'::text)").sqlstate == "LS001"


def test_a_compaction_that_is_under_way_is_finished_first(session: Session, log_dsn: str) -> None:
    topic_id = create(session)
    keyed(session, topic_id, a="1", b="1")
    keyed(session, topic_id, a="2")
    close_segments(session, topic_id)
    start(session, topic_id)
    value(session, "SELECT phase FROM rewrite_step(%s)", topic_id)
    session.execute("SELECT erase_key('t', 'a'::text)")
    erasure.run_once(log_dsn)
    assert [record[2] for record in all_records(session)] == [b"b"]
    assert audit(session, topic_id) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_what_comes_after_the_request_stays(
    session: Session, log_dsn: str, connect: Connect, *, compacted: bool
) -> None:
    topic_id = create(session, cleanup_policy="compact" if compacted else "delete")
    keyed(session, topic_id, a="before", b="1")
    other = connect()
    with other.transaction():
        # So that the topic cannot go on to its next segment: what comes after is in the same one.
        other.execute(f"LOCK TABLE ONLY b_{topic_id} IN SHARE UPDATE EXCLUSIVE MODE")
        session.execute("SELECT erase_key('t', 'a'::text)")
    keyed(session, topic_id, c="2", a="after")
    if compacted:
        # One batch of both: what comes after is in the same.
        close_segments(session, topic_id)
        compact(session, topic_id)
    came_to = erasure.run_once(log_dsn)
    assert came_to.rewritten == (0 if compacted else 1)
    assert [record[3] for record in all_records(session)] == [b"1", b"2", b"after"]
    assert rows(session, "SELECT state, records FROM erasures") == [("removed", 0 if compacted else 1)]
    assert audit(session, topic_id) == []


def test_an_erased_batch_is_covered(session: Session, log_dsn: str) -> None:
    topic_id = create(session)
    keyed(session, topic_id, a="1")
    keyed(session, topic_id, b="1")
    session.execute("SELECT erase_key('t', 'a'::text)")
    erasure.run_once(log_dsn)
    assert [record[:3] for record in all_records(session)] == [(0, 1, b"b")]
    assert audit(session, topic_id) == []
    assert value(session, "SELECT records FROM partitions WHERE topic = 't'") == 1
    session.execute("SELECT delete_topic('t')")
    assert rows(session, "SELECT state, records FROM erasures") == [("removed", 1)] or rows(
        session, "SELECT state, records FROM erasures"
    ) == [("finished", 1)]


def test_what_is_asked_for_during_a_search_is_for_the_next(session: Session, log_dsn: str) -> None:
    topic_id = create(session, cleanup_policy="delete")
    keyed(session, topic_id, a="1", b="1")
    first = value(session, "SELECT erase_key('t', 'nobody'::text)")
    assert erasure.run_once(log_dsn).segments == 1
    value(session, "SELECT erase_key('t', 'a'::text)")
    # As if the search for the first one ended only now.
    searched = [segment for (segment, _) in rows(session, "SELECT * FROM leaves_to_search(%s)", topic_id)]
    value(session, "SELECT finish_erasures(%s, %s, %s)", topic_id, searched, first)
    assert rows(session, "SELECT state FROM erasures ORDER BY 1") == [("finished",), ("pending",)]
    assert erasure.run_once(log_dsn).rewritten == 1
    assert [record[2] for record in all_records(session)] == [b"b"]


def test_a_segment_that_is_closed_during_a_search_is_searched_too(
    session: Session, log_dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody had its partition locked, and lets go while another segment is written anew."""
    topic_id = create(session, partitions=2, cleanup_policy="delete")
    keyed(session, topic_id, a="1", b="1")
    close_segments(session, topic_id)
    keyed(session, topic_id, 1, a="2", b="2")
    slow = connect()
    slow.execute("BEGIN")
    append(slow, topic_id, [b"3"], 1, keys=[b"c"])
    session.execute("SELECT erase_key('t', 'a'::text)")
    real = rewriting.advance

    def advance(*arguments: Any, **options: Any) -> rewriting.Advance:
        came_to = real(*arguments, **options)
        if came_to.steps > 1:
            monkeypatch.setattr(erasure, "advance", real)
            slow.execute("COMMIT")
            keyed(session, topic_id, 1, d="4")
        return came_to

    monkeypatch.setattr(erasure, "advance", advance)
    came_to = erasure.run_once(log_dsn)
    assert (came_to.segments, came_to.rewritten) == (2, 2)
    assert [record[2] for record in all_records(session)] == [b"b", b"b", b"c", b"d"]
    assert rows(session, "SELECT state, records FROM erasures") == [("removed", 2)]
    assert audit(session, topic_id) == []


def test_a_search_that_takes_longer_than_a_run_comes_to_its_end(session: Session, log_dsn: str) -> None:
    topic_id = create(session, cleanup_policy="delete", segment_bytes="100")
    for number in range(6):
        append(session, topic_id, [b"x" * 100], keys=[b"a" if number in (2, 5) else b"b"])
    create(session, "u", cleanup_policy="delete")
    session.execute("SELECT erase_key('t', 'a'::text), erase_key('u', 'a'::text), erase_key('t', 'c'::text)")
    states = "SELECT topic, state, records FROM erasures ORDER BY erasure_id"
    # No time is left as soon as the first topic is begun.
    assert erasure.run_once(log_dsn, budget_s=0.0001).more
    assert rows(session, states) == [("t", "removed", 2), ("u", "pending", 0), ("t", "removed", 0)]
    assert len(all_records(session)) == 4
    # Whoever has waited longest comes first, whatever is asked of others meanwhile.
    session.execute("UPDATE erasure SET finished_at = removed_at")
    session.execute("SELECT erase_key('t', 'd'::text)")
    assert rows(session, "SELECT topic FROM topics_to_erase()") == [("u",), ("t",)]


def test_a_topic_may_be_deleted_while_keys_are_taken_out_of_it(session: Session, connect: Connect) -> None:
    topic_id = create(session, cleanup_policy="delete")
    keyed(session, topic_id, a="1", b="1")
    session.execute("SELECT erase_key('t', 'a'::text)")
    close_segments(session, topic_id)
    start(session, topic_id, "erase")
    assert value(session, "SELECT phase FROM rewrite_step(%s)", topic_id) == "target"
    target = value(session, "SELECT target FROM rewrite")
    holder, stepper, deleter = connect(), connect(), connect()
    holder.execute("BEGIN")
    holder.execute(f"LOCK TABLE b_{topic_id}_{target} IN SHARE MODE")
    with ThreadPoolExecutor(2) as pool:
        stepping = pool.submit(value, stepper, "SELECT phase FROM rewrite_step(%s)", topic_id)
        wait_until(lambda: waits_for_lock(session, stepper))
        deleting = pool.submit(deleter.execute, "SELECT delete_topic('t')")
        wait_until(lambda: waits_for_lock(session, deleter))
        holder.execute("COMMIT")
        assert stepping.result(60) == "write"
        deleting.result(60)
    assert rows(session, "SELECT FROM rewrite UNION ALL SELECT FROM rewrite_tally") == []
    assert value(session, "SELECT phase FROM rewrite_step(%s)", topic_id) == "none"


def test_the_jobs_do_it_all(session: Session, log_dsn: str) -> None:
    with Clock(log_dsn) as clock:
        topic_id = create(session, segment_bytes="4000", file_delete_delay_ms="0")
        for number in range(80):
            keyed(session, topic_id, **{f"k{number % 4}": f"{number}" * 20})
        close_segments(session, topic_id)
        came_to = compaction.run_once(log_dsn, max_records=30)
        assert came_to.topics == came_to.finished == ("t",) and came_to.records == 160 and not came_to.more
        assert [record[3] for record in all_records(session)] == [b"%d" % n * 20 for n in (76, 77, 78, 79)]
        assert compaction.run_once(log_dsn).topics == ()
        clock.advance(1)
        assert reclaim.run_once(log_dsn).segments > 1
        assert audit(session, topic_id) == []


def test_the_newest_time_is_that_of_a_record_that_is_left(session: Session, log_dsn: str) -> None:
    """Behind a log start in the middle of a batch from whose end records were erased."""
    topic_id = create(session, partitions=1, cleanup_policy="delete", segment_bytes="150")
    append(session, topic_id, [b"x" * 60] * 4, keys=[b"a", b"b", b"a", b"b"], timestamps=[NOW_MS + 9] * 4)
    append(session, topic_id, [b"x" * 60] * 2, keys=[b"a", b"a"], timestamps=[NOW_MS, NOW_MS])
    session.execute("SELECT erase_key('t', 'b'::text)")
    close_segments(session, topic_id)
    erasure.run_once(log_dsn)
    session.execute("SELECT delete_records('t', 0, 3)")
    newest = 'SELECT "offset", "timestamp" FROM list_offsets(%s, %s, %s)'
    assert rows(session, newest, [topic_id], [0], [-3]) == [(4, NOW_MS)]
