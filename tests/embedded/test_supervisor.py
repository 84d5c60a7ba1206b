"""When the supervisor thinks that nobody uses the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logstore.embedded.cluster import Cluster
from logstore.embedded.home import Home, Lock
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
