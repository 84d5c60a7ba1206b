"""When the supervisor thinks that nobody uses the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logstore.embedded.attendant import Attendant
from logstore.embedded.cluster import Cluster, rotate
from logstore.embedded.home import Home, Lock, ServerStatus
from logstore.embedded.orders import Orders
from logstore.embedded.supervisor import Supervisor


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """One that has started nothing; nobody is connected."""
    monkeypatch.setattr(Cluster, "connections", lambda _: 0)
    made = Supervisor(Orders(str(tmp_path), idle_s=60), Lock(tmp_path / "supervisor.lock"))
    made._last_user = 0.0
    return made


def come_and_go(home: Home, seconds_ago: float) -> None:
    """What a user leaves on the file."""
    moment = home.users.stat().st_ctime - seconds_ago
    os.utime(home.users, (moment, moment))


def test_a_share_of_the_lock_is_a_user(supervisor: Supervisor) -> None:
    come_and_go(supervisor.home, 1000)
    with Lock(supervisor.home.users) as user:
        assert user.take(shared=True)
        assert not supervisor._unused()
        assert not supervisor._unused()
    supervisor._last_user = 0.0
    assert supervisor._unused()


def test_the_time_counts_from_the_last_user(supervisor: Supervisor) -> None:
    with Lock(supervisor.home.users) as user:
        assert user.take(shared=True)
        assert not supervisor._unused()
    assert not supervisor._unused()


def test_who_came_and_went_between_two_looks_counts(supervisor: Supervisor) -> None:
    come_and_go(supervisor.home, 30)
    assert not supervisor._unused()
    supervisor._last_user = 0.0
    come_and_go(supervisor.home, 61)
    assert supervisor._unused()


def test_who_is_connected_counts(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    come_and_go(supervisor.home, 1000)
    monkeypatch.setattr(Cluster, "connections", lambda _: 1)
    assert not supervisor._unused()
    monkeypatch.setattr(Cluster, "connections", lambda _: 0)
    assert not supervisor._unused()


def test_newcomers_wait_while_it_stops(supervisor: Supervisor) -> None:
    come_and_go(supervisor.home, 1000)
    with Lock(supervisor.home.users) as user:
        assert supervisor._unused()
        assert not user.take(shared=True)


def test_newcomers_do_not_wait_when_it_only_looked(supervisor: Supervisor) -> None:
    come_and_go(supervisor.home, 0)
    with Lock(supervisor.home.users) as user:
        assert not supervisor._unused()
        assert user.take(shared=True)


def test_a_directory_that_was_replaced_is_not_home(supervisor: Supervisor) -> None:
    assert supervisor._at_home()
    supervisor.home.users.rename(supervisor.home.users.with_suffix(".old"))
    assert not supervisor._at_home()
    supervisor.home.users.touch()
    assert not supervisor._at_home()


def test_looking_for_users_does_not_make_a_replaced_directory_home(supervisor: Supervisor) -> None:
    come_and_go(supervisor.home, 0)
    supervisor.home.users.unlink()
    supervisor.home.users.touch()
    assert not supervisor._unused()
    assert not supervisor._at_home()


def test_nothing_is_said_in_a_replaced_directory(supervisor: Supervisor) -> None:
    supervisor.home.users.unlink()
    supervisor.home.users.touch()
    successors = ServerStatus("ready", str(supervisor.home.path), supervisor_pid=1)
    supervisor.home.write_status(successors)
    supervisor._say("stopped")
    text = supervisor.home.status_file.read_text()
    assert '"phase": "ready"' in text and '"supervisor_pid": 1' in text


def test_a_log_that_cannot_be_rotated_is_written_on(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    rotate(log)
    log.write_text("a word")
    log.with_suffix(".log.1").mkdir()
    rotate(log, limit=1)
    assert log.read_text() == "a word"
    log.with_suffix(".log.1").rmdir()
    rotate(log, limit=1)
    assert log.read_text() == ""
    assert log.with_suffix(".log.1").read_text() == "a word"


def test_a_worker_that_cannot_be_started_is_tried_again_later(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.note_log("logstore")
    home.worker_log.mkdir()
    attendant = Attendant(home)
    attendant._not_before = 0.0
    attendant.mind("postgresql://nowhere")
    assert attendant._process is None
    assert attendant._not_before > 0.0
    attendant.stop()
