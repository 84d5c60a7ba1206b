"""Offsets are contiguous and in commit order; a reader never skips a record that commits later."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.sqllog import (
    NOW_MS,
    Connect,
    Session,
    append,
    refused,
    rows,
    value,
    wait_until,
    waits_for_lock,
)


@pytest.fixture
def topic(session: Session) -> int:
    created: int = value(session, "SELECT create_topic('t', 4)")
    return created


def end(session: Session, topic: int, partition: int = 0) -> int:
    found: int = value(session, "SELECT high_watermark FROM high_watermarks(%s, %s)", [topic], [partition])
    return found


def test_batches_follow_each_other(session: Session, topic: int) -> None:
    assert append(session, topic, 3) == [0, -1, 0]
    assert append(session, topic, 1) == [3, -1, 0]
    assert append(session, topic, 5, partition=2) == [0, -1, 0]
    assert [end(session, topic, partition) for partition in range(4)] == [4, 0, 5, 0]


def test_one_statement_appends_several_batches_or_none(session: Session, topic: int) -> None:
    one = "append(%s::int4, %s::int4, 1, %s::int8, null, null, %s::bytea[], null, null, null, 1::int2)"
    answer = rows(
        session,
        f"SELECT {one}, {one}, {one}",
        *(topic, 0, NOW_MS, [b"a"], topic, 0, NOW_MS, [b"b"], topic, 1, NOW_MS, [b"c"]),
    )
    assert answer == [([0, -1, 0], [1, -1, 0], [0, -1, 0])]
    error = refused(session, f"SELECT {one}, {one}", topic, 2, NOW_MS, [b"a"], topic, 9, NOW_MS, [b"b"])
    assert error.sqlstate == "LS001"
    assert end(session, topic, 2) == 0


def test_the_next_append_waits_for_a_slow_committer_and_readers_do_not(
    connect: Connect, session: Session, topic: int
) -> None:
    append(session, topic, 2)
    slow, fast = connect(), connect()
    with slow.transaction():
        assert append(slow, topic, 3) == [2, -1, 0]
        with ThreadPoolExecutor(1) as pool:
            behind = pool.submit(append, fast, topic, 1)
            wait_until(lambda: waits_for_lock(session, fast))
            assert append(session, topic, 1, partition=1) == [0, -1, 0], "another partition is free"
            assert end(session, topic) == 2, "what is not committed is not there"
            slow.execute("COMMIT")
            assert behind.result(60) == [5, -1, 0]
    assert end(session, topic) == 6


def test_offsets_of_a_rolled_back_append_are_used_again(
    connect: Connect, session: Session, topic: int
) -> None:
    slow, fast = connect(), connect()
    slow.execute("BEGIN")
    append(slow, topic, 3)
    with ThreadPoolExecutor(1) as pool:
        behind = pool.submit(append, fast, topic, 1)
        wait_until(lambda: waits_for_lock(session, fast))
        slow.execute("ROLLBACK")
        assert behind.result(60) == [0, -1, 0]


def test_many_appenders_and_a_reader_that_follows(connect: Connect, topic: int) -> None:
    writers, each = 6, 40
    done = threading.Event()

    def write(number: int) -> None:
        session = connect()
        for count in range(each):
            with session.transaction():
                for partition in sorted({number % 2, count % 2}):
                    append(session, topic, [b"%d.%d" % (number, count)] * (1 + count % 3), partition)

    def follow() -> dict[int, list[tuple[int, bytes]]]:
        session = connect()
        seen: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
        while True:
            last_round = done.is_set()
            got = rows(
                session,
                'SELECT idx, base_offset, "values" FROM "fetch"(%s, %s, %s, 1000000, 1000)'
                " WHERE base_offset IS NOT NULL",
                [topic, topic],
                [0, 1],
                [len(seen[0]), len(seen[1])],
            )
            for idx, base, contents in got:
                behind = seen[idx - 1]
                assert base <= len(behind), "a record was skipped"
                behind += [(base + at, content) for at, content in enumerate(contents)][len(behind) - base :]
            if last_round and not got:
                return seen

    with ThreadPoolExecutor(writers + 1) as pool:
        reader = pool.submit(follow)
        for writer in [pool.submit(write, number) for number in range(writers)]:
            writer.result()
        done.set()
        seen = reader.result()
    for records in seen.values():
        assert [offset for offset, _ in records] == list(range(len(records)))
        for number in range(writers):
            mine = [
                int(content.split(b".")[1]) for _, content in records if content.startswith(b"%d." % number)
            ]
            assert mine == sorted(mine), "one writer's records keep their order"
    assert sum(map(len, seen.values())) == sum(
        (1 + count % 3) * len({number % 2, count % 2}) for number in range(writers) for count in range(each)
    )


def test_many_partitions_in_ascending_order_never_deadlock(connect: Connect, topic: int) -> None:
    def write(seed: int) -> None:
        session, dice = connect(), random.Random(seed)
        for _ in range(25):
            with session.transaction():
                for partition in sorted(dice.sample(range(4), 3)):
                    append(session, topic, 1, partition)

    with ThreadPoolExecutor(5) as pool:
        for writer in [pool.submit(write, seed) for seed in range(5)]:
            writer.result()


@pytest.mark.parametrize(
    "level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]
)
def test_an_older_snapshot_is_refused(session: Session, topic: int, level: psycopg.IsolationLevel) -> None:
    session.isolation_level = level
    session.autocommit = False
    with pytest.raises(psycopg.Error) as caught:
        append(session, topic)
    assert caught.value.sqlstate == "LS012"
    session.rollback()


def test_durability_is_the_transactions_own(session: Session, topic: int) -> None:
    for acks, expected in ((0, "off"), (1, "local"), (-1, "on"), (None, "remote_write")):
        with session.transaction():
            session.execute("SET LOCAL synchronous_commit = remote_write")
            append(session, topic, acks=acks)
            assert value(session, "SHOW synchronous_commit") == expected
        assert value(session, "SHOW synchronous_commit") == "on", "never for the session"


def test_a_stale_leader_is_fenced(session: Session, topic: int) -> None:
    session.execute("UPDATE topic_partition SET leader_epoch = 7")
    query = (
        "SELECT append(%s::int4, 0, 1, %s::int8, null, null, '{v}', null, null, null, 1::int2,"
        " leader_epoch => %s::int4)"
    )
    assert refused(session, query, topic, NOW_MS, 6).sqlstate == "LS013"
    assert value(session, query, topic, NOW_MS, 7) == [0, -1, 0]
    assert value(session, "SELECT leader_epoch FROM batches") == 7
