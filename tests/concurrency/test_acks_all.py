"""acks="all" with a real follower: a receiver of the write-ahead log that confirms what it has flushed."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from logstore.embedded import binaries
from logstore.errors import NotEnoughReplicasError
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.log import records, watch
from tests.support.programs import eventually
from tests.support.proxy import Proxy
from tests.support.servers import Server

ENOUGH_S = 60.0
QUICK: dict[str, Any] = {"linger_ms": 0, "retry_backoff_ms": 1, "delivery_timeout_ms": 60_000}
Follow = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def follow(database: str, server: Server, tmp_path: Path) -> Iterator[Follow]:
    """Starts the follower that synchronous commits wait for, if there is any."""
    if server.superuser_dsn is None or server.home is None:
        pytest.skip("needs an embedded server")
    superuser_dsn = psycopg.conninfo.make_conninfo(server.as_superuser(database), application_name="follower")
    programs = binaries.find()
    started: list[subprocess.Popen[bytes]] = []
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:

        def wait_for(names: str) -> None:
            superuser.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            superuser.execute("SELECT pg_reload_conf()")

        def start() -> subprocess.Popen[bytes]:
            directory = tmp_path / f"wal{len(started)}"
            directory.mkdir()
            command = [programs.directory / "pg_receivewal", "--synchronous", "--no-loop", "-D", directory]
            follower = subprocess.Popen(
                [*map(str, command), "-d", superuser_dsn],
                env=programs.environment(),
                stderr=subprocess.DEVNULL,
            )
            started.append(follower)
            # Before anybody follows every commit would wait, that of a new topic as well.
            wait_for("ANY 1 (follower)")
            eventually(lambda: in_sync(database) == 2, "it follows")
            return follower

        try:
            yield start
        finally:
            wait_for("")
            for follower in started:
                follower.kill()
                follower.wait()


def in_sync(database: str) -> int:
    return int(watch(database, "SELECT logstore.insync_replicas()"))


def waiting(database: str) -> int:
    """Commits that wait for the follower."""
    return int(
        watch(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            " AND datname = current_database()",
        )
    )


def test_a_record_is_acknowledged_when_a_follower_has_it(
    colour: Colour, database: str, appender: Appender, follow: Follow
) -> None:
    appender.create("t", min_insync_replicas="2")

    def values() -> list[bytes | None]:
        return [each.value for each in records(database, "t")]

    with Proxy(database) as proxy:
        impatient = colour.producer(database, retries=0)
        with pytest.raises(NotEnoughReplicasError):
            impatient.send_and_wait("t", b"too early")
        assert values() == []

        follower = follow()
        producer = colour.producer(proxy.dsn, **QUICK)
        assert producer.send_and_wait("t", b"0").offset == 0

        follower.send_signal(signal.SIGSTOP)
        future = producer.send("t", b"1")
        eventually(lambda: waiting(database) == 1, "its commit waits")
        proxy.refuse()
        proxy.refuse(False)
        # The first commit still waits and holds the partition; the second attempt comes after it.
        eventually(lambda: blocked(database) == 1, "the second attempt has come")
        assert not future.done()
        follower.send_signal(signal.SIGCONT)
        assert future.get(ENOUGH_S).offset == 1
        assert values() == [b"0", b"1"]

        follower.kill()
        follower.wait()
        eventually(lambda: in_sync(database) == 1, "the server has noticed")
        with pytest.raises(NotEnoughReplicasError):
            impatient.send_and_wait("t", b"too late")
        assert values() == [b"0", b"1"]
        later = producer.send("t", b"2")
        eventually(lambda: producer.metrics()["record-retry-total"] > 3, "it is tried again and again")
        assert not later.done()
        follow()
        assert later.get(ENOUGH_S).offset == 2


def blocked(database: str) -> int:
    return int(
        watch(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()",
        )
    )


def test_a_repeated_batch_waits_for_the_follower_too(
    database: str, appender: Appender, follow: Follow
) -> None:
    """That it can be seen here does not mean that it is anywhere else."""
    number = appender.create("t")
    call = (
        "SELECT logstore.append(%s::int4, 0, 1, (extract(epoch FROM now()) * 1000)::int8, null, null,"
        " '{v}', null, null, null, %s::int2, 7, 0::int2, 0)"
    )
    follower = follow()
    with psycopg.connect(database, autocommit=True) as local, psycopg.connect(database) as strong:
        follower.send_signal(signal.SIGSTOP)
        assert local.execute(call, [number, 1]).fetchone() == ([0, -1, 0],)
        strong.autocommit = True
        strong.pgconn.send_query_params(
            call.replace("%s", "$1", 1).replace("%s", "$2").encode(), [b"%d" % number, b"-1"]
        )
        eventually(lambda: waiting(database) == 1, "the repeated batch waits")
        assert [each.value for each in records(database, "t")] == [b"v"]
        follower.send_signal(signal.SIGCONT)
        result = strong.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"{0,-1,0}"
        while strong.pgconn.get_result() is not None:
            pass
    assert len(records(database, "t")) == 1


def test_a_transaction_whose_wait_was_cancelled_is_asked_for_until_a_follower_has_it(
    colour: Colour, database: str, appender: Appender, follow: Follow
) -> None:
    """A cancelled wait is reported as success, and is none."""
    appender.create("t", min_insync_replicas="2")
    follower = follow()
    producer = colour.producer(database, transactional_id="t", retry_backoff_ms=1)
    producer.init_transactions()
    producer.begin_transaction()
    future = producer.send("t", b"1")
    follower.send_signal(signal.SIGSTOP)
    committing = threading.Thread(target=producer.commit_transaction)
    committing.start()
    eventually(lambda: waiting(database) == 1, "its commit waits")
    watch(
        database,
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        " AND datname = current_database()",
    )
    asking = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        " AND datname = current_database() AND query LIKE '%%await_transaction%%'"
    )
    eventually(lambda: watch(database, asking) == 1, "it asks, and waits again")
    assert not future.done()
    follower.send_signal(signal.SIGCONT)
    committing.join(ENOUGH_S)
    assert future.get(0).offset == 0
    assert [each.value for each in records(database, "t")] == [b"1"]
