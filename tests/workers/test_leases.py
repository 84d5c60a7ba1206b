"""Who runs a job: the database decides."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from logstore.errors import ConnectionFailedError
from logstore.workers.leases import Leases
from tests.support.log import watch


@pytest.fixture
def one(database: str) -> Iterator[Leases]:
    leases = Leases(database, "logstore", ["job"])
    leases.beat([], say=True)
    yield leases
    leases.close()


@pytest.fixture
def other(database: str) -> Iterator[Leases]:
    leases = Leases(database, "logstore", ["job"])
    leases.beat([], say=True)
    yield leases
    leases.close()


def lose(dsn: str) -> None:
    """The lease has run out."""
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE logstore.worker_job SET lease_until = now() - interval '1 s'")


@pytest.mark.every_server
def test_one_at_a_time(one: Leases, other: Leases) -> None:
    assert one.claim("job") == 0
    assert other.claim("job") is None
    assert other.claim("job", at_once=True) is None
    assert one.claim("job") is None
    (standing,) = other.beat([], say=False)
    assert not standing.mine
    assert 0 < standing.due_in_s <= 6
    one.finish("job", "done", {"records": 1}, 60)
    (standing,) = other.beat([], say=False)
    assert 50 < standing.due_in_s <= 60


def test_not_before_its_time_unless_asked_for(one: Leases, other: Leases) -> None:
    one.claim("job")
    one.finish("job", "done", {}, 60)
    assert other.claim("job") is None
    assert other.claim("job", at_once=True) == 0


@pytest.mark.every_server
def test_a_lost_job_is_taken_over(database: str, one: Leases, other: Leases) -> None:
    assert one.claim("job") == 0
    lose(database)
    assert watch(database, "SELECT state FROM logstore.worker_jobs") == "lost"
    assert other.claim("job") == 1
    # Whoever lost it can neither renew it nor say what it came to.
    (standing,) = one.beat(["job"], say=False)
    assert not standing.mine
    one.finish("job", "late", {"late": True}, 0)
    assert watch(database, "SELECT state FROM logstore.worker_jobs") == "running"
    other.finish("job", "done", {"late": False}, 0)
    assert watch(database, "SELECT result FROM logstore.worker_jobs") == {"late": False}


def test_a_lease_is_renewed_while_it_runs(database: str, one: Leases, other: Leases) -> None:
    one.claim("job")
    lose(database)
    one.beat(["job"], say=False)
    assert other.claim("job") is None


def test_failures_are_counted_in_a_row(one: Leases) -> None:
    for failures in (0, 1, 2):
        assert one.claim("job") == failures
        one.finish("job", "broke", None, 0)
    assert one.claim("job") == 3
    # Broken off is no failure.
    one.finish("job", None, None, 0)
    assert one.claim("job") == 3
    one.finish("job", "done", {}, 0)
    assert one.claim("job") == 0


def test_who_leaves_lets_go(database: str, one: Leases, other: Leases) -> None:
    one.claim("job")
    assert watch(database, "SELECT count(*) FROM logstore.workers") == 2
    one.leave()
    assert other.claim("job") == 0
    assert watch(database, "SELECT worker FROM logstore.workers") == other.worker_id


def test_paused(database: str, one: Leases) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT logstore.pause_job('job', true)")
    assert one.claim("job") is None
    assert one.beat([], say=False)[0].paused
    assert one.claim("job", at_once=True) == 0


@pytest.mark.parametrize(
    "arguments", ["'job', '* * * * *', 1000", "'job', null, 99", "'job', null, -1", "'', null, 1000"]
)
def test_no_schedule(database: str, arguments: str) -> None:
    with psycopg.connect(database) as connection, pytest.raises(psycopg.Error) as failure:
        connection.execute(f"SELECT logstore.schedule_job({arguments})".encode())
    assert failure.value.sqlstate == "LS054"


@pytest.mark.every_server
def test_it_connects_again(database: str, one: Leases) -> None:
    assert one.connection is not None
    one.connection.drop()
    with pytest.raises(ConnectionFailedError):
        one.beat([], say=False)
    assert one.beat([], say=False)
