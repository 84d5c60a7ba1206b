"""The fixtures of this suite do what they say, and clean up whatever happens."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support import prepared
from tests.support.programs import eventually, kill, line_of, program
from tests.support.servers import Server, embedded


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


def test_what_is_prepared_is_made_once_and_gone_at_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "place"
    directory.mkdir()
    made: list[Path] = []
    with prepared.place(directory):
        assert prepared.once("one", made.append) == prepared.once("one", made.append) == directory / "one"
        # Other processes of the run find it.
        text = "from tests.support import prepared; print(prepared.once('one', None))"
        with program(text) as another:
            assert line_of(another.stdout) == str(directory / "one")
    assert made == [directory / "one"]
    assert not directory.exists()


def test_where_nothing_can_be_prepared_servers_are_made_as_users_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "gone"))
    with embedded() as server:
        dsn = server.create()
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM logstore.topics").fetchone() == (0,)


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
