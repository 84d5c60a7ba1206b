"""Nobody waits for a job, whoever has a transaction open; and who reads loses nothing that is not past."""

from __future__ import annotations

import json
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from logstore import Consumer, TopicPartition
from logstore.embedded import binaries
from logstore.errors import OffsetOutOfRangeError
from logstore.workers import connections
from tests.support import audit, jobs
from tests.support.log_story import JOBS, TOPICS, Story, connect, goes_on, told
from tests.support.log_view import visible
from tests.support.programs import PATIENCE_S, eventually
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.sqllog import Session, append, rows, value

pytestmark = pytest.mark.long

MOST_MS = 50
"""What an append or a read may wait for at most."""
PATIENCE_MS = 200
"""How long a job waits for each lock that it does not get: longer than anybody may wait for it."""


@pytest.fixture(scope="module")
def story(server: Server) -> Iterator[Story]:
    with told(server) as made:
        yield made


def watch(session: Session, condition: str) -> Callable[[], bool]:
    """Some other session of this database is in that condition."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
    return lambda: bool(value(session, sessions + condition))


@contextmanager
def working(dsn: str) -> Iterator[None]:
    """The jobs run, over and over, meanwhile."""
    enough = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not enough.is_set():
                jobs.run(dsn, *JOBS, reclaim={"lock_timeout_ms": PATIENCE_MS})
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    assert failed == []


@pytest.mark.timeout(400)
def test_no_append_and_no_read_waits_for_a_job(
    story: Story, long_version: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at between any two requests of the jobs: whatever locks they keep, nobody needs those."""
    # Looking may take longer, on a busy machine, than a job may be idle.
    assert connections.Limits.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(connections.Limits.__init__.__kwdefaults__, "idle_timeout_ms", 120_000)
    waited: list[str] = []
    turn = threading.Lock()
    requests = 0

    def look(data: bytes, send: Callable[[], None]) -> None:
        nonlocal requests
        with turn:
            requests += 1
            if requests % (1 if long_version else 12) == 0:
                waited.extend(goes_on(dsn, lock_timeout_ms=MOST_MS))
        send()

    with story.copy() as dsn, Proxy(dsn) as proxy:
        proxy.on_request = look
        jobs.settle(proxy.dsn, JOBS)
        assert waited == []
        assert requests > 50
        assert story.faults(dsn) == []


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_beside_a_transaction_that_has_read_the_log(story: Story, isolation: str) -> None:
    with story.copy() as dsn, closing(connect(dsn)) as reader, closing(connect(dsn)) as observer:
        reader.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        before = {topic: visible(reader, topic) for topic in TOPICS}
        with working(dsn):
            eventually(
                lambda: value(observer, "SELECT count(*) FROM dropped_segment") > 3, "segments are dropped"
            )
            eventually(
                watch(observer, "application_name = 'logstore reclaim' AND wait_event_type = 'Lock'"),
                "a job waits for the reader",
            )
            for _ in range(4):
                assert goes_on(dsn, lock_timeout_ms=MOST_MS) == []
            if isolation == "REPEATABLE READ":
                assert {topic: visible(reader, topic) for topic in TOPICS} == before
            else:
                for topic in TOPICS:
                    visible(reader, topic)
        reader.execute("COMMIT")
        jobs.settle(dsn, JOBS)
        assert story.faults(dsn) == []


def test_beside_pg_dump(story: Story, server: Server) -> None:
    """It has locked all tables and is in the middle of its work: what it writes is the log as it was."""
    programs = binaries.find()
    with story.copy() as dsn, closing(connect(dsn)) as session:
        before = {topic: visible(session, topic) for topic in TOPICS}
        dump = subprocess.Popen(
            [programs.directory / "pg_dump", "--no-owner", "--no-acl", dsn],
            stdout=subprocess.PIPE,
            text=True,
            env=programs.environment(),
        )
        assert dump.stdout is not None
        with dump:
            try:
                # It writes when it has locked everything, and much more than fits into a pipe.
                assert select.select([dump.stdout], [], [], PATIENCE_S)[0]
                with working(dsn):
                    eventually(
                        lambda: value(session, "SELECT count(*) FROM dropped_segment") > 3,
                        "segments are dropped",
                    )
                    for _ in range(4):
                        assert goes_on(dsn, lock_timeout_ms=MOST_MS) == []
                text = dump.stdout.read()
            finally:
                dump.kill()
        assert dump.returncode == 0
        jobs.settle(dsn, JOBS)
        assert story.faults(dsn) == []
        restored = server.create(migrated=False)
        try:
            done = subprocess.run(
                [programs.directory / "psql", "--quiet", "--set=ON_ERROR_STOP=1", restored],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                env=programs.environment(),
            )
            assert done.returncode == 0, done.stderr
            with closing(connect(restored)) as session:
                assert {topic: visible(session, topic) for topic in TOPICS} == before
            assert audit.faults(restored, left=False) == []
        finally:
            server.drop(restored)


# -- a consumer, part of whose log is dropped under it -----------------------------------------------------


@pytest.fixture
def dropped(database: str) -> Iterator[Callable[[], int]]:
    """Topic ``t`` has records 0 to 99; a call drops most of them, and answers where it starts then."""
    with closing(connect(database)) as session:
        configs = {"segment.bytes": "500", "file.delete.delay.ms": "0", "retention.bytes": "3000"}
        topic = value(session, "SELECT create_topic('t', 1, %s)", json.dumps(configs))
        for number in range(100):
            append(session, topic, [b"%d" % number + b"." * 100], keys=[b"key"])

        def drop() -> int:
            jobs.settle(database)
            start = value(session, "SELECT log_start FROM topic_partition WHERE topic_id = %s", topic)
            assert 50 < start < 95
            assert value(session, "SELECT count(*) FROM pg_class WHERE relname ~ '^b_1_[0-9]+$'") < 15
            return int(start)

        yield drop


def offsets(consumer: Any, end: int) -> list[int]:
    """Of what is read until there is nothing before ``end`` any more."""
    got: list[int] = []
    while consumer.position(TopicPartition("t", 0)) < end:
        # At the end of the log there is nothing to wait for.
        for records in consumer.poll(timeout_ms=100).values():
            got += [record.offset for record in records]
    return got


def consumer_at(database: str, offset: int, reset: str, **options: Any) -> Consumer:
    made = Consumer(
        dsn=database, auto_offset_reset=reset, max_poll_records=1, max_partition_fetch_bytes=300, **options
    )
    made.assign([TopicPartition("t", 0)])
    made.seek(TopicPartition("t", 0), offset)
    return made


def test_earliest_goes_on_where_the_log_starts(database: str, dropped: Callable[[], int]) -> None:
    with consumer_at(database, 3, "earliest") as consumer:
        assert offsets(consumer, 6) == [3, 4, 5]
        start = dropped()
        got = offsets(consumer, 100)
    # What it had fetched already may come first.
    ahead = [offset for offset in got if offset < start]
    assert ahead == list(range(6, 6 + len(ahead)))
    assert got[len(ahead) :] == list(range(start, 100))


def test_latest_goes_on_at_the_end(database: str, dropped: Callable[[], int]) -> None:
    with consumer_at(database, 3, "latest") as consumer:
        start = dropped()
        got = offsets(consumer, 100)
    assert [offset for offset in got if offset >= start] == []


def test_none_is_told(database: str, dropped: Callable[[], int]) -> None:
    with consumer_at(database, 3, "none") as consumer:
        assert offsets(consumer, 4) == [3]
        start = dropped()
        with pytest.raises(OffsetOutOfRangeError) as caught:
            offsets(consumer, 100)
    assert str(start) in str(caught.value) + str(caught.value.details)


def test_the_lag_of_a_group_counts_what_is_there(database: str, dropped: Callable[[], int]) -> None:
    with consumer_at(database, 0, "earliest", group_id="g", enable_auto_commit=False) as consumer:
        consumer.commit({TopicPartition("t", 0): 4})
        start = dropped()
    with closing(connect(database)) as session:
        assert rows(session, 'SELECT lag FROM group_lag WHERE "group" = %s', "g") == [(100 - start,)]


def test_a_reader_in_the_middle_of_a_segment_that_goes(database: str, dropped: Callable[[], int]) -> None:
    """A cursor that has been opened keeps what it reads; the table goes when it is closed."""
    with psycopg.connect(database, options="-c search_path=logstore") as connection:
        connection.execute(
            'DECLARE c CURSOR FOR SELECT "offset" FROM records WHERE topic = \'t\' ORDER BY "offset"'
        )
        first = connection.execute("FETCH 5 FROM c").fetchall()
        with closing(connect(database)) as session:
            jobs.run(database, *jobs.CLEANING, reclaim={"lock_timeout_ms": PATIENCE_MS})
            assert value(session, "SELECT log_start FROM topic_partition") > 50
        rest = connection.execute("FETCH ALL FROM c").fetchall()
    assert [offset for (offset,) in first + rest] == list(range(100))
    dropped()
