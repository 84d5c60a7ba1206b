"""Calls that are made while other threads compute: libpq alone sends them, and waits for their answers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore._core.arrays import ByteaArray, Int8Array
from logstore._core.call import Call
from logstore._sync.driver import Connection
from logstore._sync.pushing import _Pushes
from logstore.errors import (
    ConnectionFailedError,
    InvalidArgumentError,
    LogstoreError,
    RequestTimedOutError,
    ServerError,
    UnknownOutcomeError,
)
from tests.support.log import terminate
from tests.support.programs import eventually, kill

pytestmark = pytest.mark.one_server

Open = Callable[..., Connection]
Run = Callable[..., list[tuple[Any, ...]]]


def call(sql: str, *args: Any, writes: bool = False) -> Call[list[tuple[Any, ...]]]:
    return Call(sql, args, lambda rows: [tuple(row) for row in rows], "test", writes)


@pytest.fixture(autouse=True)
def hasty_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pushes, "LOOK_EVERY_S", 0.01)


@pytest.fixture
def connect() -> Iterator[Open]:
    opened: list[Connection] = []

    def connect(dsn: str, **options: Any) -> Connection:
        opened.append(Connection.open(dsn, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture(params=["nothing", "something"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a busy call, with nothing or something to do meanwhile."""

    def run(connection: Connection, what: Call[Any], timeout_s: float | None = 60.0) -> Any:
        if request.param == "nothing":
            return connection.run(what, timeout_s=timeout_s, busy=True)
        done: list[bool] = []
        try:
            return connection.run(what, timeout_s=timeout_s, busy=True, meanwhile=lambda: done.append(True))
        finally:
            assert done == [True]

    return run


def active(database: str) -> bool:
    with psycopg.connect(database) as other:
        count = other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
        ).fetchone()
    return count is not None and count[0] > 0


def test_a_busy_call_brings_what_any_call_brings(database: str, connect: Open, run: Run) -> None:
    connection = connect(database)
    megabytes = [b"x" * 1000] * 3000
    everything = call(
        "SELECT $1::int8, $2::bytea[], $3::int8[], cardinality($4::bytea[])",
        2**40, None, Int8Array([1, None]), ByteaArray(megabytes),
    )  # fmt: skip
    for _ in range(3):
        assert run(connection, everything) == [(2**40, None, [1, None], 3000)]
        assert connection.run(everything) == [(2**40, None, [1, None], 3000)]
    assert run(connection, call("SELECT 1 WHERE $1::int4 = 2", 1)) == []
    prepared = call("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'logstore%'")
    assert connection.run(prepared) == [(2,)]


def test_nothing_is_prepared_behind_a_pooler(pgbouncer_dsn: str, connect: Open, run: Run) -> None:
    connection = connect(pgbouncer_dsn)
    for number in range(3):
        assert run(connection, call("SELECT $1::int4", number)) == [(number,)]
    assert connection.run(call("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql")) == [(0,)]


def test_a_busy_call_that_does_not_come_again_is_not_kept(database: str, connect: Open, run: Run) -> None:
    connection = connect(database)
    for _ in range(2):
        assert run(connection, Call("SELECT $1::int4", (1,), list, "test", prepared=False)) == [(1,)]
    kept = call("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql AND name LIKE 'logstore%'")
    assert connection.run(kept) == [(0,)]


@pytest.mark.parametrize(
    ("sql", "args", "kind"),
    [
        ("SELECT 1 / $1::int4", (0,), InvalidArgumentError),
        ("SELECT $1::int4", (2**31,), InvalidArgumentError),
    ],
)
def test_a_refused_busy_call_leaves_the_connection_usable(
    database: str, connect: Open, run: Run, sql: str, args: tuple[Any, ...], kind: type[LogstoreError]
) -> None:
    connection = connect(database)
    for _ in range(2):
        with pytest.raises(kind):
            run(connection, call(sql, *args))
        assert connection.run(call("SELECT 1")) == [(1,)]


def test_what_cannot_be_prepared_is_refused(database: str, connect: Open) -> None:
    connection = connect(database)
    for _ in range(2):
        with pytest.raises(ServerError):
            connection.run(call("SELECT nonsense"), busy=True)
        assert connection.run(call("SELECT 1"), busy=True) == [(1,)]


@pytest.mark.parametrize(("writes", "kind"), [(False, RequestTimedOutError), (True, UnknownOutcomeError)])
def test_a_busy_call_that_takes_too_long_is_given_up(
    database: str, connect: Open, run: Run, writes: bool, kind: type[LogstoreError]
) -> None:
    connection = connect(database)
    sleep = "SELECT pg_sleep($1::int4)"
    run(connection, call(sleep, 0))  # prepared: then it is sent before the time is over
    with pytest.raises(kind, match=r"within 0\.05 s"):
        run(connection, call(sleep, 60, writes=writes), 0.05)
    assert connection.closed


@pytest.mark.parametrize(("writes", "kind"), [(False, ConnectionFailedError), (True, UnknownOutcomeError)])
@pytest.mark.parametrize("by_server", [True, False])
def test_a_connection_that_ends_during_a_busy_call(
    database: str, connect: Open, run: Run, by_server: bool, writes: bool, kind: type[LogstoreError]
) -> None:
    connection = connect(database, application_name="victim")

    def end() -> None:
        eventually(lambda: active(database), "it sleeps")
        if by_server:
            terminate(database, "victim")
        else:
            connection.abort()

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(kind) as caught:
        run(connection, call("SELECT pg_sleep(60)", writes=writes))
    ender.join()
    assert type(caught.value) is kind
    assert connection.closed


def test_a_busy_call_in_the_child_of_a_fork_is_given_up_too(database: str, connect: Open) -> None:
    """Though it was made while somebody looked after the calls of the parent."""
    connect(database).run(call("SELECT 1"), timeout_s=60.0, busy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
        child = os.fork()
    if child == 0:
        status = 1
        try:
            own = Connection.open(database)
            with pytest.raises(RequestTimedOutError):
                own.run(call("SELECT pg_sleep(60)"), timeout_s=0.05, busy=True)
            status = 0
        finally:
            os._exit(status)
    ended: list[int] = []

    def over() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
        return bool(pid)

    try:
        eventually(over, "the child has ended")
    finally:
        if not ended:
            kill(child)
            os.waitpid(child, 0)
    assert ended == [0]


def test_something_is_done_while_the_server_works(database: str, connect: Open) -> None:
    connection = connect(database)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(5)")

        def meanwhile() -> None:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            eventually(lambda: other.execute(waiting).fetchone() == (1,), "it was sent, and waits")
            other.execute("SELECT pg_advisory_unlock(5)")

        locked = call("SELECT pg_advisory_xact_lock($1::int8) IS NULL", 5)
        assert connection.run(locked, timeout_s=60.0, busy=True, meanwhile=meanwhile) == [(False,)]


def test_a_warning_that_takes_a_busy_commit_back_makes_it_unknown(
    database: str, connect: Open, run: Run
) -> None:
    with psycopg.connect(database) as other:
        other.execute(
            "CREATE FUNCTION doubtful() RETURNS int4 LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE WARNING 'canceling wait for synchronous replication'; RETURN 1; END $$"
        )
    connection = connect(database)
    with pytest.raises(UnknownOutcomeError, match="canceling wait"):
        run(connection, call("SELECT doubtful()", writes=True))
    assert run(connection, call("SELECT 1", writes=True)) == [(1,)]
