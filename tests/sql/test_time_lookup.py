"""Offsets for times, compared with a look at every record."""

from __future__ import annotations

import json
import random

import pytest

from tests.support.sqllog import Session, append, refused, rows, value

pytestmark = pytest.mark.every_server


def created(session: Session, segment_bytes: int) -> int:
    topic: int = value(
        session, "SELECT create_topic('t', 2, %s)", json.dumps({"segment.bytes": segment_bytes})
    )
    return topic


def listed(session: Session, topic: int, spec: int, partition: int = 0) -> tuple[int | None, int | None]:
    ((offset, timestamp),) = rows(
        session, 'SELECT "offset", "timestamp" FROM list_offsets(%s, %s, %s)', [topic], [partition], [spec]
    )
    return offset, timestamp


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("segment_bytes", [600, 1_000_000])
def test_every_time_finds_its_first_record(session: Session, segment_bytes: int, ordered: bool) -> None:
    dice = random.Random(segment_bytes + ordered)
    topic = created(session, segment_bytes)
    log: list[int] = []
    with session.transaction():
        for number in range(60):
            base = 1000 + number * 10 if ordered else 1000 + dice.randrange(600)
            batch = [
                base + (at if ordered else dice.randrange(30)) for at in range(dice.choice([1, 1, 2, 5]))
            ]
            timestamps = None if dice.random() < 0.3 else batch
            if timestamps is None:
                batch = [batch[0]] * len(batch)
            append(session, topic, len(batch), timestamps=timestamps, at=batch[0])
            log += batch
    for start in (0, 1, 37, len(log) - 1):
        assert value(session, "SELECT delete_records('t', 0, %s)", start) == start
        live = list(enumerate(log))[start:]
        wanted = sorted({0, 1, 10**12, *log, *(at + 1 for at in log)})
        answers = rows(
            session,
            'SELECT "offset", "timestamp" FROM list_offsets(%s, %s, %s) ORDER BY idx',
            [topic] * len(wanted),
            [0] * len(wanted),
            wanted,
        )
        expected = [next(((o, t) for o, t in live if t >= at), (None, None)) for at in wanted]
        assert answers == expected
        top = max(t for _, t in live)
        assert listed(session, topic, -3) == next((o, t) for o, t in live if t == top)


def test_ends(session: Session) -> None:
    topic = created(session, 1000)
    assert [listed(session, topic, spec) for spec in (-1, -2, -3, 0)] == [
        (0, None),
        (0, None),
        (None, None),
        (None, None),
    ]
    append(session, topic, 3)
    assert value(session, "SELECT delete_records('t', 0, 2)") == 2
    assert [listed(session, topic, spec)[0] for spec in (-1, -2, -3)] == [3, 2, 2]
    assert listed(session, topic, -1, partition=1) == (0, None)


def test_what_is_not_there(session: Session) -> None:
    topic = created(session, 1000)
    query = "SELECT list_offsets(%s, %s, %s)"
    assert refused(session, query, [topic], [2], [-1]).sqlstate == "LS001"
    assert refused(session, query, [topic + 1], [0], [-1]).sqlstate == "LS001"
    assert refused(session, query, [topic], [0], [-6]).sqlstate == "LS012"


def test_a_time_is_found_by_probing_not_by_scanning(session: Session) -> None:
    topic = created(session, 100_000_000)
    session.execute(
        "SELECT count(append(%s, 0, 1, 1000 + i, null, null, '{v}', null, null, null, 1::int2)) FROM"
        " generate_series(1, 3000) i",
        (topic,),
    )
    session.execute("ANALYZE b_1_0")
    reads = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'b_1_0'"
    with session.transaction():
        before = value(session, reads)
        assert listed(session, topic, 2500) == (1499, 2500)
        assert value(session, reads) - before < 40


def test_deleting_records_moves_the_start_and_nothing_else(session: Session) -> None:
    topic = created(session, 300)
    for _ in range(10):
        append(session, topic, 2)
    delete = "SELECT delete_records('t', 0, %s)"
    assert value(session, delete, 7) == 7
    assert value(session, delete, 3) == 7, "never back"
    assert refused(session, delete, 21).sqlstate == "LS006"
    assert refused(session, delete, -2).sqlstate == "LS006"
    assert refused(session, delete, None).sqlstate == "LS006"
    assert refused(session, "SELECT delete_records('t', 2, 0)").sqlstate == "LS001"
    assert refused(session, "SELECT delete_records('nope', 0, 0)").sqlstate == "LS001"
    assert append(session, topic)[2] == 7
    assert value(session, 'SELECT min("offset") FROM records') == 7
    assert value(session, delete, -1) == 21
    assert value(session, "SELECT count(*) FROM records") == 0
    assert append(session, topic)[0] == 21
