"""One connection, on psycopg and on asyncpg: the same texts, answers and errors."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from logstore._async.driver import Connection
from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.call import Call
from logstore._core.calls import Calls
from logstore._sync import driver as threads
from logstore.conninfo import parameters_of
from logstore.errors import (
    ConfigurationError,
    ConnectionFailedError,
    InvalidArgumentError,
    LogstoreError,
    RecordTooLargeError,
    RequestTimedOutError,
    ServerError,
    StaleSessionError,
    TopicAlreadyExistsError,
    UnknownOutcomeError,
)
from tests.support.colours import Colour
from tests.support.log import terminate
from tests.support.programs import eventually
from tests.support.proxy import Proxy, silent_server

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]

LONG_S = 60.0


def call(sql: str, *args: Any, writes: bool = False) -> Call[list[tuple[Any, ...]]]:
    return Call(sql, args, lambda rows: [tuple(row) for row in rows], "test", writes)


def active(database: str, text: str) -> bool:
    """A statement that begins with ``text`` is being run."""
    with psycopg.connect(database) as other:
        count = other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND starts_with(query, %s)", [text]
        ).fetchone()
    return count is not None and count[0] > 0


@pytest.mark.every_server
def test_every_kind_of_value_comes_back(colour: Colour, database: str) -> None:
    values: list[tuple[Any, str]] = [
        (ByteaArray([b"", None, b"\0\xff", b"x" * 5000]), "bytea[]"),
        (Int8Array([-(2**63), None, 2**63 - 1]), "int8[]"),
        (Int4Array([-(2**31), 0, 2**31 - 1]), "int4[]"),
        (TextArray(["", None, "é\U0001f600", "NULL", '"', "{}"]), "text[]"),
        (ByteaArray([]), "bytea[]"),
        (Int8Array([]), "int8[]"),
        (None, "bytea[]"),
        (None, "int4"),
        (0, "int2"),
        (2**31 - 1, "int4"),
        (-(2**63), "int8"),
        ("text", "text"),
        ('{"a": [1]}', "text::jsonb::text"),
        (b"\0", "bytea"),
        (True, "boolean"),
    ]
    sql = "SELECT " + ", ".join(f"${number}::{cast}" for number, (_, cast) in enumerate(values, 1))
    connection = colour.connection(database)
    for _ in range(3):  # also when the statement is prepared
        ((*got,),) = connection.run(call(sql, *(value for value, _ in values)))
        assert got == [list(value.items) if hasattr(value, "items") else value for value, _ in values]


def test_one_statement_serves_values_of_every_size(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    for number in (1, 2**20, 2**40, None, -1):
        assert connection.run(call("SELECT $1::int8", number)) == [(number,)]
    prepared = connection.run(
        call("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int8'")
    )
    assert prepared == [(1,)]


def test_statement_that_does_not_come_again_is_not_kept(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    for _ in range(2):
        once = Call("SELECT $1::int8 + 1", (1,), lambda rows: rows[0][0], "test", prepared=False)
        assert connection.run(once) == 2
    kept = call("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int8 + 1'")
    assert connection.run(kept) == [(0,)]


def test_statements_keep_apart(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    for _ in range(3):
        for number in range(10):
            assert connection.run(call(f"SELECT $1::int4 + {number}", 100)) == [(100 + number,)]


def test_connection_tells_where_it_leads(colour: Colour, database: str) -> None:
    connection = colour.connection(database, application_name="me")
    ((version, name),) = connection.run(
        call("SELECT current_setting('server_version_num')::int4, current_setting('application_name')")
    )
    assert connection.server_version == version
    assert name == "me"
    assert not connection.pooled
    assert not connection.closed


def test_pooler_is_recognised_and_nothing_is_prepared_behind_it(colour: Colour, pgbouncer_dsn: str) -> None:
    connection = colour.connection(pgbouncer_dsn)
    assert connection.pooled
    for number in range(3):
        assert connection.run(call("SELECT $1::int4", number)) == [(number,)]
    assert connection.run(call("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql")) == [(0,)]


def test_our_own_error_has_class_details_and_advice(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    raising = call(
        "SELECT logstore.raise_error($1::text, $2::text, $3::text::jsonb, $4::text)",
        "LS007",
        "too large",
        '{"size": 5}',
        "Make it smaller.",
    )
    with pytest.raises(RecordTooLargeError) as caught:
        connection.run(raising)
    assert caught.value.message == "too large"
    assert caught.value.advice == "Make it smaller."
    assert caught.value.details == {"sqlstate": "LS007", "size": 5}
    assert connection.run(call("SELECT 1")) == [(1,)]


@pytest.mark.parametrize(
    ("sql", "args", "kind"),
    [
        ("SELECT 1 / $1::int4", (0,), InvalidArgumentError),
        ("SELECT nonsense", (), ServerError),
        ("SELECT $1::text", ("a\0b",), InvalidArgumentError),
        ("SELECT $1::int4", (2**31,), InvalidArgumentError),
        ("SELECT $1::int8[]", (Int8Array([2**63]),), InvalidArgumentError),
        ("SELECT $1::text[]", (TextArray(["a\0b"]),), InvalidArgumentError),
        ("SELECT $1::text[]", (TextArray(["\ud800"]),), InvalidArgumentError),
        ("SELECT $1::text", ("\ud800",), InvalidArgumentError),
        ("SELECT $1::int4[]", (Int4Array(["1"]),), InvalidArgumentError),
    ],
)
def test_refused_statement_leaves_the_connection_usable(
    colour: Colour, database: str, sql: str, args: tuple[Any, ...], kind: type[LogstoreError]
) -> None:
    connection = colour.connection(database)
    with pytest.raises(kind):
        connection.run(call(sql, *args))
    assert connection.run(call("SELECT 1")) == [(1,)]


@pytest.mark.every_server
def test_transaction_commits_and_rolls_back(colour: Colour, database: str) -> None:
    connection, calls = colour.connection(database), Calls()
    with connection.transaction():
        connection.run(calls.create_topic("kept", 1))
    with pytest.raises(TopicAlreadyExistsError), connection.transaction():
        connection.run(calls.create_topic("gone", 1))
        connection.run(calls.create_topic("kept", 1))
    assert [topic.topic for topic in connection.run(calls.metadata())] == ["kept"]


def test_read_that_takes_too_long_ends_the_connection(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    with pytest.raises(RequestTimedOutError, match=r"within 0\.05 s"):
        connection.run(call("SELECT pg_sleep(60)"), timeout_s=0.05)
    assert connection.closed
    with pytest.raises(ConnectionFailedError):
        connection.run(call("SELECT 1"))


def test_write_that_takes_too_long_is_not_cancelled(colour: Colour, database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute("CREATE TABLE t AS SELECT 1 AS a")
        other.commit()
        connection = colour.connection(database)
        # Prepared: then it takes one message, and that is sent before the time is over.
        connection.run(call("UPDATE t SET a = $1::int4", 4, writes=True))
        other.execute("SELECT FROM t FOR UPDATE")
        with pytest.raises(UnknownOutcomeError, match=r"within 0\.05 s"):
            connection.run(call("UPDATE t SET a = $1::int4", 5, writes=True), timeout_s=0.05)
        assert connection.closed
        other.rollback()
        other.autocommit = True
        eventually(lambda: other.execute("SELECT a FROM t").fetchall() == [(5,)], "it was done")


@pytest.mark.parametrize(("writes", "kind"), [(False, ConnectionFailedError), (True, UnknownOutcomeError)])
def test_connection_that_ends_during_a_statement(
    colour: Colour, database: str, writes: bool, kind: type[LogstoreError]
) -> None:
    connection = colour.connection(database, application_name="victim")

    def kill() -> None:
        eventually(lambda: active(database, "SELECT pg_sleep"), "it sleeps")
        terminate(database, "victim")

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(kind) as caught:
        connection.run(call("SELECT pg_sleep(60)", writes=writes), timeout_s=LONG_S)
    killer.join()
    assert type(caught.value) is kind
    assert connection.closed


@pytest.mark.parametrize("writes", [False, True])
def test_connection_that_ended_while_idle(colour: Colour, database: str, writes: bool) -> None:
    """It is known that nothing was written."""
    connection = colour.connection(database, application_name="victim")
    terminate(database, "victim")
    with pytest.raises(ConnectionFailedError):
        connection.run(call("SELECT 1", writes=writes), timeout_s=LONG_S)
    assert connection.closed
    with pytest.raises(ConnectionFailedError):
        connection.run(call("SELECT 1"))
    connection.close()


def test_statement_inside_a_transaction_that_dies_is_not_unknown(colour: Colour, database: str) -> None:
    connection = colour.connection(database, application_name="victim")
    with pytest.raises(ConnectionFailedError), connection.transaction():
        connection.run(call("SELECT 1"))
        terminate(database, "victim")
        connection.run(call("SELECT 1", writes=True))


def test_commit_that_is_not_answered_is_unknown(colour: Colour, database: str) -> None:
    with Proxy(database) as proxy:
        connection = colour.connection(proxy.dsn)
        with pytest.raises(UnknownOutcomeError), connection.transaction():
            connection.run(Calls().create_topic("t", 1))
            proxy.cut_before_answer_to(b"COMMIT")
    with psycopg.connect(database) as other:
        assert other.execute("SELECT name FROM logstore.topic").fetchall() == [("t",)]


def test_warning_that_takes_a_commit_back_makes_it_unknown(colour: Colour, database: str) -> None:
    """As a wait for followers does when it is cancelled: success, with a warning."""
    with psycopg.connect(database) as other:
        other.execute(
            "CREATE FUNCTION doubtful() RETURNS int4 LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE WARNING 'canceling wait for synchronous replication'; RETURN 1; END $$"
        )
    connection = colour.connection(database)
    assert connection.run(call("SELECT doubtful()")) == [(1,)]
    with pytest.raises(UnknownOutcomeError, match="canceling wait"):
        connection.run(call("SELECT doubtful()", writes=True))
    assert connection.run(call("SELECT 1", writes=True)) == [(1,)]


def test_abort_ends_a_statement_from_outside(colour: Colour, database: str) -> None:
    connection = colour.connection(database)

    def abort() -> None:
        eventually(lambda: active(database, "SELECT pg_sleep"), "it sleeps")
        connection.abort()

    aborter = threading.Thread(target=abort)
    aborter.start()
    with pytest.raises(ConnectionFailedError):
        connection.run(call("SELECT pg_sleep(60)"), timeout_s=LONG_S)
    aborter.join()
    connection.abort()
    connection.close()
    connection.close()


def test_notifications_arrive_with_their_payloads(colour: Colour, database: str) -> None:
    listening, telling = colour.connection(database), colour.connection(database)
    listening.listen('a "channel"')
    for payload in ("one", "two"):
        telling.execute(f'NOTIFY "a ""channel""", \'{payload}\'')
    got: list[str] = []
    while len(got) < 2:
        got += listening.wait_notify(LONG_S)
    assert got == ["one", "two"]
    assert listening.wait_notify(0.0) == []


def test_notification_that_comes_during_a_statement_is_kept(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    connection.listen("channel")
    connection.execute("NOTIFY channel, 'mine'")
    assert connection.run(call("SELECT 1")) == [(1,)]
    assert connection.wait_notify(LONG_S) == ["mine"]


def test_interrupt_ends_a_wait(colour: Colour, database: str) -> None:
    connection = colour.connection(database)
    connection.listen("channel")
    connection.interrupt()
    assert connection.wait_notify(LONG_S) == []
    interrupter = threading.Thread(target=connection.interrupt)
    interrupter.start()
    assert connection.wait_notify(LONG_S) == []
    interrupter.join()


def test_wait_on_a_lost_connection_is_an_error(colour: Colour, database: str) -> None:
    connection = colour.connection(database, application_name="victim")
    connection.listen("channel")
    terminate(database, "victim")
    with pytest.raises(ConnectionFailedError):
        while True:
            connection.wait_notify(LONG_S)
    with pytest.raises(ConnectionFailedError):
        connection.wait_notify(LONG_S)


def pipes() -> int:
    """How many ends of pipes are open in this process."""
    gc.collect()
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(file.readlink()).startswith("pipe:")
    return found


def test_connection_that_does_not_come_about_leaves_no_files(colour: Colour, database: str) -> None:
    """As behind a pooler that lets one in and has no server: clients try that again and again."""
    with Proxy(database) as proxy:
        proxy.cut_before_answer_to(b"pg_backend_pid")
        before = pipes()
        for _ in range(3):
            with pytest.raises(ConnectionFailedError):
                colour.connection(proxy.dsn)
        assert proxy.cuts == 3
        assert pipes() <= before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg says that it is open
def test_connection_that_is_forgotten_leaves_no_files(database: str) -> None:
    before = pipes()
    connection = threads.Connection.open(database)
    del connection
    assert pipes() <= before


def test_interrupt_of_a_closed_connection_writes_to_nobodys_file(database: str) -> None:
    connection = threads.Connection.open(database)
    number = connection._wake_write
    connection.close()
    ours, theirs = os.pipe()
    try:
        os.set_blocking(ours, False)
        if number != theirs:
            os.dup2(theirs, number)
        connection.interrupt()
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        for file in {ours, theirs, number}:
            os.close(file)


def test_refused_connection_names_host_and_port_and_not_the_password(colour: Colour) -> None:
    with pytest.raises(ConnectionFailedError) as caught:
        colour.connection("postgresql://alice:secret@127.0.0.1:1/orders")
    assert "127.0.0.1:1/orders as alice" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("own", "of_the_dsn"), [(2, ""), (600, "connect_timeout=1")])
def test_server_that_does_not_answer_is_given_up(colour: Colour, own: int, of_the_dsn: str) -> None:
    with silent_server() as port, pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{port}"):
        colour.connection(
            f"host=127.0.0.1 port={port} user=a password=secret sslmode=disable {of_the_dsn}", timeout_s=own
        )


@pytest.mark.parametrize("dsn", ["bogus", "postgresql://[", "host=a nonsense=b"])
def test_dsn_that_makes_no_sense_is_refused(colour: Colour, dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="DSN"):
        colour.connection(dsn)


def test_both_spellings_of_a_dsn_lead_to_the_same_place(colour: Colour, database: str) -> None:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    pairs = make_conninfo("", **{**conninfo_to_dict(database), "options": "-c statement_timeout=1234"})
    connection = colour.connection(pairs)
    assert connection.run(call("SELECT current_database(), current_setting('statement_timeout')")) == [
        (conninfo_to_dict(database)["dbname"], "1234ms")
    ]


def test_first_host_that_answers_is_used(colour: Colour, database: str) -> None:
    with Proxy(database) as proxy:
        one_dead = proxy.dsn.replace("host=127.0.0.1", "host=127.0.0.1,127.0.0.1").replace("port=", "port=1,")
        assert colour.connection(one_dead).run(call("SELECT 1")) == [(1,)]


def test_a_session_that_has_missed_a_segment_is_left(colour: Colour, database: str) -> None:
    """PostgreSQL's answer to a row for which it knows no table is the same, whatever the reason."""
    connection = colour.connection(database)
    missing = call(
        "INSERT INTO logstore.batches (base_offset, last_offset, append_time, max_timestamp,"
        " segment_max_timestamp, segment_min_timestamp, segment_disorder, segment_bytes, topic_id, segment,"
        ' "partition", record_count, leader_epoch, size_bytes, timestamp_type)'
        " SELECT 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 0, 1, 0, 0, 0",
        writes=True,
    )
    with pytest.raises(StaleSessionError) as raised:
        connection.run(missing)
    assert raised.value.retriable
    assert connection.closed


def test_a_connection_that_is_dropped_between_two_messages_is_lost(database: str) -> None:
    """As when a follower is given up while asyncpg asks for a type, and finds that it has no protocol."""

    async def story() -> None:
        connection = await Connection.open(parameters_of(database), timeout_s=LONG_S, application_name="test")
        raw = connection._raw

        async def overtaken() -> Any:
            connection.abort()
            return raw._protocol.bind_execute

        with pytest.raises(ConnectionFailedError, match="it was dropped"):
            await connection._bounded(overtaken(), LONG_S, committing=False)
        await connection.close()

    asyncio.run(story())
