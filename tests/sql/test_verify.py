"""The auditor's SQL: a log that was broken by hand in one way is red for that, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.servers import Server
from tests.support.sqllog import NOW_MS, Session, rows, value

SEGMENTS = 4
PRODUCER = 7


@pytest.fixture(scope="module", params=["server", "postgres15"])
def sound(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A log with everything in it that there is: closed segments, producers, commits, records in flight."""
    server: Server = request.getfixturevalue(request.param)
    dsn = server.create()
    with psycopg.connect(dsn, autocommit=True, options="-c search_path=logstore") as session:
        build(session)
        yield session
    server.drop(dsn)


@pytest.fixture
def log(sound: Session) -> Iterator[Session]:
    """The same log, in a transaction that is rolled back: each test breaks it in its own way."""
    sound.execute("BEGIN")
    yield sound
    sound.execute("ROLLBACK")


def build(session: Session) -> None:
    topic = value(session, """SELECT create_topic('t', 2, '{"segment.bytes": 4000}')""")
    sequence = 0
    for number in range(10 * SEGMENTS):
        by_producer = number % 2 == 0
        stamps = [NOW_MS + number, NOW_MS - 50 + number, NOW_MS + number - 1]
        for partition in (0, 1):
            rows(
                session,
                """SELECT append(%s::int4, %s::int4, 3, %s::int8, %s::int8[], '{a,b,c}'::bytea[], %s::bytea[],
                   '{1,1,3}', '{h,h,i}', '{x,null,z}'::bytea[], 1::int2, %s::int8, %s::int2, %s::int4)""",
                *(topic, partition, NOW_MS + number, stamps if number % 3 else None, [b"v" * 110] * 3),
                *((PRODUCER, 0, sequence) if by_producer else (None, None, None)),
            )
        sequence += 3 if by_producer else 0
    rows(
        session,
        "SELECT commit_offsets('g', null, null, %s, '{0,1}', null, '{9,50}', null, null)",
        [topic, topic],
    )
    rows(session, "SELECT delete_records('t', 1, 40)")
    session.execute("UPDATE group_offset SET leader_epoch = 0")
    rows(session, "SELECT alter_share_group('s', '{\"share.auto.offset.reset\": \"earliest\"}')")
    group = value(session, "SELECT group_id FROM log_group WHERE name = 's'")
    for partition in (0, 1):
        named = {"group": group, "topic": topic, "partition": partition}
        for statement in (
            "share_partition VALUES (%(group)s, %(topic)s, %(partition)s)",
            "share_window VALUES (%(group)s, %(topic)s, %(partition)s, 60, 40)",
            "share_flight VALUES (%(group)s, %(topic)s, %(partition)s, 41, 44, now(), null, 1, 'm')",
            "share_flight VALUES (%(group)s, %(topic)s, %(partition)s, 47, 47, now(), 99, 1, null)",
            "share_delay VALUES (%(group)s, %(topic)s, %(partition)s, 50, 52, now(), null, 1)",
        ):
            session.execute(("INSERT INTO " + statement).encode(), named)
    assert value(session, "SELECT count(*) FROM topic_segment") >= SEGMENTS


COLUMNS = 'SELECT "check", topic, "partition", segment, "offset", "group", found, total FROM '


AUDITS = ("verify_catalog", "verify_producers", "verify_groups", "verify_share", "verify_files")


def audit(session: Session, at_most: int = 20, *, arrays: bool = True) -> list[tuple[Any, ...]]:
    """Every finding of every function, as `logstore verify` asks for them."""
    found = rows(session, COLUMNS + "verify_strays(%s)", at_most)
    for topic_id, segment in rows(session, "SELECT topic_id, segment FROM verify_plan(null)"):
        found += rows(session, COLUMNS + "verify_segment(%s, %s, %s, %s)", topic_id, segment, arrays, at_most)
    for (topic_id,) in rows(session, "SELECT DISTINCT topic_id FROM verify_plan(null)"):
        for function in AUDITS:
            found += rows(session, COLUMNS + function + "(%s, %s)", topic_id, at_most)
    return found


def test_a_sound_log_is_green(sound: Session) -> None:
    assert audit(sound) == []
    assert audit(sound, arrays=False) == []


def test_it_only_reads_and_sees_one_state(sound: Session) -> None:
    with sound.transaction():
        sound.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        assert audit(sound) == []


ONE = "partition = 0 AND base_offset = 12"
"""A batch in the middle of the first segment, with time stamps, of the producer's."""

BREAKS: dict[str, tuple[str, set[str], str]] = {
    # The catalog.
    "a partition's row is missing": (
        "UPDATE topic SET partitions = 3", {"catalog"}, "no row in topic_partition"),
    "a partition too many": (
        "INSERT INTO topic_partition (topic_id, partition, segment, segment_start) SELECT topic_id, 9,"
        " active_segment, 0 FROM topic", {"catalog"}, "only 2 partitions"),
    "the active segment is not in the catalog": (
        "UPDATE topic SET active_segment = active_segment + 1", {"catalog"}, "the active segment"),
    "a row of a topic that is gone": (
        "INSERT INTO topic_segment (topic_id, segment, place) VALUES (99, 0, 0)", {"catalog"}, "topic id 99"),
    "a closed segment that there is not": (
        "INSERT INTO sealed_segment SELECT topic_id, partition, 77, segment_start, segment_start, 1, 1, 1, 0"
        " FROM topic_partition WHERE partition = 0", {"catalog", "sealed"}, "that the topic does not"),
    "configs are not what they say": (
        "UPDATE topic SET max_message_bytes = 5", {"configs"}, "max_message_bytes is 5"),
    # Tables.
    "a table is gone": (
        "DROP TABLE b_1_1", {"leaves", "sequences"}, "is not there"),
    "a table is detached": (
        "ALTER TABLE b_1 DETACH PARTITION b_1_1", {"leaves", "sequences"}, "not attached"),
    "a topic is detached": (
        "ALTER TABLE batches DETACH PARTITION b_1", {"leaves"}, "not attached to that of all"),
    "an index is gone": (
        "DROP INDEX b_1_1_offset", {"leaves"}, "index"),
    "the index of producers is gone": (
        "DROP INDEX b_1_1_producer", {"leaves"}, "(partition, producer_id, last_offset)"),
    "a table without segment": (
        "CREATE TABLE b_1_77 (LIKE b_1_0)", {"leaves"}, "b_1_77 belongs to no segment"),
    "a table without topic": (
        "CREATE TABLE b_99 (i int)", {"leaves"}, "b_99 belongs to no topic"),
    # Closed segments.
    "the last batches of a closed segment are lost": (
        "DELETE FROM b_1_0 WHERE partition = 0 AND last_offset = (SELECT max(last_offset) FROM b_1_0 WHERE"
        " partition = 0)", {"sealed", "sequences"}, "but the catalog says"),
    "all batches of a closed segment are lost": (
        "DELETE FROM b_1_0 WHERE partition = 0", {"sealed"}, "are not there"),
    "a closed segment says something else": (
        "UPDATE sealed_segment SET max_timestamp = max_timestamp + 1 WHERE partition = 0 AND segment = 0",
        {"sealed"}, "the catalog says"),
    "a closed segment has no row": (
        "DELETE FROM sealed_segment WHERE partition = 0 AND segment = 1", {"sealed"}, "has no row"),
    "closed segments do not follow each other": (
        "UPDATE sealed_segment SET first_offset = first_offset + 1 WHERE partition = 0 AND segment = 1",
        {"sealed", "overlap"}, "the one before ends"),
    # Batches.
    "a batch is lost": (
        "DELETE FROM batches WHERE :one", {"gap", "sequences"}, "offsets 12 to 14 are in no batch"),
    "the first batch of a segment is lost": (
        "DELETE FROM b_1_1 WHERE partition = 0 AND base_offset = (SELECT min(base_offset) FROM b_1_1 WHERE"
        " partition = 0 AND producer_id IS NULL) AND producer_id IS NULL", {"gap"}, "are in no batch"),
    "an offset is twice there": (
        "UPDATE batches SET base_offset = base_offset - 1, record_count = 4 WHERE :one",
        {"overlap", "counts", "sequences"}, "but the one before ends at 11"),
    "a batch has more records than offsets": (
        "UPDATE batches SET record_count = 4, last_sequence = last_sequence + 1 WHERE :one",
        {"counts", "sequences"}, "offsets 12 to 14, but has 4 records"),
    "values are missing": (
        "UPDATE batches SET \"values\" = \"values\"[2:] WHERE :one", {"counts"}, "does not fit"),
    "keys are missing": (
        "UPDATE batches SET keys = '{}' WHERE :one", {"counts"}, "does not fit"),
    "a header is of no record": (
        "UPDATE batches SET header_records = '{1,1,4}' WHERE :one", {"counts"}, "does not fit"),
    "offset deltas fall": (
        "UPDATE batches SET offset_deltas = '{0,2,1}' WHERE :one", {"counts"}, "spans offsets"),
    "a time stamp is larger than the largest": (
        "UPDATE batches SET timestamps[2] = max_timestamp + 5 WHERE :one", {"timestamps"},
        "is not the largest"),
    "a time stamp is no time": (
        "UPDATE batches SET timestamps = array[-1, max_timestamp, max_timestamp],"
        " segment_min_timestamp = -1, segment_disorder = segment_max_timestamp + 1"
        " WHERE partition = 1 AND base_offset = (SELECT max(base_offset) FROM b_1_0 WHERE partition = 1)",
        {"timestamps", "sealed"}, "are no times"),
    "not the append time though it says so": (
        "UPDATE batches SET timestamp_type = 1 WHERE :one", {"timestamps"}, "not the append time"),
    "running bytes are wrong": (
        "UPDATE batches SET segment_bytes = segment_bytes + 1 WHERE :one", {"running"}, "segment_bytes is"),
    "the running maximum is wrong": (
        "UPDATE batches SET segment_max_timestamp = segment_max_timestamp - 1 WHERE :one", {"running"},
        "segment_max_timestamp is"),
    "the running minimum is wrong": (
        "UPDATE batches SET segment_min_timestamp = segment_min_timestamp + 1 WHERE :one", {"running"},
        "segment_min_timestamp is"),
    "the running disorder is wrong": (
        "UPDATE batches SET segment_disorder = 0 WHERE :one", {"running"}, "segment_disorder is 0"),
    "a leader epoch that has not been": (
        "UPDATE batches SET leader_epoch = 1 WHERE :one", {"epochs"}, "but the partition is at 0"),
    "leader epochs fall": (
        "UPDATE topic_partition SET leader_epoch = 3; UPDATE batches SET leader_epoch = 1 WHERE :one",
        {"epochs"}, "leader epoch 0 comes after 1"),
    "a sequence is missing": (
        "UPDATE batches SET base_sequence = base_sequence + 3, last_sequence = last_sequence + 3 WHERE :one",
        {"sequences"}, "comes after"),
    "a batch is there twice": (
        "UPDATE batches SET base_sequence = 0, last_sequence = 2 WHERE partition = 0 AND base_offset = 12",
        {"sequences"}, "sequence 0 comes after"),
    "sequences that do not fit the records": (
        "UPDATE batches SET last_sequence = last_sequence + 1 WHERE partition = 0 AND base_offset ="
        " (SELECT max(base_offset) FROM batches WHERE producer_id = 7 AND partition = 0)",
        {"sequences"}, "are not those of 3 records"),
    "half of a producer": (
        "UPDATE batches SET producer_epoch = null WHERE partition = 0 AND base_offset ="
        " (SELECT max(base_offset) FROM batches WHERE producer_id = 7 AND partition = 0)",
        {"sequences"}, "go together"),
    "a producer has an epoch that nobody was given": (
        "INSERT INTO producer (transactional_id, producer_id, producer_epoch, timeout_ms)"
        " VALUES ('id', 7, -1, 1000)", {"sequences"}, 'epoch 0, but the transactional id "id" is at -1'),
    "a producer is forgotten": (
        "DELETE FROM producer_state WHERE partition = 0", {"sequences"}, "nobody remembers its last batch"),
    "a producer is remembered at another offset": (
        "UPDATE producer_state SET base_offsets[5] = base_offsets[5] - 3, base_sequences[5] ="
        " base_sequences[5] - 3, last_sequences[5] = last_sequences[5] - 3 WHERE partition = 1",
        {"sequences"}, "nobody remembers its last batch"),
    "a producer is remembered with other sequences": (
        "UPDATE producer_state SET base_sequences[2] = 1000, last_sequences[2] = 1002 WHERE partition = 1",
        {"sequences"}, "sequences 1000 to 1002 are remembered here"),
    "what is remembered does not fit together": (
        "UPDATE producer_state SET append_times = append_times[2:] WHERE partition = 1", {"sequences"},
        "does not fit together"),
    "a producer of a topic that is gone": (
        "INSERT INTO producer_state SELECT 99, partition, producer_id, producer_epoch, base_sequences,"
        " last_sequences, base_offsets, append_times, updated_at FROM producer_state WHERE partition = 0",
        {"catalog"}, "producer_state has topic id 99"),
    "a producer's epochs fall": (
        "UPDATE batches SET producer_epoch = 1, base_sequence = 0, last_sequence = 2"
        " WHERE partition = 0 AND base_offset = 12", {"sequences"}, "epoch 0 comes after 1"),
    "a new epoch does not begin at 0": (
        "UPDATE batches SET producer_epoch = 1 WHERE producer_id = 7 AND partition = 0"
        " AND base_offset >= 30", {"sequences"}, "epoch 1 begins with sequence"),
    "a transaction that appends nothing": (
        "UPDATE batches SET xact = 1 WHERE :one", {"watermark"}, "transaction 1 appends nothing"),
    "a seal covers what comes after it": (
        "INSERT INTO seal (xact, snapshot, lsn)"
        " SELECT pg_current_xact_id()::text::int8, '90000:90000:', pg_current_wal_lsn()",
        {"watermark"}, "covers transactions from its own on: its snapshot is 90000:90000:"),
    "a seal ends beyond the log": (
        "INSERT INTO seal (xact, snapshot, lsn) SELECT pg_current_xact_id()::text::int8, '90:90:', 'FFFF/0'",
        {"watermark"}, "ends at FFFF/0, beyond the end"),
    "what may be read has a hole": (
        "INSERT INTO seal (xact, snapshot, lsn, confirmed)"
        " SELECT pg_current_xact_id()::text::int8, '100:100:', pg_current_wal_lsn(), '100:100:';"
        "UPDATE batches SET xact = 300 - base_offset * 15 WHERE partition = 0 AND base_offset IN (12, 15)",
        {"watermark"}, "transaction 75 may be read, but not the batch at 12"),
    "the log starts behind its end": (
        "UPDATE topic_partition SET log_start = 5000 WHERE partition = 1",
        {"watermark", "expired"}, "the log starts at 5000"),
    "append times fall": (
        "UPDATE batches SET append_time = append_time + 60000 WHERE :one",
        {"clock"}, "before the batch before"),
    "a batch of no partition": (
        "INSERT INTO batches SELECT (r).* FROM (SELECT jsonb_populate_record(b, '{\"partition\": 5}') AS r"
        " FROM batches b WHERE partition = 0 AND base_offset = 3 AND producer_id IS NULL) n",
        {"catalog"}, "partition that the topic does not have"),
    # Groups.
    "a group is beyond the end": (
        "UPDATE group_offset SET committed_offset = 5000 WHERE partition = 0",
        {"offsets"}, "the log ends at 120"),
    "a group of no name": (
        "UPDATE group_offset SET group_id = 99", {"offsets"}, "a group that there is not"),
    "a group at a partition that is not there": (
        "UPDATE group_offset SET partition = 7 WHERE partition = 0",
        {"offsets"}, "does not have this partition"),
    "a group is behind the start": (
        "UPDATE group_offset SET committed_offset = 39 WHERE partition = 1",
        {"expired"}, "the log starts at 40"),
    "a commit of a later leader": (
        "UPDATE group_offset SET leader_epoch = 1 WHERE partition = 0",
        {"epochs"}, "but the partition is at 0"),
    "a commit of a later claim": (
        "UPDATE group_offset SET claim_epoch = 3 WHERE partition = 0", {"claims"}, "the claim is at none"),
    "a claim of no group": (
        "INSERT INTO group_claim (group_id, topic_id, partition) VALUES (99, 1, 0)", {"claims"}, "group"),
    "targets of the future": (
        "INSERT INTO group_claim (group_id, topic_id, partition) SELECT group_id, 1, 0 FROM log_group WHERE"
        " name = 'g'; UPDATE log_group SET assigned_epoch = group_epoch + 1 WHERE name = 'g'",
        {"claims"}, "computed for epoch"),
    # Share groups.
    "records in flight beyond the window": (
        "UPDATE share_flight SET last_offset = 70 WHERE first_offset = 47 AND partition = 0; UPDATE"
        " share_flight SET key_hash = null; DELETE FROM share_delay", {"share"}, "outside of the window"),
    "a record in flight twice": (
        "UPDATE share_delay SET first_offset = 47 WHERE partition = 0", {"share"}, "in two ranges"),
    "a window beyond the end": (
        "UPDATE share_window SET end_offset = 500 WHERE partition = 0", {"share"}, "but the log ends at 120"),
    "records in flight without a window": (
        "DELETE FROM share_window WHERE partition = 0", {"share"}, "has no window"),
    "two windows": (
        "INSERT INTO share_window SELECT group_id, topic_id, partition, 61, 40 FROM share_window WHERE"
        " partition = 0", {"share"}, "more than one window"),
    "a range with the key of one": (
        "UPDATE share_flight SET last_offset = 48 WHERE key_hash IS NOT NULL AND partition = 0", {"share"},
        "has the key of one"),
    # Files.
    "records that are neither here nor in a file": (
        "UPDATE topic_partition SET local_start = 5 WHERE partition = 0", {"files"}, "no file has"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found_and_nothing_else(log: Session, name: str) -> None:
    statements, expected, said = BREAKS[name]
    for statement in statements.split("; "):
        assert log.execute(statement.replace(":one", ONE).encode()).rowcount != 0
    found = audit(log)
    assert {check for check, *_ in found} == expected
    assert any(said in text for *_, text, _ in found), found
    strays = name in (
        "a row of a topic that is gone", "a table without topic", "a producer of a topic that is gone",
        "a seal covers what comes after it", "a seal ends beyond the log",
    )  # fmt: skip
    assert all((topic is None) == strays for _, topic, *_ in found)


def test_every_check_is_broken_by_some_test(sound: Session) -> None:
    named = {check for (check,) in rows(sound, 'SELECT "check" FROM verify_checks()')}
    assert named == set().union(*(expected for _, expected, _ in BREAKS.values()))


def test_a_finding_says_where(log: Session) -> None:
    log.execute("DELETE FROM batches WHERE partition = 1 AND base_offset = 18 AND producer_id IS NOT NULL")
    log.execute("DELETE FROM batches WHERE partition = 0 AND base_offset = 15")
    gap = next(finding for finding in audit(log) if finding[0] == "gap")
    assert gap[:6] == ("gap", "t", 0, 0, 18, None)


def test_more_findings_than_are_shown_are_counted(log: Session) -> None:
    log.execute("UPDATE b_1_0 SET size_bytes = size_bytes + 1")
    count = value(log, "SELECT count(*) FROM b_1_0")
    found = audit(log, at_most=3)
    assert [(check, total) for check, *_, total in found] == [("running", count)] * 3


def test_without_arrays_only_columns_are_looked_at(log: Session) -> None:
    broken = "UPDATE batches SET \"values\" = '{}', timestamps[1] = 1 WHERE :one"
    log.execute(broken.replace(":one", ONE).encode())
    assert {check for check, *_ in audit(log)} == {"counts", "timestamps", "running"}
    assert audit(log, arrays=False) == []
