"""Topics are made, changed and taken away beside appends, reads and transactions that stay open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from logstore.workers import reclaim
from tests.support.sqllog import Connect, Session, append, refused, rows, value, wait_until, waits_for_lock

pytestmark = pytest.mark.every_server

LEAVES = "SELECT count(*) FROM pg_class WHERE relname ~ '^b_' AND relkind IN ('r', 'p')"


def create(session: Session, name: str, partitions: int = 1) -> int:
    created: int = value(session, "SELECT create_topic(%s, %s, '{\"segment.bytes\": 100}')", name, partitions)
    return created


def test_an_open_reader_and_writer_delay_no_change_of_other_topics(
    connect: Connect, session: Session
) -> None:
    first, doomed = create(session, "first"), create(session, "doomed")
    for topic in (first, doomed):
        append(session, topic, [b"x" * 100])
    idle, hurried = connect(), connect(lock_timeout="2s")
    idle.execute("BEGIN")
    rows(idle, "SELECT count(*) FROM records")
    append(idle, first)
    second = create(hurried, "second")
    append(hurried, second)
    hurried.execute("SELECT alter_topic('second', '{\"retention.ms\": 5}'), add_partitions('second', 3)")
    hurried.execute("SELECT delete_topic('doomed')")
    append(hurried, second, partition=2)
    idle.execute("COMMIT")


def test_nobody_waits_behind_a_reclaim_that_waits(connect: Connect, session: Session, log_dsn: str) -> None:
    kept, doomed = create(session, "kept"), create(session, "doomed")
    append(session, doomed)
    idle, hurried = connect(), connect(lock_timeout="1s")
    idle.execute("BEGIN")
    rows(idle, "SELECT count(*) FROM records")
    session.execute("SELECT delete_topic('doomed')")
    waiting = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'logstore reclaim' AND wait_event_type = 'Lock')"
    )
    with ThreadPoolExecutor(1) as pool:
        reclaiming = pool.submit(reclaim.run_once, log_dsn, lock_timeout_ms=60_000)
        wait_until(lambda: bool(value(session, waiting)))
        for _ in range(3):
            append(hurried, kept, [b"x" * 100])
        assert len(rows(hurried, "SELECT * FROM read('kept')")) == 3
        assert value(hurried, "SELECT count(*) FROM records") == 3
        append(hurried, create(hurried, "other"))
        assert value(session, waiting), "it still does"
        idle.execute("COMMIT")
        assert reclaiming.result() == reclaim.Reclaimed((doomed,), ())
    assert value(session, "SELECT to_regclass(%s)", f"b_{doomed}") is None
    assert rows(session, "SELECT FROM deleted_topic") == []


def test_a_reclaim_that_may_not_wait_comes_again(connect: Connect, session: Session, log_dsn: str) -> None:
    doomed = create(session, "doomed")
    idle = connect()
    idle.execute("BEGIN")
    rows(idle, "SELECT count(*) FROM records")
    session.execute("SELECT delete_topic('doomed')")
    for _ in range(2):
        assert reclaim.run_once(log_dsn, lock_timeout_ms=50) == reclaim.Reclaimed((), (doomed,))
    idle.execute("COMMIT")
    assert reclaim.run_once(log_dsn).dropped == (doomed,)
    assert reclaim.run_once(log_dsn) == reclaim.Reclaimed((), ())


def test_reclaiming_goes_on_from_wherever_it_was_stopped(session: Session, log_dsn: str) -> None:
    for steps in range(4):
        topic = create(session, "t")
        append(session, topic, [b"x" * 100])
        append(session, topic)
        session.execute("SELECT delete_topic('t')")
        for _ in range(steps):
            ((_, statement),) = rows(session, "SELECT * FROM next_reclaim()")
            session.execute(statement)
        reclaim.run_once(log_dsn)
        assert value(session, LEAVES) == 0
        assert rows(session, "SELECT FROM deleted_topic") == []


def test_an_interrupted_detach_is_finished_first(connect: Connect, session: Session, log_dsn: str) -> None:
    early, late = create(session, "early"), create(session, "late")
    idle = connect()
    idle.execute("BEGIN")
    rows(idle, "SELECT count(*) FROM records")
    session.execute("SELECT delete_topic('late')")
    worker = connect()
    with ThreadPoolExecutor(1) as pool:
        ((_, statement),) = rows(session, "SELECT * FROM next_reclaim()")
        detaching = pool.submit(refused, worker, statement)
        wait_until(lambda: waits_for_lock(session, worker))
        session.execute("SELECT pg_terminate_backend(%s)", (worker.info.backend_pid,))
        assert detaching.result().sqlstate == "57P01"
    session.execute("SELECT delete_topic('early')")
    ((topic, statement),) = rows(session, "SELECT * FROM next_reclaim()")
    assert topic == late
    assert statement.endswith("finalize")
    idle.execute("COMMIT")
    assert set(reclaim.run_once(log_dsn).dropped) == {late, early}
    assert value(session, LEAVES) == 0


def test_only_one_reclaims(connect: Connect, session: Session, log_dsn: str) -> None:
    create(session, "t")
    session.execute("SELECT delete_topic('t')")
    other = connect()
    other.execute("SELECT pg_advisory_lock(hashtext('logstore reclaim'), hashtext('logstore'))")
    assert reclaim.run_once(log_dsn) == reclaim.Reclaimed((), ())
    other.execute("SELECT pg_advisory_unlock_all()")
    assert len(reclaim.run_once(log_dsn).dropped) == 1


def test_who_has_reclaimed_leaves_it_to_the_next_at_once(
    session: Session, log_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the server has seen that the connection is closed."""
    left_open: list[psycopg.Connection[Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "close", lambda self: left_open.append(self))
        found = []
        for name in ("t", "u"):
            create(session, name)
            session.execute("SELECT delete_topic(%s)", (name,))
            found.append(len(reclaim.run_once(log_dsn).dropped))
    for connection in left_open:
        connection.close()
    assert found == [1, 1]


def test_a_view_somebody_reads_makes_room_for_the_next_topic_of_its_name(
    connect: Connect, session: Session, log_dsn: str
) -> None:
    create(session, "t")
    idle = connect()
    idle.execute("BEGIN")
    rows(idle, "SELECT * FROM logstore_topics.t")
    hurried = connect(lock_timeout="2s")
    hurried.execute("SELECT delete_topic('t')")
    assert rows(hurried, "SELECT * FROM logstore_topics.t") == []
    again = create(hurried, "t")
    append(hurried, again)
    assert value(hurried, f'SELECT count(*) FROM logstore_topics."t~{again}"') == 1  # noqa: S608
    idle.execute("COMMIT")
    reclaim.run_once(log_dsn)
    assert value(session, "SELECT to_regclass('logstore_topics.t')") is None
    assert value(hurried, f'SELECT count(*) FROM logstore_topics."t~{again}"') == 1  # noqa: S608


def test_deleting_waits_for_appends_under_way_and_fences_those_behind(
    connect: Connect, session: Session
) -> None:
    topic = create(session, "t")
    slow, deleter, behind = connect(), connect(), connect()
    slow.execute("BEGIN")
    append(slow, topic)
    query = "SELECT append(%s::int4, 0, 1, 5, null, null, '{v}', null, null, null, 1::int2)"
    with ThreadPoolExecutor(2) as pool:
        deleting = pool.submit(deleter.execute, "SELECT delete_topic('t')")
        wait_until(lambda: waits_for_lock(session, deleter))
        appending = pool.submit(refused, behind, query, topic)
        wait_until(lambda: waits_for_lock(session, behind))
        slow.execute("COMMIT")
        deleting.result(60)
        assert appending.result(60).sqlstate == "LS001"


@pytest.mark.parametrize("change", ["alter_topic('t', '{\"retention.ms\": 1}')", "add_partitions('t', 9)"])
def test_a_roller_in_an_open_transaction_delays_only_changes_of_its_topic(
    connect: Connect, session: Session, change: str
) -> None:
    topic = create(session, "t")
    roller, changer = connect(), connect()
    roller.execute("BEGIN")
    append(roller, topic, [b"x" * 100])
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(changer.execute, f"SELECT {change}")
        wait_until(lambda: waits_for_lock(session, changer))
        append(roller, topic, [b"x" * 100])
        roller.execute("COMMIT")
        changing.result(60)
    append(session, topic)
    assert value(session, "SELECT active_segment FROM topic") == 2
