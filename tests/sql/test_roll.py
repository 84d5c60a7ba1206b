"""A partition that fills its segment makes its topic go on to the next one; nobody waits for that."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.support.servers import Server
from tests.support.sqllog import Connect, Session, append, rows, value, wait_until, waits_for_lock

pytestmark = pytest.mark.every_server

SEALED = """
    SELECT segment, partition, first_offset, last_offset, bytes
    FROM sealed_segment ORDER BY segment, partition"""


def create(session: Session, partitions: int = 2, **configs: Any) -> int:
    named = {name.replace("_", "."): text for name, text in configs.items()}
    created: int = value(session, "SELECT create_topic('t', %s, %s)", partitions, json.dumps(named))
    return created


def active(session: Session) -> int:
    found: int = value(session, "SELECT active_segment FROM topic WHERE name = 't'")
    return found


def leaves(session: Session) -> list[tuple[str, int, int, int]]:
    return rows(
        session,
        "SELECT tableoid::regclass::text, partition, base_offset, last_offset FROM batches"
        " ORDER BY partition, base_offset",
    )


def test_the_batch_that_reaches_the_size_is_the_last(session: Session) -> None:
    topic = create(session, segment_bytes=300)
    for _ in range(4):
        append(session, topic, [b"x" * 100])
    append(session, topic, [b"y"], partition=1)
    assert leaves(session) == [
        ("b_1_0", 0, 0, 0),
        ("b_1_0", 0, 1, 1),
        ("b_1_0", 0, 2, 2),
        ("b_1_1", 0, 3, 3),
        ("b_1_1", 1, 0, 0),
    ]
    size = value(session, "SELECT size_bytes FROM batches LIMIT 1")
    assert rows(session, SEALED) == [(0, 0, 0, 2, 3 * size)], "a partition that left nothing has no row"
    assert rows(session, "SELECT segment, segment_start FROM topic_partition ORDER BY partition") == [
        (1, 3),
        (1, 0),
    ]
    assert rows(
        session, "SELECT max(segment_bytes) FROM batches GROUP BY segment, partition ORDER BY 1 DESC"
    )[0] == (3 * size,)


def test_running_values_start_again_in_each_segment(session: Session) -> None:
    topic = create(session, 1, segment_bytes=170)
    for timestamps in ([50, 10], [20, 30], [40, 45], [60, 5]):
        append(session, topic, 2, timestamps=timestamps)
    assert rows(
        session,
        "SELECT segment, segment_max_timestamp, segment_min_timestamp, segment_disorder FROM batches ORDER BY"
        " base_offset",
    ) == [(0, 50, 10, 40), (0, 50, 10, 40), (1, 45, 40, 5), (1, 60, 5, 55)]
    assert (
        rows(session, "SELECT min_timestamp, max_timestamp, disorder FROM sealed_segment ORDER BY segment")
        == [
            (10, 50, 40),
            (5, 60, 55),
        ][: value(session, "SELECT count(*) FROM sealed_segment")]
    )


def test_an_old_segment_is_closed_before_the_next_append(session: Session) -> None:
    topic = create(session, segment_ms=3_600_000)
    append(session, topic)
    session.execute("UPDATE topic SET roll_at = 0")
    append(session, topic, partition=1)
    assert active(session) == 0, "a partition that has nothing in the segment does not close it"
    append(session, topic)
    assert active(session) == 1
    assert [leaf for leaf, *_ in leaves(session)] == ["b_1_0", "b_1_1", "b_1_0"]
    assert value(session, "SELECT roll_at > extract(epoch from now()) * 1000 FROM topic")


def test_jitter_brings_the_time_forward(session: Session) -> None:
    create(session, segment_ms=1_000_000, segment_jitter_ms=900_000)
    left = value(session, "SELECT roll_at - extract(epoch from now()) * 1000 FROM topic")
    assert 0 < left <= 1_000_001


def test_an_open_transaction_that_reads_the_log_delays_nothing(connect: Connect, session: Session) -> None:
    topic = create(session, segment_bytes=100)
    append(session, topic)
    idle = connect()
    idle.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(idle, "SELECT count(*) FROM records")
    rows(idle, 'SELECT * FROM logstore_topics."t"')
    hurried = connect(lock_timeout="2s")
    for _ in range(20):
        append(hurried, topic, [b"x" * 150])
    assert active(session) == 20
    assert value(idle, "SELECT count(*) FROM records") == 1
    idle.execute("COMMIT")
    assert value(session, "SELECT count(*) FROM records") == 21


def test_who_rolls_in_an_open_transaction_keeps_nobody_waiting(connect: Connect, session: Session) -> None:
    topic = create(session, segment_bytes=100)
    roller, hurried = connect(), connect(lock_timeout="2s")
    roller.execute("BEGIN")
    append(roller, topic, [b"x" * 100])
    assert active(roller) == 1
    for _ in range(5):
        append(hurried, topic, [b"y" * 100], partition=1)
    assert {leaf for leaf, *_ in leaves(session)} == {"b_1_0"}, "it goes on where it was"
    roller.execute("COMMIT")
    append(hurried, topic, [b"y"], partition=1)
    assert leaves(session)[-1] == ("b_1_1", 1, 5, 5)


def test_a_roll_that_is_rolled_back_leaves_nothing(connect: Connect, session: Session) -> None:
    topic = create(session, segment_bytes=100)
    roller = connect()
    roller.execute("BEGIN")
    append(roller, topic, [b"x" * 100])
    roller.execute("ROLLBACK")
    assert active(session) == 0
    assert value(session, "SELECT to_regclass('b_1_1')") is None
    append(session, topic, [b"x" * 100])
    assert active(session) == 1


def test_many_rollers_at_once(connect: Connect, session: Session) -> None:
    topic = create(session, 4, segment_bytes=400)

    def write(number: int) -> None:
        mine = connect()
        count = 0
        while count < 30:
            try:
                with mine.transaction():
                    for partition in sorted({number % 4, count % 4, 3}):
                        append(mine, topic, [b"x" * 60] * 2, partition)
                count += 1
            except psycopg.errors.CheckViolation:
                # Once in some 10,000 times PostgreSQL makes a session miss a new table: StaleSessionError.
                mine = connect()

    with ThreadPoolExecutor(5) as pool:
        for writer in [pool.submit(write, number) for number in range(5)]:
            writer.result()
    assert active(session) > 10
    assert rows(
        session,
        """SELECT count(*) FROM (
               SELECT base_offset - lag(last_offset, 1, -1::int8) OVER w AS step,
                      segment - lag(segment, 1, 0) OVER w AS up
               FROM batches WINDOW w AS (PARTITION BY partition ORDER BY base_offset)) u
           WHERE step <> 1 OR up < 0""",
    ) == [(0,)]
    assert (
        rows(
            session,
            """SELECT s.* FROM sealed_segment s
           LEFT JOIN (SELECT segment, partition, min(base_offset) AS low, max(last_offset) AS high,
                      sum(size_bytes) AS bytes
                      FROM batches GROUP BY 1, 2) b USING (segment, partition)
           WHERE (s.first_offset, s.last_offset, s.bytes) IS DISTINCT FROM (b.low, b.high, b.bytes)""",
        )
        == []
    )


def test_leaves_that_are_made_in_the_middle_of_looking_at_them_are_not_missed(
    connect: Connect, session: Session, release: Server, log_dsn: str
) -> None:
    """PostgreSQL keeps the list that it has made of a topic's leaves, whatever it heard meanwhile."""
    if release.superuser_dsn is None:
        pytest.skip("only a superuser can make a session wait there")
    topic = create(session, 2, segment_bytes=300)
    roller = psycopg.connect(
        release.as_superuser(log_dsn), autocommit=True, options="-c search_path=logstore"
    )
    waiter = connect()
    with contextlib.closing(roller), ThreadPoolExecutor(1) as pool:
        append(waiter, topic, partition=1)
        append(session, topic, [b"x" * 400])  # segment 1
        append(waiter, topic, partition=1)
        append(session, topic, [b"x" * 400])  # segment 2
        # The topic's table is known anew, and its leaves not yet.
        waiter.execute("SELECT pg_relation_size('b_1')")
        with session.transaction():
            session.execute("LOCK TABLE sealed_segment IN EXCLUSIVE MODE")
            entering = pool.submit(append, waiter, topic, partition=1)
            wait_until(lambda: waits_for_lock(roller, waiter))
            # What the waiter knew of the leaf that it enters is forgotten ...
            roller.execute("ALTER TABLE b_1_2 SET (autovacuum_vacuum_threshold = 51)")
            roller.execute("BEGIN")
            roller.execute("SET LOCAL ROLE logstore")
            assert value(roller, "SELECT roll_segment(%s, 2)", topic) == 3
            roller.execute("RESET ROLE")
            # ... and it has to wait when it looks, until segment 3 is there.
            roller.execute("LOCK TABLE pg_catalog.pg_class IN ACCESS EXCLUSIVE MODE")
        wait_until(
            lambda: (
                rows(
                    roller,
                    "SELECT 1 FROM pg_locks WHERE pid = %s AND relation = 1259 AND NOT granted",
                    waiter.info.backend_pid,
                )
                != []
            )
        )
        roller.execute("COMMIT")
        assert entering.result() == [2, -1, 0]
        assert append(waiter, topic, partition=1) == [3, -1, 0]
    assert leaves(session)[-2:] == [("b_1_2", 1, 2, 2), ("b_1_3", 1, 3, 3)]


def test_lz4_is_for_the_next_segment(session: Session) -> None:
    topic = create(session, 1)
    append(session, topic, [b"z" * 20_000])
    stored = 'SELECT pg_column_size("values") FROM batches ORDER BY base_offset'
    if not value(session, "SELECT lz4_available()"):
        error = None
        try:
            session.execute("SELECT alter_topic('t', '{\"compression.type\": \"lz4\"}')")
        except Exception as caught:
            error = caught
        assert getattr(error, "sqlstate", None) == "LS011"
        assert active(session) == 0
        return
    session.execute("SELECT alter_topic('t', '{\"compression.type\": \"lz4\"}')")
    assert active(session) == 1
    append(session, topic, [b"z" * 20_000])
    session.execute("SELECT alter_topic('t', '{\"compression.type\": \"uncompressed\"}')")
    append(session, topic, [b"z" * 20_000])
    plain, compressed, plain_again = (size for (size,) in rows(session, stored))
    assert compressed < 1000 < 20_000 < plain == plain_again
    assert rows(session, 'SELECT DISTINCT "values" FROM batches') == [([b"z" * 20_000],)]
    assert rows(session, "SELECT DISTINCT size_bytes = segment_bytes FROM batches") == [(True,)]


@pytest.mark.parametrize("compression", ["producer", "lz4"])
def test_nothing_is_kept_about_what_arrays_hold(session: Session, compression: str) -> None:
    """PostgreSQL would write some 100 kB to its catalog for each segment that is analyzed."""
    if compression == "lz4" and not value(session, "SELECT lz4_available()"):
        pytest.skip("this server was built without lz4")
    topic = create(session, compression_type=compression)
    for number in range(20):
        append(session, topic, [b"v%d" % number] * 3, keys=[b"k%d" % number] * 3)
    session.execute(f"ANALYZE b_{topic}_0".encode())
    query = "SELECT attname::text FROM pg_stats WHERE tablename = %s"
    known = {name for (name,) in rows(session, query, f"b_{topic}_0")}
    assert "last_offset" in known
    assert known.isdisjoint({"values", "keys", "timestamps", "header_values", "offset_deltas"})
