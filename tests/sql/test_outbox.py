"""Records produced inside somebody's transaction: once it has committed in the log, once and in order."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence

import psycopg
import pytest
from psycopg import sql

from tests.support.sqllog import NOW_MS, Connect, Session, append, refused, rows, value

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@pytest.fixture
def topic(session: Session) -> int:
    created: int = value(session, "SELECT create_topic('t', 2)")
    return created


def drain(session: Session, max_records: int = 10000) -> int:
    """How many records came into the log."""
    count: int = value(session, "SELECT records FROM drain(%s)", max_records)
    return count


def drain_all(session: Session, max_records: int = 10000) -> int:
    total, more = 0, True
    while more:
        ((records, more),) = rows(session, "SELECT records, more FROM drain(%s)", max_records)
        total += records
    return total


def stage(session: Session, *texts: str, partition: int = 0) -> None:
    for text in texts:
        session.execute("SELECT produce('t', null, %s::text, partition => %s)", [text, partition])


def log(session: Session, partition: int = 0) -> list[str]:
    """The values of one partition, in order; fails if an offset is missing."""
    found = rows(
        session,
        'SELECT "offset", value_text FROM records WHERE topic = \'t\' AND partition = %s ORDER BY "offset"',
        partition,
    )
    assert [offset for offset, _ in found] == list(range(len(found)))
    return [text for _, text in found]


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_is_committed(connect: Connect, session: Session, topic: int, level: str) -> None:
    writer = connect()
    writer.execute(f"BEGIN ISOLATION LEVEL {level}")
    stage(writer, "a")
    writer.execute("SAVEPOINT s")
    stage(writer, "never")
    writer.execute("ROLLBACK TO s")
    stage(writer, "b")
    assert drain(session) == 0
    writer.execute("COMMIT")
    assert drain(session) == 2
    writer.execute(f"BEGIN ISOLATION LEVEL {level}")
    stage(writer, "never either")
    writer.execute("ROLLBACK")
    stage(writer, "c")
    assert drain(session) == 1
    assert drain(session) == 0
    assert log(session) == ["a", "b", "c"]


@pytest.mark.parametrize("level", LEVELS)
def test_an_open_transaction_is_in_nobodys_way(
    connect: Connect, session: Session, topic: int, level: str
) -> None:
    sleeper, other = connect(), connect(lock_timeout="10ms")
    sleeper.execute(f"BEGIN ISOLATION LEVEL {level}")
    stage(sleeper, "slow")
    other.execute(f"BEGIN ISOLATION LEVEL {level}")
    stage(other, "quick")
    other.execute("COMMIT")
    append(other, topic, [b"appended"])
    assert drain(other) == 1
    value(other, "SELECT sweep_staged(0)")
    assert log(session) == ["appended", "quick"]
    sleeper.execute("COMMIT")
    assert drain(other) == 1
    assert log(session) == ["appended", "quick", "slow"]


def test_what_began_after_a_commit_comes_after_it(connect: Connect, session: Session, topic: int) -> None:
    first, second, third = connect(), connect(), connect()
    for each in (first, second, third):
        each.execute("BEGIN")
    stage(second, "second 1")
    stage(first, "first")
    first.execute("COMMIT")
    stage(second, "second 2")
    stage(third, "third")
    third.execute("COMMIT")
    second.execute("COMMIT")
    assert drain(session) == 4
    assert log(session) == ["second 1", "first", "second 2", "third"]


def test_both_partitions_and_several_topics(session: Session, topic: int) -> None:
    other = value(session, "SELECT create_topic('u', 1)")
    value(session, "SELECT create_topic('untouched', 1)")
    stage(session, "b", partition=1)
    session.execute("SELECT produce('u', 'k', 'x')")
    stage(session, "a")
    ((records, topics, more),) = rows(session, "SELECT records, topic_ids, more FROM drain()")
    assert (records, sorted(topics), more) == (3, [topic, other], False)
    assert (log(session, 0)[:1], log(session, 1)) == (["a"], ["b"])


def test_batches_stay_within_the_limit(session: Session, topic: int) -> None:
    session.execute("SELECT alter_topic('t', %s)", [json.dumps({"max.message.bytes": "20000"})])
    dice = random.Random(3)
    texts = ["x" * dice.choice((10, 300, 300, 3000, 15000)) + str(number) for number in range(200)]
    stage(session, *texts)
    assert drain_all(session) == len(texts)
    assert log(session) == texts
    sizes = [size for (size,) in rows(session, "SELECT size_bytes FROM batches")]
    assert max(sizes) <= 20000
    assert len(sizes) < 100
    ((none_alone, all_there),) = rows(
        session, "SELECT bool_and(record_count > 0), sum(record_count) = 200 FROM batches"
    )
    assert none_alone and all_there


def test_headers_keep_their_records(session: Session, topic: int) -> None:
    expected = []
    for number in range(6):
        headers = [{"key": f"h{each}", "value": str(number)} for each in range(number % 3)]
        session.execute(
            "SELECT produce('t', %s::bytea, null::bytea, %s::jsonb, 0)", [b"k", json.dumps(headers)]
        )
        expected.append((b"k", None, headers))
    assert drain(session) == 6
    assert rows(session, 'SELECT key, value, headers FROM records ORDER BY "offset"') == expected
    assert value(session, "SELECT count(*) FROM batches") == 1


@pytest.mark.parametrize("max_records", [1, 3, 10])
def test_a_part_at_a_time(connect: Connect, session: Session, topic: int, max_records: int) -> None:
    """What commits while a large part is on its way comes after it, and nothing is left out."""
    late, writer = connect(), connect()
    late.execute("BEGIN")
    stage(late, "late 1")
    stage(writer, *(str(number) for number in range(20)))
    late_sent = False
    drained = 0
    for _ in range(100):
        ((records, more),) = rows(session, "SELECT records, more FROM drain(%s)", max_records)
        drained += records
        assert records <= max_records
        if not late_sent and drained:
            stage(late, "late 2")
            late.execute("COMMIT")
            stage(writer, "last")
            late_sent = True
        if not more and drained >= 23:
            break
    assert drained == 23
    assert drain(session) == 0
    assert log(session) == [*(str(number) for number in range(20)), "late 1", "late 2", "last"]


def test_one_megabyte_after_the_other(session: Session, topic: int) -> None:
    """A call takes about 16 MB, however few records that are."""
    for _ in range(20):
        session.execute("SELECT produce('t', null::bytea, convert_to(repeat('x', 1000000), 'UTF8'), null, 0)")
    ((records, more),) = rows(session, "SELECT records, more FROM drain()")
    assert (records, more) == (16, True)
    assert drain_all(session) == 4
    assert value(session, "SELECT count(*) FROM batches") == 20


def test_random_histories(connect: Connect, session: Session, topic: int) -> None:
    """Every committed record once, none other, a transaction's own in order, and causal order."""
    for seed in range(6):
        _history(connect, session, random.Random(seed), seed)


def _history(connect: Connect, session: Session, dice: random.Random, seed: int) -> None:
    writers = [connect() for _ in range(5)]
    open_: dict[int, list[str]] = {}
    saved: dict[int, int] = {}
    committed: list[tuple[int, int, list[str]]] = []
    """When it began to stage, when it committed, what."""
    began: dict[int, int] = {}
    before = len(log(session))
    for step in range(150):
        number = dice.randrange(len(writers))
        writer = writers[number]
        action = dice.random()
        if action < 0.15:
            drain(session, dice.choice((1, 2, 5, 1000)))
        elif action < 0.2:
            value(session, "SELECT sweep_staged(0)")
        elif number not in open_:
            writer.execute(f"BEGIN ISOLATION LEVEL {dice.choice(LEVELS)}")
            open_[number] = []
        elif action < 0.55:
            began.setdefault(number, step)
            texts = [f"{seed}-{step}-{each}" for each in range(dice.randrange(1, 4))]
            stage(writer, *texts)
            open_[number] += texts
        elif action < 0.65:
            writer.execute("SAVEPOINT s")
            saved[number] = len(open_[number])
        elif action < 0.75 and number in saved:
            writer.execute("ROLLBACK TO s")
            del open_[number][saved[number] :]
        elif action < 0.85:
            writer.execute("ROLLBACK")
            _forget(number, open_, saved, began)
        else:
            writer.execute("COMMIT")
            committed.append((began.get(number, step), step, open_[number]))
            _forget(number, open_, saved, began)
    for number in list(open_):
        writers[number].execute("COMMIT")
        committed.append((began.get(number, 1000), 1000, open_[number]))
    drain_all(session, 7)
    found = log(session)[before:]
    assert Counter(found) == Counter(text for _, _, texts in committed for text in texts)
    place = {text: index for index, text in enumerate(found)}
    for _, ended, texts in committed:
        assert [place[text] for text in texts] == sorted(place[text] for text in texts)
        for began_later, _, later in committed:
            if began_later > ended and texts and later:
                assert place[texts[-1]] < place[later[0]]
    for writer in writers:
        writer.close()


def _forget(number: int, *states: dict[int, object] | dict[int, list[str]] | dict[int, int]) -> None:
    for state in states:
        state.pop(number, None)


def test_a_topic_that_is_deleted_takes_its_records_along(session: Session, topic: int) -> None:
    value(session, "SELECT create_topic('stays', 1)")
    stage(session, "gone")
    session.execute("SELECT produce('stays', 'k', 'v')")
    session.execute("SELECT delete_topic('t')")
    value(session, "SELECT create_topic('t', 2)")
    assert drain(session) == 1
    assert rows(session, "SELECT topic, value_text FROM records") == [("stays", "v")]
    assert refused(session, "SELECT produce('gone', 'k', 'v')").sqlstate == "LS001"


def test_partitions_that_are_added_meanwhile(connect: Connect, session: Session, topic: int) -> None:
    writer = connect()
    writer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    stage(writer, "before")
    session.execute("SELECT add_partitions('t', 5)")
    stage(session, "there", partition=4)
    assert refused(writer, "SELECT produce('t', 'k', 'v', partition => 4)").sqlstate == "LS001"
    writer.execute("ROLLBACK")
    assert drain(session) == 1


def test_what_was_accepted_gets_in(session: Session, topic: int) -> None:
    """Limits are those of the moment at which the record was staged."""
    stage(session, "x" * 5000)
    assert (
        value(session, "SELECT stage('t', 0, null, %s::bytea, null, null, %s::int8)", b"old", NOW_MS - 9000)
        == 0
    )
    limits = {
        "max.message.bytes": "100",
        "message.timestamp.before.max.ms": "1000",
        "min.insync.replicas": "1",
    }
    session.execute("SELECT alter_topic('t', %s)", [json.dumps(limits)])
    assert refused(session, "SELECT produce('t', null, repeat('x', 101), partition => 0)").sqlstate == "LS007"
    old = refused(
        session, "SELECT stage('t', 0, null, %s::bytea, null, null, %s::int8)", b"old", NOW_MS - 9000
    )
    assert old.sqlstate == "LS008"
    assert drain(session) == 2
    assert log(session) == ["x" * 5000, "old"]


def test_the_time_is_that_of_the_append_if_the_topic_says_so(session: Session, topic: int) -> None:
    session.execute("SELECT alter_topic('t', '{\"message.timestamp.type\": \"LogAppendTime\"}')")
    session.execute("SELECT stage('t', 0, null, %s::bytea, null, null, 5)", [b"v"])
    before = value(session, "SELECT floor(extract(epoch from clock_timestamp()) * 1000)::int8")
    assert drain(session) == 1
    assert value(session, "SELECT max_timestamp FROM batches") >= before


@pytest.mark.parametrize("begin", ["BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN"])
def test_draining_wants_a_transaction_of_its_own(session: Session, topic: int, begin: str) -> None:
    session.execute(begin)
    stage(session, "mine")
    error = refused(session, "SELECT drain()")
    assert error.sqlstate == "LS035"
    session.execute("ROLLBACK")


def test_what_is_waiting_can_be_seen(connect: Connect, session: Session, topic: int) -> None:
    writer = connect()
    writer.execute("BEGIN")
    stage(writer, "open")
    stage(session, "a", "b", "c")
    waiting = "SELECT array_agg(convert_from(value, 'UTF8')) FROM outbox"
    # In no order: the three may be in two tables.
    assert sorted(value(session, waiting)) == ["a", "b", "c"]
    assert drain(session, 2) == 2
    stage(session, "d")
    assert sorted(value(session, waiting)) == ["c", "d"]
    writer.execute("COMMIT")
    assert rows(session, "SELECT DISTINCT topic, partition FROM outbox") == [("t", 0)]
    assert drain_all(session) == 3
    assert rows(session, "SELECT FROM outbox") == []


def test_one_drains_at_a_time(connect: Connect, session: Session, topic: int) -> None:
    stage(session, "a")
    first = connect()
    first.execute("BEGIN")
    assert drain(first) == 1
    assert rows(session, "SELECT records, topic_ids FROM drain()") == [(0, None)]
    assert value(session, "SELECT sweep_staged(0)") == 0
    # It dies half-way: nothing has happened.
    first.close()
    while not drain(session):
        pass
    assert log(session) == ["a"]


def test_a_record_that_was_read_is_not_lost(session: Session, topic: int) -> None:
    session.execute("SET synchronous_commit = off")
    stage(session, "a")
    with session.transaction():
        assert drain(session) == 1
        assert value(session, "SHOW synchronous_commit") == "on"


def test_a_follower_drains_nothing(session: Session, topic: int) -> None:
    stage(session, "a")
    session.execute("SET default_transaction_read_only = on")
    assert isinstance(refused(session, "SELECT drain()"), psycopg.errors.ReadOnlySqlTransaction)
    assert isinstance(
        refused(session, "SELECT produce('t', 'k', 'v')"), psycopg.errors.ReadOnlySqlTransaction
    )


@pytest.mark.parametrize("part", [None, 1])
def test_a_log_out_of_a_dump(session: Session, topic: int, part: int | None) -> None:
    """Its transactions have numbers that this cluster has not come to yet."""
    stage(session, "a", "b")
    drain(session, part or 10)
    stage(session, "c")
    # Every number in a snapshot, 1,000,000,000 more.
    session.execute(
        """CREATE FUNCTION _dumped(s pg_snapshot) RETURNS pg_snapshot LANGUAGE sql STRICT RETURN (
            (pg_snapshot_xmin(s)::text::int8 + 1000000000) || ':' ||
            (pg_snapshot_xmax(s)::text::int8 + 1000000000) || ':')::pg_snapshot"""
    )
    for number in range(3):
        staged, drained = sql.Identifier(f"staged_{number}"), sql.Identifier(f"drained_{number}")
        session.execute(
            sql.SQL("UPDATE {} SET xid = (xid::text::int8 + 1000000000)::text::xid8").format(staged)
        )
        session.execute(
            sql.SQL("UPDATE {} SET base = _dumped(base), target = _dumped(target)").format(drained)
        )
    stage(session, "d")
    assert drain_all(session) == (2 if part is None else 3)
    stage(session, "e")
    assert drain_all(session) == 1
    assert drain(session) == 0
    assert log(session) == ["a", "b", "c", "d", "e"]


def test_a_dump_of_which_only_what_waits_is_ahead(session: Session, topic: int) -> None:
    """The cluster has passed the last drain's number, and not that of what was staged after it."""
    stage(session, "a")
    drain(session)
    stage(session, "b")
    for number in range(3):
        session.execute(
            sql.SQL(
                "UPDATE {} SET xid = (xid::text::int8 + 1000000000)::text::xid8 WHERE value = 'b'"
            ).format(sql.Identifier(f"staged_{number}"))
        )
    assert drain_all(session) == 1
    stage(session, "c")
    assert drain_all(session) == 1
    assert drain_all(session) == 0
    assert log(session) == ["a", "b", "c"]


def test_serializable_transactions_do_not_fail_each_other(
    connect: Connect, session: Session, topic: int
) -> None:
    writers = [connect() for _ in range(4)]
    for writer in writers:
        writer.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        stage(writer, "first")
    assert drain(session) == 0
    for writer in writers:
        stage(writer, "second")
        writer.execute("COMMIT")
    assert drain(session) == 8


def _turn(session: Session, number: int) -> None:
    """It is the turn of that table, whatever the clock says."""
    session.execute(f"CREATE OR REPLACE FUNCTION staging_turn() RETURNS int4 LANGUAGE sql RETURN {number}")


def _kept(session: Session) -> list[int]:
    """The rows of each staging table."""
    counts: list[int] = value(
        session,
        "SELECT ARRAY[(SELECT count(*) FROM staged_0), (SELECT count(*) FROM staged_1),"
        " (SELECT count(*) FROM staged_2)]",
    )
    return counts


def _round(session: Session, texts: Sequence[str]) -> None:
    for number in range(3):
        _turn(session, number)
        stage(session, *texts)


def test_tables_are_emptied_in_turn(connect: Connect, session: Session, topic: int) -> None:
    _round(session, ["a", "b"])
    assert value(session, "SELECT sweep_staged(0)") == 0, "nothing has been drained"
    _turn(session, 0)
    assert drain(session) == 6
    assert _kept(session) == [2, 2, 2]
    assert value(session, "SELECT sweep_staged()") == 0, "they are small"
    # Somebody's old snapshot keeps nothing.
    holder = connect()
    holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(holder, "SELECT * FROM topics")
    assert value(session, "SELECT sweep_staged(0)") == 2
    assert _kept(session) == [2, 0, 0]
    _turn(session, 1)
    assert value(session, "SELECT sweep_staged(0)") == 1
    assert _kept(session) == [0, 0, 0]
    # How far draining has come survives.
    assert value(session, "SELECT count(*) FROM drained") >= 1
    assert drain(session) == 0
    _round(session, ["c"])
    assert drain(session) == 3
    assert value(session, "SELECT pg_relation_size('drained_2') + pg_relation_size('staged_0')") > 0


def test_a_table_that_is_in_use_is_left_alone(connect: Connect, session: Session, topic: int) -> None:
    _turn(session, 0)
    slow, old = connect(), connect()
    slow.execute("BEGIN")
    stage(slow, "slow")
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(old, "SELECT * FROM topics")
    stage(session, "quick")
    _turn(session, 1)
    assert drain(session) == 1
    assert value(session, "SELECT sweep_staged(0)") == 0
    slow.execute("COMMIT")
    assert value(session, "SELECT sweep_staged(0)") == 0, "something in it has not been drained"
    assert drain(session) == 1
    assert value(session, "SELECT sweep_staged(0)") == 1
    # A transaction that still takes the old table for the current one.
    _turn(session, 0)
    stage(old, "old")
    _turn(session, 1)
    old.execute("COMMIT")
    assert drain(session) == 1
    assert log(session) == ["quick", "slow", "old"]


def test_nothing_is_left_dead(connect: Connect, session: Session, topic: int) -> None:
    holder = connect()
    holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(holder, "SELECT * FROM topic_partition")
    for number in range(60):
        _turn(session, number // 20)
        stage(session, "x" * 100, "y" * 100)
        assert drain(session) == 2
    session.execute("SELECT pg_stat_force_next_flush()")
    dead = rows(
        session,
        "SELECT relname, n_dead_tup FROM pg_stat_user_tables "
        "WHERE schemaname = 'logstore' AND n_dead_tup > 0 AND relname <> 'topic'",
    )
    assert dead == []
    _turn(session, 0)
    assert value(session, "SELECT sweep_staged(0)") == 2
    assert value(session, "SELECT pg_table_size('staged_1') + pg_table_size('staged_2')") <= 2 * 8192


def test_two_logs_in_one_database(connect: Connect, session: Session, topic: int, log_dsn: str) -> None:
    from logstore.migrations import upgrade

    upgrade(log_dsn, "second log")
    value(session, "SELECT \"second log\".create_topic('t', 1)")
    with session.transaction():
        stage(session, "first")
        session.execute("SELECT \"second log\".produce('t', 'k', 'second')")
    assert drain(session) == 1
    assert value(session, 'SELECT records FROM "second log".drain()') == 1
    assert value(session, 'SELECT value_text FROM "second log".records') == "second"
