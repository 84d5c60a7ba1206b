"""Counting topics, and looking after sealed segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from logstore.workers import statistics

pytestmark = pytest.mark.every_server
Session = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def fill(session: Session, topic: str, records: int) -> None:
    for number in range(records):
        session.execute("SELECT logstore.produce(%s, null, %s::text)", [topic, str(number)])
    session.execute("SELECT logstore.drain()")


def test_counts(session: Session, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "TOPICS", 1)
    for topic, records in (("a", 3), ("b", 0), ("c", 5)):
        session.execute("SELECT logstore.create_topic(%s, 2)", [topic])
        fill(session, topic, records)
    result = statistics.run_once(database)
    assert (result.topics, result.records) == (3, 8)
    counts = (
        "SELECT t.name, s.partitions, s.segments, s.records, s.bytes > 0 "
        "FROM logstore.topic_statistics s LEFT JOIN logstore.topic t USING (topic_id) ORDER BY 1"
    )
    assert session.execute(counts.encode()).fetchall() == [
        ("a", 2, 1, 3, True),
        ("b", 2, 1, 0, False),
        ("c", 2, 1, 5, True),
    ]
    session.execute("SELECT logstore.delete_topic('a')")
    fill(session, "b", 1)
    assert (statistics.run_once(database).topics, result.records) == (2, 8)
    assert [row[:4:3] for row in session.execute(counts.encode())] == [("b", 1), ("c", 5)]


def test_sealed_segments_are_frozen_once_and_analyzed_once(session: Session, database: str) -> None:
    session.execute("SELECT logstore.create_topic('t', 1)")
    fill(session, "t", 3)
    # The active segment is left to the server.
    result = statistics.run_once(database, freeze_age=0)
    assert (result.frozen, result.analyzed) == ((), ())
    session.execute(
        'SELECT logstore.alter_topic(\'t\', \'{"segment.ms": "100", "segment.jitter.ms": "0"}\', \'{}\')'
    )
    session.execute("UPDATE logstore.topic SET roll_at = 0")
    fill(session, "t", 3)
    session.execute("UPDATE logstore.topic SET roll_at = 9223372036854775807")
    result = statistics.run_once(database, freeze_age=0)
    assert result.frozen == result.analyzed == ("logstore.b_1_0",)
    (frozen,) = session.execute(
        "SELECT relallvisible = relpages AND relpages > 0 AND reltuples = 1 FROM pg_class "
        "WHERE relname = 'b_1_0'"
    ).fetchone() or (None,)
    assert frozen
    # Young rows need no care, and it has been analyzed.
    result = statistics.run_once(database, freeze_age=1000)
    assert (result.frozen, result.analyzed) == ((), ())


def test_a_leaf_that_somebody_has_locked_is_passed_over(session: Session, database: str) -> None:
    session.execute("SELECT logstore.create_topic('t', 1)")
    fill(session, "t", 3)
    session.execute("UPDATE logstore.topic SET roll_at = 0")
    fill(session, "t", 3)
    session.execute("UPDATE logstore.topic SET roll_at = 9223372036854775807")
    with psycopg.connect(database, prepare_threshold=None) as other:
        other.execute("LOCK TABLE logstore.b_1_0 IN SHARE UPDATE EXCLUSIVE MODE")
        assert statistics.run_once(database).analyzed == ()
    assert statistics.run_once(database).analyzed == ("logstore.b_1_0",)


def test_arrays_have_no_statistics(session: Session) -> None:
    session.execute("SELECT logstore.create_topic('t', 1)")
    fill(session, "t", 3)
    session.execute("ANALYZE logstore.b_1_0")  # as autovacuum does
    columns = {
        name for (name,) in session.execute("SELECT attname::text FROM pg_stats WHERE tablename = 'b_1_0'")
    }
    assert "last_offset" in columns
    assert not columns & {"keys", "values", "timestamps", "offset_deltas", "header_keys", "header_values"}
