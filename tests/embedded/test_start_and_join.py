"""One server for everybody, from the first user to the last."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from logstore.embedded import EmbeddedServer, ServerStatus
from logstore.embedded.home import Home, Lock
from logstore.errors import EmbeddedServerError
from tests.support.programs import eventually, line_of, lives, program
from tests.support.servers import SETTINGS

USER = """
    import sys
    from pathlib import Path
    from logstore.embedded import EmbeddedServer
    import psycopg
    with EmbeddedServer(Path(sys.argv[1]), {"fsync": "off"}, idle_s=10).start_or_join() as handle:
        with psycopg.connect(handle.dsn) as connection:
            connection.execute("SELECT 1")
        print(handle.status.postmaster_pid, handle.status.supervisor_pid, flush=True)
        sys.stdin.read()
"""


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_the_first_start_makes_everything(home: Path) -> None:
    server = EmbeddedServer(home / "new" / "home", SETTINGS)
    with server.start_or_join() as handle:
        assert ask(handle.dsn, "SELECT current_database()") == "logstore"
        assert ask(handle.dsn, "SELECT current_user") == "logstore"
        assert ask(handle.dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert ask(handle.superuser_dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is True
        assert server.dsn == handle.dsn
        assert server.status().running
    assert server.stop()


def test_only_the_user_can_reach_it(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        assert ask(handle.dsn, "SHOW listen_addresses") == ""
        for directory in (handle.status.data_directory, handle.status.socket_directory):
            assert stat.S_IMODE(Path(directory).stat().st_mode) == 0o700
        socket = Path(handle.status.socket_directory) / ".s.PGSQL.5432"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert socket.stat().st_uid == os.geteuid()


def test_settings_reach_the_server_and_cannot_open_it(used_home: Path) -> None:
    wanted = {**SETTINGS, "work_mem": "7MB", "listen_addresses": "*", "logstore.odd": "it's, \\ odd"}
    with EmbeddedServer(used_home, wanted).start_or_join() as handle:
        assert ask(handle.dsn, "SHOW work_mem") == "7MB"
        assert ask(handle.dsn, "SHOW listen_addresses") == ""
        assert ask(handle.dsn, "SHOW logstore.odd") == "it's, \\ odd"
        assert ask(handle.dsn, "SHOW jit") == "off"
        assert ask(handle.dsn, "SHOW autovacuum") == "on"


def test_many_processes_start_at_once_and_share_one_server(home: Path) -> None:
    with (
        program(USER, home) as a,
        program(USER, home) as b,
        program(USER, home) as c,
        program(USER, home) as d,
    ):
        answers = {line_of(user.stdout) for user in (a, b, c, d)}
        assert len(answers) == 1
        assert "" not in answers


def test_joining_takes_no_new_server(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as first, embedded_server.start_or_join() as second:
        assert first.status.postmaster_pid == second.status.postmaster_pid


def test_stops_when_the_last_user_has_gone(used_home: Path) -> None:
    server = EmbeddedServer(used_home, SETTINGS, idle_s=0)
    first, second = server.start_or_join(), server.start_or_join()
    first.close()
    assert ask(second.dsn, "SELECT 1") == 1
    second.close()
    eventually(lambda: not server.home.alive(), "the supervisor has gone")
    found = server.status()
    assert (found.phase, found.deliberate) == ("stopped", False)
    assert not lives(second.status.postmaster_pid)


def test_whoever_comes_while_it_stops_for_want_of_users_gets_a_server(used_home: Path) -> None:
    server = EmbeddedServer(used_home, SETTINGS, idle_s=0)
    for _ in range(3):
        with server.start_or_join() as handle:
            assert ask(handle.dsn, "SELECT 1") == 1
        eventually(lambda: server.status().phase != "ready", "it begins to stop")


def test_records_outlive_the_server(embedded_server: EmbeddedServer) -> None:
    with (
        embedded_server.start_or_join() as handle,
        psycopg.connect(handle.dsn, autocommit=True) as connection,
    ):
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert embedded_server.stop()
    with embedded_server.start_or_join() as handle:
        assert ask(handle.dsn, "SELECT answer FROM kept") == 42


def test_stop_is_final_for_those_who_used_it(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        assert embedded_server.stop()
        assert not embedded_server.stop()
        found = embedded_server.status()
        assert (found.phase, found.deliberate) == ("stopped", True)
        with pytest.raises(EmbeddedServerError, match="logstore down"):
            handle.revive()
        with pytest.raises(EmbeddedServerError, match="does not run"):
            _ = embedded_server.dsn


def test_a_start_that_is_told_to_stop_again_and_again_is_no_death(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[EmbeddedServer] = []

    def spawn(self: EmbeddedServer) -> None:
        spawned.append(self)
        there = len(spawned) == 6
        self.home.write_status(ServerStatus("ready" if there else "stopped", str(home), deliberate=not there))

    monkeypatch.setattr(EmbeddedServer, "_spawn", spawn)
    for name in ("alive", "answers"):
        monkeypatch.setattr(Home, name, lambda _: len(spawned) == 6)
    EmbeddedServer(home).start_or_join().close()
    assert len(spawned) == 6
    spawned.clear()


def test_a_throw_away_server_leaves_nothing(used_home: Path) -> None:
    server = EmbeddedServer(used_home, SETTINGS, idle_s=0, throw_away=True)
    server.start_or_join().close()
    eventually(lambda: not used_home.exists(), "the directory is removed")


def test_a_removed_directory_stops_the_server(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        embedded_server.home.users.unlink()
        eventually(lambda: not lives(handle.status.postmaster_pid), "the server has stopped")


def test_nobody_goes_on_in_a_directory_that_is_gone(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        shutil.rmtree(embedded_server.home.path)
        eventually(lambda: not lives(handle.status.supervisor_pid), "the supervisor has left")
        assert not lives(handle.status.postmaster_pid)
        with pytest.raises(EmbeddedServerError, match="cannot be used: No such file"):
            handle.revive()


def test_a_long_path_gets_a_socket_elsewhere(home: Path) -> None:
    server = EmbeddedServer(home / ("long" * 30), SETTINGS, throw_away=True)
    with server.start_or_join() as handle:
        assert ask(handle.dsn, "SELECT 1") == 1
        assert handle.status.socket_directory.startswith("/tmp/logstore-")
    assert server.stop()
    assert not Path(handle.status.socket_directory).exists()


def test_a_path_with_odd_characters(home: Path) -> None:
    server = EmbeddedServer(home / 'it\'s "odd", 100% ü', SETTINGS, throw_away=True)
    with server.start_or_join() as handle:
        assert ask(handle.dsn, "SELECT 1") == 1
    assert server.stop()


def test_whoever_was_given_the_dsn_is_a_user_too(used_home: Path) -> None:
    server = EmbeddedServer(used_home, SETTINGS, idle_s=0)
    handle = server.start_or_join()
    with psycopg.connect(handle.dsn, autocommit=True) as connection:
        looked = "SELECT sessions FROM pg_stat_database WHERE datname = 'postgres'"

        def times() -> int:
            row = connection.execute(looked).fetchone()
            assert row is not None
            return int(row[0])

        before = times()
        handle.close()
        eventually(lambda: times() >= before + 2, "the supervisor has looked twice who is connected")
    eventually(lambda: not server.home.alive(), "it stopped when nobody was")


def test_closing_twice_does_no_harm(embedded_server: EmbeddedServer) -> None:
    handle = embedded_server.start_or_join()
    handle.close()
    handle.close()


def test_what_another_release_wrote_is_understood(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        words = json.loads(embedded_server.home.status_file.read_text())
        del words["deliberate"]
        embedded_server.home.status_file.write_text(json.dumps(words | {"mood": "sunny"}))
        with embedded_server.start_or_join() as other:
            assert other.dsn == handle.dsn


def test_a_server_of_another_container_is_not_stopped_from_here(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle, program("input()") as stranger:
        status = replace(handle.status, supervisor_pid=stranger.pid)
        embedded_server.home.write_status(status)
        with pytest.raises(EmbeddedServerError, match="another container"):
            embedded_server.stop()
        assert lives(stranger.pid)
        embedded_server.home.write_status(handle.status)


def test_a_supervisor_that_ends_just_now_is_not_taken_for_another_containers(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory, and with it its command line, goes before its locks; a zombie has neither."""
    server = EmbeddedServer(home)
    terminate = EmbeddedServer._terminate
    with subprocess.Popen([sys.executable, "-c", ""]) as ended, Lock(server.home.supervisor) as lock:
        eventually(lambda: not lives(ended.pid), "it has ended")
        assert lock.take()
        server.home.write_status(ServerStatus("stopping", str(home), supervisor_pid=ended.pid))

        def then_let_go(self: EmbeddedServer, pid: int) -> None:
            terminate(self, pid)
            lock.close()

        monkeypatch.setattr(EmbeddedServer, "_terminate", then_let_go)
        assert server.stop()


def test_the_home_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LOGSTORE_HOME", str(home))
    assert EmbeddedServer().home.path == home
    monkeypatch.setenv("LOGSTORE_HOME", "~nobody-of-this-name/log")
    with pytest.raises(EmbeddedServerError, match="nobody-of-this-name"):
        EmbeddedServer()
    monkeypatch.setenv("LOGSTORE_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    assert EmbeddedServer().home.path.is_relative_to(home)


def test_tables_of_users_stay_out_of_the_log(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle, psycopg.connect(handle.dsn) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS logstore")
        connection.execute("CREATE TABLE mine (id int)")
        row = connection.execute(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'mine'::regclass"
        ).fetchone()
    assert row == ("public",)
