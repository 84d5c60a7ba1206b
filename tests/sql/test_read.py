"""read() returns exactly the records of its range and touches only the batches that have some."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.sqllog import Session, append, refused, rows, value

pytestmark = pytest.mark.every_server

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
EPOCH_MS = int(EPOCH.timestamp() * 1000)


def created(session: Session, segment_bytes: int = 1_000_000, partitions: int = 1) -> int:
    topic: int = value(
        session, "SELECT create_topic('t', %s, %s)", partitions, json.dumps({"segment.bytes": segment_bytes})
    )
    return topic


def at(milliseconds: float | None) -> datetime | None:
    return None if milliseconds is None else EPOCH + timedelta(milliseconds=milliseconds)


@pytest.fixture(params=["ordered", "shuffled"])
def filled(request: pytest.FixtureRequest, session: Session) -> Iterator[list[tuple[int, int, int]]]:
    """Records (partition, offset, ms) of a topic in several segments, its first seven records deleted."""
    dice = random.Random(11)
    topic = created(session, 700, partitions=2)
    log: dict[int, list[int]] = {0: [], 1: []}
    with session.transaction():
        for number in range(60):
            start = number * 10 if request.param == "ordered" else dice.randrange(600)
            times = [
                start + (n if request.param == "ordered" else dice.randrange(-20, 20)) + 50
                for n in range(dice.choice([1, 1, 3]))
            ]
            append(session, topic, len(times), number % 2, timestamps=[EPOCH_MS + time for time in times])
            log[number % 2] += times
    session.execute("SELECT delete_records('t', 0, 7)")
    yield [
        (partition, offset, time)
        for partition, times in log.items()
        for offset, time in enumerate(times)
        if partition or offset >= 7
    ]


def test_every_range(session: Session, filled: list[tuple[int, int, int]]) -> None:
    dice = random.Random(5)

    def some(*values: float) -> float | None:
        return dice.choice([None, None, *values])

    for _ in range(150):
        partition = dice.choice([None, 0, 1])
        from_offset, to_offset = some(0, 5, 9, 20, 49, 999), some(-1, 0, 6, 9, 21, 50, 999)
        from_time, to_time = some(0, 100, 200.5, 333, 640, 900), some(0, 60, 100.5, 300, 500, 641, 900)
        most = some(0, 1, 2, 7, 40)
        bounds = (partition, from_offset, to_offset, at(from_time), at(to_time), most)
        expected = [
            (p, offset)
            for p, offset, time in filled
            if (partition is None or p == partition)
            and (from_offset is None or offset >= from_offset)
            and (to_offset is None or offset < to_offset)
            and (from_time is None or time >= from_time)
            and (to_time is None or time < to_time)
        ]
        got = rows(
            session,
            "SELECT partition, \"offset\" FROM read('t', %s::int4, %s::int8, %s::int8, %s::timestamptz,"
            " %s::timestamptz, %s::int8)",
            *bounds,
        )
        assert got == (expected if most is None else expected[: int(most)]), bounds


def test_columns_are_those_of_the_view(session: Session, filled: list[tuple[int, int, int]]) -> None:
    assert rows(session, "SELECT * FROM read('t')") == rows(session, "SELECT * FROM records ORDER BY 2, 3")
    assert len(rows(session, "SELECT * FROM read('t')")) == len(filled)


def batches_touched(session: Session, call: str) -> int:
    """How many batches read() brought, from the plan."""
    ((plan,),) = rows(session, f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT value FROM read({call})")  # noqa: S608

    def scans(node: dict[str, Any]) -> Iterator[int]:
        if node.get("Function Name") == "read_batches":
            yield int(node["Actual Rows"])
        for child in node.get("Plans", []):
            yield from scans(child)

    (touched,) = scans(plan[0]["Plan"])
    return touched


BOUNDS = [
    ("", 300),
    (", 0, 500, 600", 10),
    (", 0, 505, 506", 1),
    (", 0, 509, 511", 2),
    (", max_records => 25", 3),
    (", from_offset => 2995", 1),
    (", from_offset => 3000", 0),
    (", to_offset => 0", 0),
    (", from_time => {0}", 100),
    (", from_time => {0}, max_records => 15", 2),
    (", from_time => {0}, to_time => {1}", 10),
    (", to_time => {0}", 201),
    (", from_time => {2}", 0),
]


def test_only_the_batches_it_must(session: Session) -> None:
    topic = created(session)
    session.execute(
        """SELECT count(append(%s, 0, 10, %s + i * 10 + 9,
               array(SELECT %s + i * 10 + n FROM generate_series(0, 9) n), null,
               '{a,b,c,d,e,f,g,h,i,j}', null, null, null, 1::int2)) FROM generate_series(0, 299) i""",
        (topic, EPOCH_MS, EPOCH_MS),
    )
    times = [f"'{at(time)}'" for time in (2005, 2100, 9999)]
    reads = (
        "SELECT coalesce(idx_tup_fetch, 0) + seq_tup_read FROM pg_stat_xact_user_tables"
        " WHERE relname = 'b_1_0'"
    )
    for analysed in (False, True):
        if analysed:
            session.execute("ANALYZE b_1_0")
        for bounds, batches in BOUNDS:
            call = "'t'" + bounds.format(*times)
            assert batches_touched(session, call) == batches, call
            with session.transaction():
                before = value(session, reads)
                rows(session, f"SELECT value FROM read({call})")  # noqa: S608
                # The binary searches probe about 12 batches each, the loop reads up to 50 rows ahead.
                assert value(session, reads) - before <= batches + 90, call


def test_what_is_not_there(session: Session) -> None:
    created(session)
    assert refused(session, "SELECT * FROM read('nope')").sqlstate == "LS001"
    assert refused(session, "SELECT * FROM read(null)").sqlstate == "LS001"
    assert refused(session, "SELECT * FROM read('t', 1)").sqlstate == "LS001"
    assert rows(session, "SELECT * FROM read('t')") == []
    assert rows(session, "SELECT * FROM read('t', 0, from_time => '-infinity', to_time => 'infinity')") == []
