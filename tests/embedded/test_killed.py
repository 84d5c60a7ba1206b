"""kill -9 of anything, at any point:

the next user gets a server, nothing committed is lost, nothing is left behind.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from logstore.embedded import EmbeddedServer, Handle
from logstore.embedded.home import Lock
from logstore.embedded.orders import Orders
from logstore.errors import EmbeddedServerError
from tests.support.programs import eventually, kill, line_of, lives, program
from tests.support.servers import SETTINGS

pytestmark = pytest.mark.long

STARTER = """
    import sys
    from pathlib import Path
    from logstore.embedded import EmbeddedServer
    handle = EmbeddedServer(Path(sys.argv[1]), {"fsync": "off"}, idle_s=float(sys.argv[2])).start_or_join()
    print("ready", flush=True)
    sys.stdin.read()
"""


def works(handle: Handle) -> bool:
    with psycopg.connect(handle.dsn) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def nothing_runs(home: Path) -> bool:
    """No supervisor and no process of PostgreSQL works in ``home``."""
    for name in ("supervisor.lock", "postgres.lock"):
        with Lock(home / name) as lock:
            if not lock.take():
                return False
    return True


def remember(handle: Handle, word: str) -> None:
    with psycopg.connect(handle.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
        connection.execute("INSERT INTO words VALUES (%s)", [word])


def remembered(handle: Handle) -> list[str]:
    with psycopg.connect(handle.dsn) as connection:
        return [word for (word,) in connection.execute("SELECT word FROM words")]


def kill_and_see(pid: int) -> None:
    kill(pid)
    eventually(lambda: not lives(pid), "it is dead")


def supervisor_of(home: Path) -> int:
    """The supervisor's number as soon as it has said it, else 0."""
    return EmbeddedServer(home).status().supervisor_pid


def postmaster_of(home: Path, data: str = "data") -> int:
    try:
        return int((home / data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0


POINTS: dict[str, Callable[[Path], bool]] = {
    "when the supervisor has just been started": lambda home: (home / "supervisor.lock").exists(),
    "in the middle of initdb": lambda home: (home / "data.new" / "base").exists(),
    "when PostgreSQL is about to be ready": lambda home: postmaster_of(home) > 0,
}


@pytest.mark.parametrize("point", POINTS)
def test_the_client_that_starts_it_is_killed(home: Path, point: str) -> None:
    with program(STARTER, home, 10) as starter:
        eventually(lambda: POINTS[point](home), point)
        kill(starter.pid)
        starter.wait()
        with EmbeddedServer(home, SETTINGS).start_or_join() as handle:
            assert works(handle)


@pytest.mark.parametrize("point", POINTS)
def test_the_supervisor_is_killed_while_it_starts(home: Path, point: str) -> None:
    with program(STARTER, home, 10) as starter:
        eventually(lambda: POINTS[point](home) and supervisor_of(home) > 0, point)
        kill(supervisor_of(home))
        # Whoever waited for that supervisor starts another one.
        assert line_of(starter.stdout) == "ready"
        with EmbeddedServer(home, SETTINGS).start_or_join() as handle:
            assert works(handle)


def test_the_last_client_is_killed(used_home: Path) -> None:
    with program(STARTER, used_home, 0) as user:
        assert line_of(user.stdout) == "ready"
        found = EmbeddedServer(used_home).status()
        kill(user.pid)
        eventually(lambda: nothing_runs(used_home), "the server has stopped for want of users")
        assert not lives(found.postmaster_pid)


def test_the_supervisor_is_killed(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        remember(handle, "before")
        old = handle.status
        kill_and_see(old.supervisor_pid)
        with embedded_server.start_or_join() as other:
            assert other.status.postmaster_pid != old.postmaster_pid
            assert remembered(other) == ["before"]
            assert handle.revive() == other.status
            assert not lives(old.postmaster_pid)


def test_nothing_is_left_of_a_killed_supervisor(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        kill_and_see(handle.status.supervisor_pid)
        eventually(lambda: nothing_runs(embedded_server.home.path), "it has stopped with its supervisor")
        assert embedded_server.status().phase == "stopped"


def test_where_the_kernel_does_not_help_the_guard_stops_it(used_home: Path) -> None:
    class Guarded(EmbeddedServer):
        def __init__(self, home: Path) -> None:
            super().__init__(home, SETTINGS)
            self._orders = Orders(str(home), dict(SETTINGS), guard=True, bind=False)

    server = Guarded(used_home)
    with server.start_or_join() as handle:
        kill_and_see(handle.status.supervisor_pid)
        eventually(lambda: nothing_runs(used_home), "the guard has stopped the server")
        assert not lives(handle.status.postmaster_pid)
    with server.start_or_join() as handle:
        assert works(handle)


def test_an_orphan_that_nobody_stopped_is_evicted(used_home: Path) -> None:
    class Unbound(EmbeddedServer):
        def __init__(self, home: Path) -> None:
            super().__init__(home, SETTINGS)
            self._orders = Orders(str(home), dict(SETTINGS), guard=False, bind=False, patience_s=0)

    server = Unbound(used_home)
    with server.start_or_join() as handle:
        remember(handle, "before")
        old = handle.status
        kill_and_see(old.supervisor_pid)
        assert lives(old.postmaster_pid)
        assert remembered_by(server) == ["before"]
        assert not lives(old.postmaster_pid)


def remembered_by(server: EmbeddedServer) -> list[str]:
    with server.start_or_join() as handle:
        return remembered(handle)


def test_postgres_is_killed(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        remember(handle, "before")
        old = handle.status
        kill(old.postmaster_pid)
        eventually(
            lambda: (now := embedded_server.status()).running and now.postmaster_pid != old.postmaster_pid,
            "it runs again",
        )
        assert remembered(handle) == ["before"]
        assert embedded_server.status().supervisor_pid == old.supervisor_pid


def test_postgres_is_killed_while_it_starts(used_home: Path) -> None:
    with program(STARTER, used_home, 10) as starter:
        eventually(lambda: postmaster_of(used_home) > 0, "PostgreSQL has been started")
        kill(postmaster_of(used_home))
        assert line_of(starter.stdout) == "ready"


def test_one_backend_is_killed(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        remember(handle, "before")
        with psycopg.connect(handle.dsn) as victim:
            kill(victim.info.backend_pid)
            with pytest.raises(psycopg.OperationalError):
                victim.execute("SELECT pg_sleep(60)")

        def answers() -> bool:
            try:
                return remembered(handle) == ["before"]
            except psycopg.OperationalError:
                return False

        eventually(answers, "it answers again")
        assert embedded_server.status().postmaster_pid == handle.status.postmaster_pid


def test_everything_is_killed_at_once(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        remember(handle, "before")
        old = handle.status
        os.kill(old.supervisor_pid, signal.SIGSTOP)
        kill(old.postmaster_pid)
        kill_and_see(old.supervisor_pid)
    with embedded_server.start_or_join() as handle:
        assert remembered(handle) == ["before"]


def test_the_number_of_a_dead_postmaster_has_been_given_to_another_process(
    embedded_server: EmbeddedServer,
) -> None:
    with embedded_server.start_or_join() as handle:
        remember(handle, "before")
        os.kill(handle.status.supervisor_pid, signal.SIGSTOP)
        kill(handle.status.postmaster_pid)
        left = (embedded_server.home.path / "data" / "postmaster.pid").read_text()
        kill_and_see(handle.status.supervisor_pid)
        eventually(lambda: nothing_runs(embedded_server.home.path), "all are dead")
    with program("input()") as stranger:
        pid_file = embedded_server.home.path / "data" / "postmaster.pid"
        pid_file.write_text(left.replace(str(handle.status.postmaster_pid), str(stranger.pid), 1))
        with embedded_server.start_or_join() as again:
            assert remembered(again) == ["before"]
        assert lives(stranger.pid)


def test_a_server_somebody_started_by_hand_is_left_alone(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle:
        kill_and_see(handle.status.supervisor_pid)
        eventually(lambda: nothing_runs(embedded_server.home.path), "all are dead")
    data = embedded_server.home.path / "data"
    with program("import os, sys; os.chdir(sys.argv[1]); print('there', flush=True); input()", data) as other:
        assert line_of(other.stdout) == "there"
        (data / "postmaster.pid").write_text(f"{other.pid}\n{data}\n")
        with pytest.raises(EmbeddedServerError, match="lock file"):
            embedded_server.start_or_join()
        (data / "postmaster.pid").unlink()
