"""Waking: only those who wait, only after the commit, and nobody is held up."""

from __future__ import annotations

from tests.support.sqllog import Connect, Session, refused, rows, value


def notified(listener: Session) -> list[str]:
    """What has come; everything that was sent before this call has."""
    listener.execute("SELECT")
    return [notice.payload for notice in listener.notifies(timeout=0)]


def test_only_topics_somebody_waits_for(connect: Connect, session: Session) -> None:
    listener = connect()
    listener.execute("LISTEN logstore_wake")
    session.execute("SELECT wake('{1,2,3}')")
    assert notified(listener) == []
    listener.execute("SELECT waiting('{2,3}')")
    session.execute("SELECT wake('{1,2,3}')")
    assert sorted(notified(listener)) == ["2", "3"]
    listener.execute("SELECT not_waiting('{3}')")
    session.execute("SELECT wake('{1,2,3}')")
    assert notified(listener) == ["2"]


def test_waiting_twice_is_taken_back_twice(connect: Connect, session: Session) -> None:
    listener = connect()
    listener.execute("LISTEN logstore_wake")
    listener.execute("SELECT waiting('{5}'), waiting('{5}')")
    listener.execute("SELECT not_waiting('{5}')")
    session.execute("SELECT wake('{5}')")
    assert notified(listener) == ["5"]
    listener.execute("SELECT not_waiting('{5}')")
    session.execute("SELECT wake('{5}')")
    assert notified(listener) == []


def test_a_waiter_that_is_gone_is_forgotten(connect: Connect, session: Session) -> None:
    listener = connect()
    listener.execute("SELECT waiting('{5}')")
    locks = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert value(session, locks) == 1
    listener.close()
    while value(session, locks):
        pass
    session.execute("SELECT wake('{5}')")


def test_several_wait_and_several_wake(connect: Connect, session: Session) -> None:
    listeners = [connect() for _ in range(3)]
    for listener in listeners:
        listener.execute("LISTEN logstore_wake")
        listener.execute("SELECT waiting('{1}')")
    session.execute("SELECT wake('{1}')")
    assert [notified(listener) for listener in listeners] == [["1"]] * 3
    assert rows(session, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == []


def test_who_is_cancelled_while_waking_keeps_nobody_from_waiting(session: Session, connect: Connect) -> None:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    for after_ms in range(20, 28):
        session.execute(f"SET statement_timeout = {after_ms}")
        error = refused(session, "SELECT wake(array_fill(1, array[1000000]))")
        assert error.sqlstate == "57014"
        assert value(session, held) == 0


def test_waking_is_not_worth_a_flush(session: Session) -> None:
    with session.transaction():
        session.execute("SELECT wake('{1}')")
        assert value(session, "SHOW synchronous_commit") == "off"
    assert value(session, "SHOW synchronous_commit") == "on"
