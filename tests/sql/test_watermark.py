"""The parts of the high watermark, on one server: what is safe, where that ends, seals, epochs."""

from __future__ import annotations

import random

import psycopg
import pytest

from tests.support.sqllog import Connect, Session, append, refused, rows, value

FAR = 1 << 40


@pytest.fixture
def topic(session: Session) -> int:
    created: int = value(session, "SELECT create_topic('t', 2, '{\"segment.bytes\": \"1024\"}')")
    return created


def safe(session: Session, xact: int | None, bound: str | None) -> bool:
    found: bool = value(session, "SELECT is_safe(%s::int8, %s::pg_snapshot)", xact, bound)
    return found


def test_what_is_safe(session: Session) -> None:
    """Numbers below 700 are this server's past."""
    for xact, bound, expected in [
        (None, None, True),
        (500, None, True),
        (None, "100:200:150", True),
        (99, "100:200:150", True),
        (150, "100:200:150", False),
        (151, "100:200:150", True),
        (200, "100:200:150", False),
        (5, "1:1:", False),
        # This server has not come to it: it came with a dump.
        (FAR, "100:200:150", True),
    ]:
        assert safe(session, xact, bound) is expected, (xact, bound)
    session.execute("BEGIN")
    own = value(session, "SELECT pg_current_xact_id()::text::int8")
    assert not safe(session, own, "1:1:")
    session.execute("ROLLBACK")
    # Without standbys nothing is held back, and nothing says who appended it.
    assert value(session, "SELECT safe_limit()") is None
    assert value(session, "SELECT appending_xact()") is None


def test_the_end_of_what_is_safe_is_found_in_any_segment(session: Session, topic: int) -> None:
    for n in range(40):
        append(session, topic, [b"x" * 90] * (1 + n % 3))
    assert value(session, "SELECT count(*) FROM sealed_segment WHERE partition = 0") > 3
    session.execute("UPDATE batches SET xact = 100 + base_offset WHERE topic_id = %s", [topic])
    last = [end for (end,) in rows(session, "SELECT last_offset FROM batches ORDER BY last_offset")]
    starts = [start for (start,) in rows(session, "SELECT base_offset FROM batches ORDER BY base_offset")]
    bounds = {100, 101, 100 + starts[-1], 101 + starts[-1]} | {100 + random.choice(starts) for _ in range(25)}
    for bound in bounds:
        expected = max(
            (end + 1 for start, end in zip(starts, last, strict=True) if 100 + start < bound), default=0
        )
        found = value(
            session,
            "SELECT end_offset FROM last_such_end(%s, 0, 'is_safe(b.xact, $4)', %s::pg_snapshot, null)",
            topic,
            f"{bound}:{bound}:",
        )
        assert found == expected, bound
    # Nothing there, or nothing safe: where it begins.
    nothing = "SELECT end_offset FROM last_such_end(%s, %s, 'is_safe(b.xact, $4)', '1:1:', null)"
    assert value(session, nothing, topic, 1) == 0
    session.execute("SELECT delete_records('t', 0, 7)")
    assert value(session, nothing, topic, 0) == 7


def test_a_log_that_was_read_and_goes_on_elsewhere(session: Session, topic: int) -> None:
    for _ in range(6):
        append(session, topic, [b"x" * 300])
    session.execute(
        "UPDATE batches SET leader_epoch ="
        " CASE WHEN base_offset < 2 THEN 1 WHEN base_offset < 4 THEN 3 ELSE 7 END"
    )

    def ends(epoch: int | None, offset: int) -> list[tuple[int, int | None, int]]:
        return rows(
            session,
            "SELECT idx, leader_epoch, end_offset FROM epoch_ends(%s::int4[], '{0}', %s::int4[], %s::int8[])",
            [topic],
            [epoch],
            [offset],
        )

    for epoch, offset in [(1, 1), (1, 2), (3, 3), (3, 4), (7, 5), (7, 6), (1, 0), (None, 6), (None, 99)]:
        assert ends(epoch, offset) == [], (epoch, offset)
    assert ends(7, 7) == [(1, 7, 6)]
    assert ends(3, 5) == [(1, 3, 4)]
    assert ends(5, 6) == [(1, 3, 4)]
    assert ends(1, 4) == [(1, 1, 2)]
    assert ends(0, 3) == [(1, None, 0)]
    # A partition that there is not says nothing.
    assert rows(session, "SELECT * FROM epoch_ends('{999}', '{0}', '{1}', '{1}')") == []


def test_the_first_append_of_another_start_has_another_epoch(session: Session, topic: int) -> None:
    epochs = "SELECT leader_epoch FROM batches ORDER BY base_offset"
    append(session, topic)
    append(session, topic)
    assert rows(session, epochs) == [(0,), (0,)]
    for boot in (b"boot - interval '1 hour'", b"boot + interval '1 hour'", b"null"):
        session.execute(b"UPDATE topic_partition SET boot = " + boot)
        append(session, topic, acks=0)
        append(session, topic)
    assert rows(session, epochs) == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]
    assert (
        value(session, "SELECT timeline() FROM info()") == value(session, "SELECT timeline FROM info()") == 1
    )


def test_seals_follow_each_other_and_end(session: Session, connect: Connect, topic: int) -> None:
    """Without standbys each is confirmed by the next; two, and there is nothing more to say."""

    def sealed() -> int:
        while True:
            newest, pending = rows(session, "SELECT sealed_to, pending FROM seal()")[0]
            if not pending:
                return int(newest)

    def settle() -> int:
        """Sealed again, it is as it was, unless the server itself has committed something meanwhile."""
        found = [sealed() for _ in range(4)]
        assert len(set(found)) < len(found), found
        return found[-1]

    first = settle()
    append(session, topic)
    assert settle() > first
    ((xact, low, high, confirmed),) = rows(
        session,
        "SELECT xact, pg_snapshot_xmin(confirmed)::text::int8, pg_snapshot_xmax(snapshot)::text::int8,"
        " confirmed::text FROM seal ORDER BY seal_id DESC LIMIT 1",
    )
    assert low <= high <= xact
    # Somebody who was under way then, and commits now, is news; while it is under way it is none.
    other = connect()
    other.execute("BEGIN")
    append(other, topic, partition=1)
    append(session, topic)
    before = settle()
    other.execute("COMMIT")
    assert value(session, "SELECT pending FROM seal()")
    assert settle() > before
    assert value(session, "SELECT confirmed::text FROM seal ORDER BY seal_id DESC LIMIT 1") != confirmed


def test_sealing_waits_for_nobody(session: Session, connect: Connect, topic: int) -> None:
    other = connect()
    append(session, topic)
    other.execute("BEGIN")
    other.execute("SELECT seal()")
    assert value(session, "SELECT pending FROM seal()")
    other.execute("ROLLBACK")
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert refused(session, "SELECT seal()").sqlstate == "LS012"
    session.execute("ROLLBACK")
    assert isinstance(session, psycopg.Connection)


def test_only_the_newest_seals_are_kept(session: Session) -> None:
    for _ in range(130):
        session.execute(
            "INSERT INTO seal (xact, snapshot, lsn) SELECT pg_current_xact_id()::text::int8, '3:3:', '0/0'"
        )
    assert value(session, "SELECT delete_old_seals()") == 29
    assert value(session, "SELECT delete_old_seals()") == 0
    assert value(session, "SELECT (newest_seal()).seal_id = max(seal_id) FROM seal")
    # One that came with a dump was written by another transaction than it says.
    session.execute("INSERT INTO seal (xact, snapshot, lsn) VALUES (999999, '999:999:', 'FF/0')")
    assert value(session, "SELECT (newest_seal()).seal_id = max(seal_id) - 1 FROM seal")
