"""The worker that an embedded server runs by itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from logstore.embedded import EmbeddedServer
from logstore.embedded.dsn import resolve
from tests.support.programs import eventually, lives
from tests.support.servers import SETTINGS

pytestmark = pytest.mark.long


@pytest.fixture
def at_home(used_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded server of this test is in ``used_home``, and runs a worker."""
    monkeypatch.setenv("LOGSTORE_HOME", str(used_home))
    monkeypatch.delenv("LOGSTORE_WORKER", raising=False)
    monkeypatch.delenv("LOGSTORE_DSN", raising=False)
    return used_home


def workers(dsn: str) -> list[int]:
    try:
        with psycopg.connect(dsn) as connection:
            return [row[0] for row in connection.execute("SELECT pid FROM logstore.workers")]
    except psycopg.OperationalError:
        return []


def one_worker(dsn: str, *, but: int = 0) -> int:
    """Wait until there is one, and not that one; its process."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [pid for pid in workers(dsn) if pid != but]
        return len(found) == 1

    eventually(there, "there is a worker", 60)
    return found[0]


def test_it_lives_and_dies_with_its_server(at_home: Path) -> None:
    server = EmbeddedServer(at_home, SETTINGS, idle_s=10)
    with server.start_or_join():
        used = resolve()
        assert used.keep is not None
        first = one_worker(used.dsn)
        # Killed: there is another one.
        os.kill(first, signal.SIGKILL)
        second = one_worker(used.dsn, but=first)
        # The server is killed: the worker finds the one that comes after it.
        before = server.status()
        os.kill(before.postmaster_pid, signal.SIGKILL)
        eventually(lambda: server.status().postmaster_pid not in (0, before.postmaster_pid), "a new server")
        assert one_worker(used.dsn) == second
        # The supervisor is killed: nothing is left.
        os.kill(server.status().supervisor_pid, signal.SIGKILL)
        eventually(lambda: not lives(second), "the worker is gone")
        # Its successor has one as well.
        used.keep.revive()
        third = one_worker(used.dsn, but=second)
        assert server.stop()
        assert not lives(third)
        used.keep.close()


def test_a_worker_that_hangs_is_replaced(at_home: Path) -> None:
    server = EmbeddedServer(at_home, SETTINGS, idle_s=10)
    with server.start_or_join():
        used = resolve()
        assert used.keep is not None
        first = one_worker(used.dsn)
        os.kill(first, signal.SIGSTOP)
        eventually(lambda: not lives(first), "it is gone")
        one_worker(used.dsn, but=first)
        used.keep.close()
        server.stop()


def test_one_process_works_for_all_logs_of_the_server(at_home: Path) -> None:
    server = EmbeddedServer(at_home, SETTINGS, idle_s=10)
    with server.start_or_join():
        one = resolve()
        assert one.keep is not None
        one_worker(one.dsn)
        two = resolve(schema="other")
        assert two.keep is not None

        def both() -> bool:
            with psycopg.connect(one.dsn) as connection:
                found = connection.execute(
                    "SELECT a.pid, b.pid FROM logstore.workers a, other.workers b"
                ).fetchall()
            return len(found) == 1 and found[0][0] == found[0][1]

        eventually(both, "a worker for both")
        one.keep.close()
        two.keep.close()
        server.stop()


def test_the_server_stops_when_only_its_worker_uses_it(at_home: Path) -> None:
    server = EmbeddedServer(at_home, SETTINGS, idle_s=1)
    with server.start_or_join():
        used = resolve()
        assert used.keep is not None
        pid = one_worker(used.dsn)
        used.keep.close()
    eventually(lambda: server.status().phase == "stopped", "the server stops")
    eventually(lambda: not lives(pid), "so does the worker")


def test_it_can_be_left_out(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSTORE_WORKER", "off")
    server = EmbeddedServer(at_home, SETTINGS, idle_s=2)
    server.home.note_log("logstore")
    server.start_or_join().close()
    eventually(lambda: server.status().phase == "stopped", "the server stops by itself")
    assert not (at_home / "worker.log").exists()


def test_where_no_log_is_there_is_no_worker(at_home: Path) -> None:
    server = EmbeddedServer(at_home, SETTINGS, idle_s=1)
    server.start_or_join().close()
    eventually(lambda: server.status().phase == "stopped", "the server stops by itself")
    assert not (at_home / "worker.log").exists()
