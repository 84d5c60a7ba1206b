"""The fixtures of this suite do what they say, and clean up whatever happens."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.programs import eventually, kill, line_of, program
from tests.support.servers import Server


@pytest.mark.every_server
def test_a_database_has_the_schema_and_needs_no_superuser(database: str) -> None:
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT current_setting('is_superuser'), logstore.schema_version()"
        ).fetchone()
    assert row is not None
    assert row[0] == "off"


def test_an_empty_database_is_empty(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        row = connection.execute("SELECT to_regnamespace('logstore')").fetchone()
    assert row == (None,)


def test_each_database_is_another(server: Server) -> None:
    first, second = server.create(), server.create()
    assert first != second
    server.drop(first)
    server.drop(second)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(first)


def test_behind_pgbouncer_each_transaction_may_get_another_server_connection(pgbouncer_dsn: str) -> None:
    with psycopg.connect(pgbouncer_dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        assert connection.info.backend_pid != row[0]


def test_nothing_is_left_when_the_tests_are_killed() -> None:
    text = """
        import sys
        from tests.support.servers import embedded
        with embedded() as server:
            server.create(migrated=False)
            print(server.home, flush=True)
            sys.stdin.read()
    """
    with program(text) as tests:
        home = Path(line_of(tests.stdout))
        assert (home / "data").is_dir()
        kill(tests.pid)
        eventually(lambda: not home.exists(), "the server and its directory are gone")
