"""Worker processes that are killed, stopped and told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.log import watch
from tests.support.programs import REPOSITORY, eventually
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server

pytestmark = pytest.mark.long

SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
    "AND query LIKE '%%measure_topics%%' AND pid <> pg_backend_pid()"
)


@contextmanager
def worker(dsn: str, *options: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``logstore worker run``; killed at the end if it still runs then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "logstore.cli", "worker", "run", "--dsn", dsn, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=REPOSITORY,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def job(dsn: str, what: str, name: str = "statistics") -> Any:
    return watch(dsn, "SELECT " + what + " FROM logstore.worker_jobs WHERE job = %s", name)  # noqa: S608


def runs(dsn: str, process: subprocess.Popen[str]) -> bool:
    """The process runs the statistics job now."""
    pid = watch(
        dsn,
        "SELECT w.pid FROM logstore.worker_jobs j JOIN logstore.workers w USING (worker) "
        "WHERE j.job = 'statistics' AND j.state = 'running'",
    )
    return bool(pid == process.pid)


@pytest.fixture
def slow(database: str) -> str:
    """A log in which the statistics job takes a minute, in one statement."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION logstore.measure_topics(after_topic int4, at_most int4 DEFAULT 50) "
            "RETURNS TABLE (last_topic int4, topics int4, records int8, bytes int8) LANGUAGE plpgsql "
            "AS $$ BEGIN PERFORM pg_sleep(60); END $$"
        )
    return database


ONLY = ("--only", "statistics", "--every", "statistics=100ms")


def test_a_killed_worker_is_replaced_and_its_statement_ends(slow: str) -> None:
    with worker(slow, *ONLY) as first:
        eventually(lambda: runs(slow, first), "the first one runs the job")
        with worker(slow, *ONLY) as second:
            eventually(lambda: watch(slow, "SELECT count(*) FROM logstore.workers") == 2, "both are there")
            first.send_signal(signal.SIGKILL)
            eventually(lambda: runs(slow, second), "the second one runs the job")
            eventually(lambda: watch(slow, SLEEPING) == 1, "the statement of the first one ends")
            # That is also told: one failure in a row.
            assert job(slow, "failures") == 1


def test_a_stopped_worker_is_replaced_and_goes_on_later(slow: str) -> None:
    with worker(slow, *ONLY, "--log", "json") as first:
        eventually(lambda: runs(slow, first), "the first one runs the job")
        eventually(lambda: watch(slow, SLEEPING) == 1, "it is in the middle of a statement")
        with worker(slow, *ONLY) as second:
            first.send_signal(signal.SIGSTOP)
            eventually(lambda: runs(slow, second), "the second one runs the job")
            first.send_signal(signal.SIGCONT)
            # It finds that it is not its job any more, and does not disturb whose it is.
            assert first.stderr is not None
            messages = (json.loads(line).get("message", "") for line in first.stderr)
            assert "statistics: the lease was lost; ending the run" in messages
            assert runs(slow, second)


def test_told_to_end_in_the_middle_of_a_long_statement(slow: str) -> None:
    with worker(slow, *ONLY, "--grace", "0.2") as process:
        eventually(lambda: watch(slow, SLEEPING) == 1, "a long statement")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "statistics: broken off" in errors
    assert job(slow, "state") == "waiting"
    assert job(slow, "failures") == 0


def test_told_to_end_while_the_server_does_not_answer(server: Server, database: str) -> None:
    if server.home is None:
        pytest.skip("the server's processes are somebody else's")
    own = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    with worker(database, "--only", "statistics", "--grace", "0.5") as process:
        eventually(lambda: watch(database, own, "logstore worker") is not None, "the worker is connected")
        backend = watch(database, own, "logstore worker")
        os.kill(backend, signal.SIGSTOP)
        try:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            os.kill(backend, signal.SIGCONT)
        assert process.returncode == 0


@pytest.mark.parametrize("sent", [b"user", b"pg_backend_pid()"], ids=["connecting", "first statement"])
def test_told_to_end_while_it_waits_for_a_new_connection(database: str, sent: bytes) -> None:
    with Proxy(database) as proxy:
        # Spare the look at the schema, before it begins.
        proxy.strike(Fault.SILENCE, sent, after=1 if sent == b"user" else 0)
        with worker(proxy.dsn, "--only", "statistics") as process:
            eventually(lambda: proxy.cuts == 1, "the server is silent")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0
            assert "ends" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_while_nothing_runs(database: str, number: signal.Signals, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        with worker(database, "--log", "json", env={"NOTIFY_SOCKET": address}) as process:
            said = [manager.recv(100) for _ in range(3)]
            assert b"READY=1" in said
            assert b"WATCHDOG=1" in said
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0
        while said[-1] != b"STOPPING=1":
            said.append(manager.recv(100))
    lines = [json.loads(line) for line in errors.splitlines()]
    assert "begins" in lines[0]["message"]
    assert "ends" in lines[-1]["message"]
    assert watch(database, "SELECT count(*) FROM logstore.workers") == 0


def test_through_a_pooler(pgbouncer_dsn: str) -> None:
    with psycopg.connect(pgbouncer_dsn, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SELECT logstore.create_topic('t', 1)")
        with worker(pgbouncer_dsn) as process:
            connection.execute("SELECT logstore.produce('t', null, 'v'::text)")
            count = "SELECT count(*) FROM logstore.records"
            eventually(lambda: connection.execute(count).fetchone() == (1,), "a record is drained")
            pids = "SELECT pid FROM logstore.workers"
            assert connection.execute(pids).fetchall() == [(process.pid,)]
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 0
        assert connection.execute(pids).fetchall() == []
