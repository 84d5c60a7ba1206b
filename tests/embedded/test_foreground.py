"""`logstore up`, `down` and `status`, as the functions behind them."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from logstore.embedded import EmbeddedServer, ServerStatus, down, run_in_foreground, status
from logstore.embedded.home import Lock
from logstore.errors import EmbeddedServerError
from tests.support.programs import eventually, kill, line_of, lives, program

UP = """
    import sys
    from pathlib import Path
    from logstore.embedded import run_in_foreground
    run_in_foreground(lambda found: print(found.dsn, flush=True), Path(sys.argv[1]), {"fsync": "off"})
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_told(used_home: Path, number: signal.Signals) -> None:
    with program(UP, used_home) as up:
        dsn = line_of(up.stdout)
        found = status(used_home)
        assert (found.running, found.dsn) == (True, dsn)
        up.send_signal(number)
        assert line_of(up.stdout) == "stopped"
        assert up.wait() == 0
        assert not lives(found.postmaster_pid)
        assert status(used_home).deliberate


def test_it_ends_when_somebody_else_stops_the_server(used_home: Path) -> None:
    with program(UP, used_home) as up:
        line_of(up.stdout)
        assert down(used_home)
        assert line_of(up.stdout) == "stopped"
        assert not down(used_home)


def test_a_killed_server_is_started_again(used_home: Path) -> None:
    with program(UP, used_home) as up:
        line_of(up.stdout)
        before = status(used_home)
        kill(before.supervisor_pid)
        eventually(
            lambda: (now := status(used_home)).running and now.supervisor_pid != before.supervisor_pid,
            "it runs again",
        )
        assert status(used_home).dsn == before.dsn


def test_it_says_so_when_the_server_cannot_be_started_again(embedded_server: EmbeddedServer) -> None:
    def give_up(found: ServerStatus) -> None:
        embedded_server.home.write_status(replace(found, phase="failed", message="It died too often."))

    with pytest.raises(EmbeddedServerError, match="too often"):
        run_in_foreground(give_up, embedded_server.home.path)


def test_it_joins_a_server_that_runs(embedded_server: EmbeddedServer) -> None:
    with embedded_server.start_or_join() as handle, program(UP, embedded_server.home.path) as up:
        assert line_of(up.stdout) == handle.dsn
        assert status(embedded_server.home.path).postmaster_pid == handle.status.postmaster_pid


def test_signal_handlers_are_put_back(embedded_server: EmbeddedServer) -> None:
    def stop_at_once(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_in_foreground(stop_at_once, embedded_server.home.path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_nothing_is_said_of_a_home_that_is_not_there(home: Path) -> None:
    found = status(home / "nowhere")
    assert (found.phase, found.running, found.dsn) == ("stopped", False, "")
    assert not down(home / "nowhere")
    assert not (home / "nowhere").exists()


def test_a_handle_is_held_by_a_forked_child_until_it_exits(used_home: Path) -> None:
    text = """
        import os, signal, sys
        from pathlib import Path
        from logstore.embedded import EmbeddedServer
        handle = EmbeddedServer(Path(sys.argv[1]), {"fsync": "off"}, idle_s=0).start_or_join()
        child = os.fork()
        if child == 0:
            signal.pause()
        handle.close()
        print(child, flush=True)
        os._exit(0)
    """
    with program(text, used_home) as parent:
        child = int(line_of(parent.stdout))
        before = status(used_home).supervisor_pid
        parent.wait()
        try:
            looked = used_home / "users.lock"
            with Lock(looked) as lock:
                assert not lock.take(), "the child holds it"
            with EmbeddedServer(used_home).start_or_join() as handle:
                assert handle.status.supervisor_pid == before
        finally:
            kill(child)
        eventually(lambda: status(used_home).phase == "stopped", "it stopped when the child had gone")
