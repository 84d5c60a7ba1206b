"""Upgrades, downgrades, and everybody doing it at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from logstore import errors, migrations
from logstore import schema as objects
from logstore.workers import reclaim
from tests.migration.catalog import catalog
from tests.support.servers import Server
from tests.support.sqllog import wait_until


@pytest.fixture(params=["postgres", "postgres15"])
def server_of_release(request: pytest.FixtureRequest) -> Server:
    name = {"postgres": "server", "postgres15": "postgres15"}[request.param]
    found: Server = request.getfixturevalue(name)
    return found


@pytest.fixture
def empty(server_of_release: Server) -> Iterator[str]:
    """The DSN of a database without a log."""
    dsn = server_of_release.create(migrated=False)
    yield dsn
    server_of_release.drop(dsn)


def look(dsn: str, schema: str = "logstore") -> dict[str, list[str]]:
    with psycopg.connect(dsn) as connection:
        return catalog(connection, schema)


def run(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def do(dsn: str, command: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(command)


def test_revisions_are_one_numbered_line() -> None:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    line = [script.revision for script in reversed(list(scripts.walk_revisions()))]
    assert line == [f"{number:04}" for number in range(1, len(line) + 1)]
    assert scripts.get_current_head() == migrations.REQUIRED_REVISION


@pytest.mark.every_server
def test_fresh_is_the_same_as_step_by_step(empty: str, server_of_release: Server) -> None:
    stepwise = server_of_release.create(migrated=False)
    try:
        migrations.upgrade(empty)
        for number in range(1, int(migrations.REQUIRED_REVISION) + 1):
            migrations.upgrade(stepwise, revision=f"{number:04}")
            assert migrations.status(stepwise).current == f"{number:04}"
        assert look(empty) == look(stepwise)
        assert migrations.status(stepwise) == migrations.status(empty)
        assert migrations.status(empty).up_to_date
    finally:
        server_of_release.drop(stepwise)


@pytest.mark.every_server
def test_down_and_up_again_keeps_every_object(empty: str) -> None:
    migrations.upgrade(empty)
    before = look(empty)
    if migrations.REQUIRED_REVISION > "0001":
        run(empty, "SELECT logstore.create_topic('t', 1), logstore.produce('t', 'k', 'v')")
        with pytest.raises(errors.SchemaError, match="1 records are committed"):
            migrations.downgrade(empty, "logstore", "0001")
        run(empty, "SELECT logstore.drain()")
        with_a_topic = look(empty)
        migrations.downgrade(empty, "logstore", "0001")
        status = migrations.status(empty)
        assert (status.current, status.functions_current) == ("0001", False)
        assert run(empty, "SELECT count(*) FROM logstore.batches") == [(1,)], "records stay"
        migrations.upgrade(empty)
        assert run(empty, "SELECT value_text FROM logstore.records") == [("v",)]
        assert look(empty) == with_a_topic, "its segments have every index"
        run(empty, "SELECT logstore.delete_topic('t')")
        reclaim.run_once(empty)
    assert look(empty) == before


@pytest.mark.every_server
def test_base_leaves_nothing(empty: str) -> None:
    do(empty, "CREATE TABLE public.mine AS SELECT 1 AS one")
    migrations.upgrade(empty)
    run(
        empty,
        "SELECT logstore.create_topic('a', 3), logstore.create_topic('b', 1), logstore.produce('a', 'k',"
        " 'v')",
    )
    run(empty, "SELECT logstore.delete_topic('b')")
    migrations.downgrade(empty, "logstore", "base")
    assert run(empty, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'logstore%'") == []
    assert run(empty, "SELECT one FROM public.mine") == [(1,)]
    assert migrations.status(empty).current is None
    migrations.downgrade(empty, "logstore", "base")
    migrations.upgrade(empty)
    assert run(empty, "SELECT * FROM logstore.topics") == []


def test_a_log_without_functions_can_be_taken_back_further(empty: str) -> None:
    migrations.upgrade(empty)
    run(empty, "SELECT logstore.create_topic('t' || n, 1) FROM generate_series(1, 12) n")
    migrations.downgrade(empty, "logstore", "0012")
    migrations.downgrade(empty, "logstore", "0011")
    assert migrations.status(empty).current == "0011"
    migrations.downgrade(empty, "logstore", "base")
    assert run(empty, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'logstore%'") == []


def test_everybody_at_once(empty: str) -> None:
    program = "import sys; from logstore import migrations; migrations.upgrade(sys.argv[1])"
    waiting = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'logstore schema'
          AND wait_event = 'advisory'"""
    with psycopg.connect(empty, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(hashtext('logstore schema'), hashtext('logstore'))")
        processes = [subprocess.Popen([sys.executable, "-c", program, empty]) for _ in range(3)]
        wait_until(lambda: run(empty, waiting) == [(3,)])
    with ThreadPoolExecutor(3) as pool:
        for upgrading in [pool.submit(migrations.upgrade, empty) for _ in range(3)]:
            upgrading.result()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert migrations.status(empty).up_to_date


def test_two_logs_in_one_database_know_nothing_of_each_other(empty: str) -> None:
    for schema in ("logstore", "second log"):
        migrations.upgrade(empty, schema)
    assert look(empty) == look(empty, "second log")
    run(empty, "SELECT logstore.create_topic('t', 1)")
    run(empty, "SELECT \"second log\".create_topic('t', 5)")
    run(empty, "SELECT \"second log\".produce('t', 'k', 'v')")
    run(empty, "SELECT logstore.drain()")
    run(empty, 'SELECT "second log".drain()')
    assert run(empty, "SELECT count(*) FROM logstore.records") == [(0,)]
    assert run(empty, 'SELECT count(*) FROM "second log_topics".t') == [(1,)]
    with psycopg.connect(empty, autocommit=True) as waiter, psycopg.connect(empty, autocommit=True) as waker:
        waiter.execute("SELECT logstore.waiting('{1}')")
        waiter.execute('LISTEN "second log_wake"')
        waiter.execute("LISTEN logstore_wake")
        waker.execute("SELECT \"second log\".wake('{1}')")
        waker.execute("SELECT logstore.wake('{1}')")
        assert [notice.channel for notice in waiter.notifies(timeout=5, stop_after=1)] == ["logstore_wake"]
    migrations.downgrade(empty, "logstore", "base")
    assert run(empty, 'SELECT count(*) FROM "second log".records') == [(1,)]


def test_functions_that_were_changed_are_put_back(empty: str) -> None:
    migrations.upgrade(empty)
    before = look(empty)
    replace = "CREATE OR REPLACE FUNCTION logstore.{} LANGUAGE sql {} RETURN 'old'"
    do(empty, replace.format("schema_fingerprint() RETURNS text", "IMMUTABLE"))
    do(empty, replace.format("schema_version() RETURNS text", "STABLE"))
    do(empty, "GRANT EXECUTE ON FUNCTION logstore.delete_topic TO pg_monitor")
    assert not migrations.status(empty).functions_current
    assert look(empty) != before
    migrations.upgrade(empty)
    assert migrations.status(empty).up_to_date
    do(empty, "REVOKE EXECUTE ON FUNCTION logstore.delete_topic FROM pg_monitor")
    assert look(empty) == before, "and grants are kept"


def test_a_newer_log_is_left_alone(empty: str) -> None:
    migrations.upgrade(empty)
    do(empty, "UPDATE logstore.alembic_version SET version_num = '9999'")
    with pytest.raises(errors.SchemaVersionError, match="9999"):
        migrations.upgrade(empty)
    assert migrations.status(empty).current == "9999"
    assert run(empty, "SELECT count(*) FROM logstore.topics") == [(0,)], "its functions still serve"


def test_a_failed_upgrade_changes_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "install_text", lambda: "SELECT 1/0")
    with pytest.raises(errors.LogstoreError, match="division by zero"):
        migrations.upgrade(empty)
    assert migrations.status(empty).current is None
    assert run(empty, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'logstore%'") == []


@pytest.fixture
def guest(empty: str) -> Iterator[str]:
    """The DSN of a role that may do nothing."""
    with psycopg.connect(empty, autocommit=True) as owner:
        owner.execute("CREATE ROLE logstore_test_guest LOGIN PASSWORD 'guest'")
        owner.execute("GRANT logstore_test_guest TO CURRENT_USER")
        try:
            yield psycopg.conninfo.make_conninfo(empty, user="logstore_test_guest", password="guest")
        finally:
            owner.execute("DROP OWNED BY logstore_test_guest CASCADE")
            owner.execute("DROP ROLE logstore_test_guest")


def test_who_may_not_create_schemas_can_be_given_two(empty: str, guest: str) -> None:
    with pytest.raises(errors.AuthorizationFailedError):
        migrations.upgrade(guest)
    for schema in ("logstore", "logstore_topics"):
        do(empty, f"CREATE SCHEMA {schema} AUTHORIZATION logstore_test_guest")
    migrations.upgrade(guest)
    assert run(guest, "SELECT logstore.create_topic('t', 1), logstore.produce('t', 'k', 'v')") == [(1, 0)]
    run(guest, "SELECT logstore.drain()")
    assert run(guest, "SELECT value_text FROM logstore_topics.t") == [("v",)]
    run(guest, "SELECT logstore.delete_topic('t')")
    assert reclaim.run_once(guest).dropped == (1,)


def test_schema_names_that_cannot_be(empty: str) -> None:
    for schema in ("", "pg_log", "x" * 57, "ü" * 29, "a\0b"):
        with pytest.raises(errors.InvalidArgumentError):
            migrations.upgrade(empty, schema)
        with pytest.raises(errors.InvalidArgumentError):
            migrations.status(empty, schema)


def test_no_server() -> None:
    with pytest.raises(errors.ConnectionFailedError) as caught:
        migrations.upgrade("host=127.0.0.1 port=1 password=secret connect_timeout=2")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_through_a_pooler(pgbouncer_dsn: str) -> None:
    assert migrations.status(pgbouncer_dsn).up_to_date
    migrations.upgrade(pgbouncer_dsn, "pooled_log")
    migrations.upgrade(pgbouncer_dsn, "pooled_log")
    assert look(pgbouncer_dsn, "pooled_log") == look(pgbouncer_dsn)
    migrations.downgrade(pgbouncer_dsn, "pooled_log", "base")
    assert migrations.status(pgbouncer_dsn, "pooled_log").current is None
