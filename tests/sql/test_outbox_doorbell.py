"""The doorbell of staging: whoever commits staged records rings if, and only if, somebody sleeps."""

from __future__ import annotations

import pytest

from tests.support.sqllog import Connect, Session, value


@pytest.fixture(autouse=True)
def topic(session: Session) -> int:
    created: int = value(session, "SELECT create_topic('t', 2)")
    return created


@pytest.fixture
def sleeper(connect: Connect) -> Session:
    """A session that has the seat and listens."""
    session = connect()
    session.execute("LISTEN logstore_staged")
    session.execute("LISTEN logstore_wake")
    assert value(session, "SELECT attend_staging()")
    return session


def heard(listener: Session) -> list[str]:
    """The channels on which something has come; everything that was sent before this call has."""
    listener.execute("SELECT")
    return [notice.channel for notice in listener.notifies(timeout=0)]


def stage(session: Session, count: int = 1) -> None:
    session.execute("SELECT produce('t', 'k', 'v') FROM generate_series(1, %s)", [count])


def test_nobody_sleeps(sleeper: Session, session: Session) -> None:
    stage(session)
    assert heard(sleeper) == []


def test_once_a_transaction_and_only_if_something_was_staged(
    connect: Connect, sleeper: Session, session: Session
) -> None:
    assert value(sleeper, "SELECT arm_doorbell()")
    session.execute("SELECT")
    assert heard(sleeper) == []
    stage(session, 5)
    assert heard(sleeper) == ["logstore_staged"]
    with session.transaction():
        stage(session)
        stage(session)
        assert heard(sleeper) == []
    assert heard(sleeper) == ["logstore_staged"]
    session.execute("BEGIN")
    session.execute("SAVEPOINT s")
    stage(session)
    session.execute("ROLLBACK TO s")
    session.execute("COMMIT")
    assert heard(sleeper) == []
    session.execute("BEGIN")
    session.execute("SAVEPOINT s")
    stage(session)
    session.execute("ROLLBACK TO s")
    stage(session)
    session.execute("COMMIT")
    assert heard(sleeper) == ["logstore_staged"]
    assert value(sleeper, "SELECT disarm_doorbell()")
    stage(session)
    assert heard(sleeper) == []


def test_what_counts_is_the_moment_of_the_commit(
    connect: Connect, sleeper: Session, session: Session
) -> None:
    session.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
    stage(session)
    assert value(sleeper, "SELECT arm_doorbell()")
    session.execute("COMMIT")
    assert heard(sleeper) == ["logstore_staged"]


def test_nobody_falls_asleep_beside_a_commit(connect: Connect, sleeper: Session, session: Session) -> None:
    """Between finding that nobody sleeps and being visible, a transaction keeps others awake."""
    session.execute("BEGIN")
    stage(session)
    session.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert not value(sleeper, "SELECT arm_doorbell()")
    session.execute("COMMIT")
    assert value(sleeper, "SELECT arm_doorbell()")
    assert value(sleeper, "SELECT records FROM drain()") == 1


def test_the_seat_is_one(connect: Connect, sleeper: Session, session: Session) -> None:
    assert not value(session, "SELECT attend_staging()")
    sleeper.execute("SELECT leave_staging()")
    assert heard(sleeper) == ["logstore_wake"]
    assert value(session, "SELECT attend_staging()")
    session.close()
    while not value(sleeper, "SELECT attend_staging()"):
        pass


def test_a_sleeper_that_dies_is_not_rung_for(connect: Connect, sleeper: Session, session: Session) -> None:
    listener = connect()
    listener.execute("LISTEN logstore_staged")
    assert value(sleeper, "SELECT arm_doorbell()")
    sleeper.close()
    while not value(session, "SELECT arm_doorbell()"):
        pass
    session.execute("SELECT disarm_doorbell()")
    stage(session)
    assert heard(listener) == []


def test_prepared_transactions(connect: Connect, sleeper: Session, session: Session) -> None:
    """They do not ring, which PREPARE TRANSACTION would not allow, and keep nobody from sleeping."""
    if value(session, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server allows no prepared transactions")
    for armed in (True, False):
        if armed:
            assert value(sleeper, "SELECT arm_doorbell()")
        session.execute("BEGIN")
        stage(session)
        session.execute("PREPARE TRANSACTION 'outbox'")
        assert value(sleeper, "SELECT records FROM drain()") == 0
        if armed:
            value(sleeper, "SELECT disarm_doorbell()")
        assert value(sleeper, "SELECT arm_doorbell()")
        value(sleeper, "SELECT disarm_doorbell()")
        session.execute("COMMIT PREPARED 'outbox'")
        assert value(sleeper, "SELECT records FROM drain()") == 1
