"""What a reader may see, on a leader and its hot standbys: nothing that a failover can take away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from logstore.embedded import binaries
from logstore.workers import compaction, seal
from tests.support.programs import eventually
from tests.support.shown import (
    ALL,
    ends,
    fetched,
    make_topic,
    marks,
    put,
    rows_of,
    sealed,
    seen,
    shows,
    waiting,
)
from tests.support.sqllog import NOW_MS, append, rows, value
from tests.support.standbys import Group, standbys

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shared() -> Iterator[Group]:
    """A leader with two followers, for tests that leave them as they were."""
    with standbys(2) as group:
        yield group


@pytest.fixture
def group(shared: Group) -> Iterator[Group]:
    """The same, with s1 and s2 both to be waited for, and everything that was done replicated."""
    shared.synchronous("ANY 2 (s1, s2)")
    yield shared
    for follower in shared.followers:
        shared.follow(follower)
    shared.synchronous("")


@pytest.fixture
def topic(group: Group) -> int:
    return make_topic(group)


def test_what_a_failover_takes_away_was_shown_by_nobody() -> None:
    """Two standbys have to have it; one has, the other is cut off; the leader dies, the other one leads."""
    with standbys(2, "ANY 2 (s1, s2)") as group:
        topic = make_topic(group)
        s1, s2 = group.node("s1"), group.node("s2")
        assert [put(group, topic, b"A"), put(group, topic, b"B")] == [0, 1]
        sealed(group)
        shows(s1, topic, [b"A", b"B"])
        group.cut_off(s2)
        with waiting(group, topic, b"C") as (_, outcome):
            eventually(
                lambda: s1.execute("SELECT 1 FROM logstore.batches WHERE base_offset = 2") != [], "s1 has C"
            )
            for _ in range(3):
                with group.leader.connect() as session:
                    session.execute("SELECT seal()")
                assert marks(s1, topic) == (2, 3)
                assert seen(s1, topic) == [b"A", b"B"] == seen(group.leader, topic)
            group.leader.kill()
        assert isinstance(outcome[0], psycopg.OperationalError)
        assert seen(s1, topic) == [b"A", b"B"]
        group.fail_over(s2)
        group.leader.set(synchronous_standby_names="")
        assert seen(s2, topic) == [b"A", b"B"]
        assert put(group, topic, b"D") == 2
        assert seen(s2, topic) == [b"A", b"B", b"D"]
        # Whoever has read on s1, which still has C, up to where that may be read, goes on here.
        (old, new) = (rows_of(s1, topic, 1), rows_of(s2, topic, 2))
        assert new > old
        assert ends(s2, topic, old, 2) == []
        # And whoever had read C would be told.
        assert ends(s2, topic, old, 3) == [(1, old, 2)]


@pytest.mark.parametrize("acks", [0, 1])
def test_weak_appends_are_shown_when_the_standbys_have_them(group: Group, topic: int, acks: int) -> None:
    put(group, topic, b"A")
    sealed(group)
    group.cut_off(group.node("s2"))
    assert put(group, topic, b"B", acks) == 1
    s1 = group.node("s1")
    eventually(lambda: marks(s1, topic) == (1, 2), "s1 has it")
    for node in (group.leader, s1):
        assert seen(node, topic) == [b"A"]
        assert marks(node, topic) == (1, 2)
    with group.leader.connect() as session:
        for _ in range(3):
            session.execute("SELECT seal()")
    assert seen(group.leader, topic) == [b"A"] == seen(s1, topic)
    group.follow(group.node("s2"))
    # Nobody appends any more: the sealer alone closes the gap.
    eventually(lambda: not seal.run_once(group.leader.dsn).more, "sealed")
    for node in group.nodes:
        shows(node, topic, [b"A", b"B"])


def test_a_standby_that_has_stopped_listening_counts_for_nothing(group: Group, topic: int) -> None:
    """It is connected still, and says that it streams."""
    s1 = group.node("s1")
    put(group, topic, b"A")
    sealed(group)
    receiver = s1.receiver()
    assert receiver is not None
    os.kill(receiver, signal.SIGSTOP)
    try:
        put(group, topic, b"B", 1)
        with group.leader.connect() as session:
            for _ in range(3):
                session.execute("SELECT seal()")
        group.caught_up(group.node("s2"))
        for node in group.nodes:
            assert seen(node, topic) == [b"A"]
    finally:
        os.kill(receiver, signal.SIGCONT)
    sealed(group)
    for node in group.nodes:
        shows(node, topic, [b"A", b"B"])


def test_whoever_may_not_see_standbys_is_told(group: Group, topic: int) -> None:
    group.leader.execute("REVOKE pg_monitor FROM logstore")
    try:
        with group.leader.connect() as session, pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
            session.execute("SELECT seal()")
        assert "GRANT pg_read_all_stats TO logstore" in str(raised.value.diag.message_hint)
    finally:
        group.leader.execute("GRANT pg_monitor TO logstore")


def test_a_cancelled_wait_shows_nothing_before_it_is_replicated(group: Group, topic: int) -> None:
    put(group, topic, b"A")
    sealed(group)
    group.cut_off(group.node("s2"))
    for number, function in enumerate(("pg_cancel_backend", "pg_terminate_backend")):
        content = f"C{number}".encode()
        with waiting(group, topic, content) as (pid, outcome):
            group.leader.execute(f"SELECT {function}(%s)", pid)
            eventually(lambda: bool(outcome), "the wait has ended")
        # It is committed here, and SQL that looks at the tables sees it.
        assert group.leader.execute("SELECT count(*) FROM logstore.batches WHERE topic_id = %s", topic) == [
            (number + 2,)
        ]
        with group.leader.connect() as session:
            session.execute("SELECT seal()")
        assert marks(group.leader, topic) == (1, number + 2)
        assert seen(group.leader, topic) == [b"A"] == seen(group.node("s1"), topic)
    # What is appended after it is no more to be seen than what it comes after.
    with waiting(group, topic, b"D"):
        assert seen(group.leader, topic) == [b"A"] == seen(group.node("s1"), topic)
        group.follow(group.node("s2"))
    sealed(group)
    for node in group.nodes:
        shows(node, topic, [b"A", b"C0", b"C1", b"D"])


def test_a_leader_that_crashed_shows_nothing_before_it_is_replicated() -> None:
    with standbys(1, "s1") as group:
        topic = make_topic(group)
        put(group, topic, b"A")
        sealed(group)
        group.cut_off(group.node("s1"))
        put(group, topic, b"B", 1)
        first = rows_of(group.leader, topic, 0)
        group.leader.restart()
        assert marks(group.leader, topic) == (1, 2)
        assert seen(group.leader, topic) == [b"A"]
        # Under another epoch, though it is the same server.
        put(group, topic, b"C", 1)
        assert rows_of(group.leader, topic, 2) == first + 1
        group.follow(group.node("s1"))
        sealed(group)
        for node in group.nodes:
            shows(node, topic, [b"A", b"B", b"C"])
        # A promotion: a new timeline, and nothing shown that its own standbys do not have.
        group.fail_over(group.node("s1"))
        group.leader.set(synchronous_standby_names="p")
        second = rows_of(group.leader, topic, 2)
        put(group, topic, b"D", 1)
        assert rows_of(group.leader, topic, 3) == 1 << 16 > second
        assert seen(group.leader, topic) == [b"A", b"B", b"C"]
        assert ends(group.leader, topic, second, 3) == []
        with group.leader.connect() as session:
            assert rows(session, "SELECT timeline, replicated, is_in_recovery FROM info()") == [
                (2, True, False)
            ]


def test_a_crash_that_loses_records_is_told_by_their_epoch() -> None:
    with standbys(0) as group:
        topic = make_topic(group)
        leader = group.leader
        leader.set(wal_writer_delay="10s")
        put(group, topic, b"A", 1)
        with contextlib.closing(leader.connect()) as session:
            append(session, topic, [b"B"], acks=0)
            assert fetched(session, topic) == [b"A", b"B"]
            first = rows_of(leader, topic, 1)
            leader.kill()
        leader.start()
        assert seen(leader, topic) == [b"A"]
        assert ends(leader, topic, first, 2) == [(1, first, 1)]
        assert ends(leader, topic, first, 1) == []
        with contextlib.closing(leader.connect()) as session:
            # The first append of a new life is flushed, whatever it asks for: its epoch is never used again.
            append(session, topic, [b"C"], acks=0)
            second = rows_of(leader, topic, 1)
            leader.kill()
        leader.start()
        assert seen(leader, topic) == [b"A", b"C"]
        assert second == first + 1
        assert ends(leader, topic, first, 2) == [(1, first, 1)]
        assert ends(leader, topic, second, 2) == []
        put(group, topic, b"D", 0)
        assert rows_of(leader, topic, 2) == second + 1
        with leader.connect() as session:
            boots = {value(session, "SELECT boot FROM info()") for _ in range(2)}
            assert len(boots) == 1


def test_servers_that_were_killed_leave_nothing_in_memory() -> None:
    before = segments()
    with standbys(0) as group:
        postmaster = group.leader.processes()[0].pid
        # What would be a file there is in the data directory.
        assert "/dev/shm/PostgreSQL." not in Path(f"/proc/{postmaster}/maps").read_text()
        # Others start servers meanwhile; who made what is there already may have had the same number.
        (its,) = {name for name, maker in (segments() - before) if maker == postmaster}
        group.leader.kill()
        # For whoever starts it again.
        assert (its, postmaster) in segments()
    assert (its, postmaster) not in segments()


def segments() -> set[tuple[int, int]]:
    """The segments of System V's shared memory there are, each with the process that made it."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {(int(line.split()[1]), int(line.split()[4])) for line in lines}


def test_as_many_standbys_as_the_setting_asks_for(group: Group, topic: int) -> None:
    """ANY, FIRST, a number, a list, a star: what counts is what the server itself waits for."""
    one, two = group.node("s1"), group.node("s2")
    settings = [
        ("ANY 1 (s1, s2)", False),
        ("any 2 (s2, s1)", True),
        ("FIRST 2 (s1, s2)", True),
        ("2 (s1, s2)", True),
        ("s1, s2", False),
        ("*", False),
        ('FIRST 1 ("s1", "s2")', False),
    ]
    for at, (names, needs_two) in enumerate(settings, 1):
        group.synchronous(names)
        group.cut_off(two)
        put(group, topic, b"x", 1)
        with group.leader.connect() as session:
            if needs_two:
                for _ in range(3):
                    session.execute("SELECT seal()")
                assert marks(group.leader, topic) == (at - 1, at), names
            else:
                sealed(group)
                assert marks(group.leader, topic) == (at, at), names
                eventually(lambda at=at: marks(one, topic) == (at, at), names)  # type: ignore[misc]
        group.follow(two)
        sealed(group)
        eventually(lambda at=at: marks(group.leader, topic) == (at, at), names)  # type: ignore[misc]


def test_followers_of_an_unreplicated_leader_serve_to_the_end(group: Group, topic: int) -> None:
    put(group, topic, b"A", 1)
    group.synchronous("")
    put(group, topic, b"B", 1)
    assert seen(group.leader, topic) == [b"A", b"B"]
    for node in group.followers:
        shows(node, topic, [b"A", b"B"])
    other = make_topic(group)
    group.synchronous("ANY 2 (s1, s2)")
    put(group, other, b"A", 1)
    group.synchronous("")
    # That one was promised, and is not sealed: followers wait for the sealer, which waits for nobody.
    assert seen(group.leader, other) == [b"A"]
    eventually(lambda: not seal.run_once(group.leader.dsn).more, "sealed")
    for node in group.followers:
        shows(node, other, [b"A"])


def test_a_follower_shows_what_is_sealed_however_far_it_has_come(group: Group, topic: int) -> None:
    s1 = group.node("s1")
    put(group, topic, b"A")
    sealed(group)
    shows(s1, topic, [b"A"])
    group.caught_up(s1)
    s1.execute("SELECT pg_wal_replay_pause()")
    try:
        put(group, topic, b"B")
        sealed(group)
        shows(group.node("s2"), topic, [b"A", b"B"])
        with s1.connect() as session, group.leader.connect() as leader:
            assert fetched(session, topic) == [b"A"]
            assert value(session, "SELECT replay_lag_ms FROM replica_state()") >= 0
            newest = value(leader, "SELECT sealed_to FROM seal()")
            assert value(session, "SELECT seal_id FROM replica_state()") < newest
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                session.execute("SELECT seal()")
    finally:
        s1.execute("SELECT pg_wal_replay_resume()")
    shows(s1, topic, [b"A", b"B"])


def test_no_seal_covers_a_transaction_number_that_is_given_out_again() -> None:
    """Numbers that leave nothing in the write-ahead log are given out once more by whoever takes over."""
    with standbys(1, "s1") as group:
        topic = make_topic(group)
        put(group, topic, b"A")
        with contextlib.closing(group.leader.connect()) as session:
            session.execute("CREATE TEMP TABLE scratch (n int)")
            session.execute("BEGIN")
            session.execute("SELECT pg_current_xact_id()")
            for n in range(20):
                # A number each, in memory only: a snapshot does not even say that they are under way.
                session.execute("SAVEPOINT s")
                session.execute("INSERT INTO scratch VALUES (%s)", [n])
            put(group, topic, b"B")
            sealed(group)
            eventually(lambda: marks(group.node("s1"), topic) == (2, 2), "sealed")
            group.leader.kill()
        group.fail_over(group.node("s1"))
        ((next_one, covered),) = group.leader.execute(
            "SELECT pg_current_xact_id()::text::int8, pg_snapshot_xmax(confirmed)::text::int8"
            " FROM logstore.seal ORDER BY seal_id DESC LIMIT 1"
        )
        assert next_one >= covered


def test_a_log_from_a_dump_is_readable_and_its_seals_say_nothing(group: Group, topic: int) -> None:
    with group.leader.connect(synchronous_commit="off") as session:
        # Far ahead of the server that it comes to: restoring takes thousands of transactions.
        session.execute(
            "DO $$BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$"
        )
    put(group, topic, b"A")
    put(group, topic, b"B")
    sealed(group)
    programs = binaries.find()
    dump = subprocess.run(
        [
            programs.directory / "pg_dump",
            "-d",
            group.leader.superuser_dsn,
            "-n",
            "logstore",
            "-n",
            "logstore_topics",
        ],
        check=True,
        capture_output=True,
        env=programs.environment(),
    ).stdout
    with standbys(1, "s1") as other:
        group_boot = rows_of(group.leader, topic, 1)
        other.leader.execute("DROP SCHEMA logstore, logstore_topics CASCADE")
        subprocess.run(
            [programs.directory / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", other.leader.superuser_dsn],
            input=dump,
            check=True,
            capture_output=True,
            env=programs.environment(),
        )
        for node in other.nodes:
            shows(node, topic, [b"A", b"B"])
        other.cut_off(other.node("s1"))
        put(other, topic, b"C", 1)
        assert rows_of(other.leader, topic, 2) > group_boot
        # The seals of the dump, whose places in the log are far ahead too, do not make it safe.
        assert marks(other.leader, topic) == (2, 3)
        other.follow(other.node("s1"))
        sealed(other)
        for node in other.nodes:
            shows(node, topic, [b"A", b"B", b"C"])


def test_everything_that_reads_stays_below(group: Group) -> None:
    """Look-ups by time and key, SQL, share groups, mirrors, deletion, retention, compaction, files."""
    leader = group.leader
    with leader.connect(synchronous_commit="local") as session:
        topic = value(
            session,
            "SELECT create_topic('all', 1,"
            ' \'{"cleanup.policy": "compact,delete", "segment.bytes": "1024"}\')',
        )
        append(session, topic, [b"A"], keys=[b"k"], acks=ALL, at=NOW_MS)
        sealed(group)
        group.cut_off(group.node("s2"))
        for n in range(1, 4):
            append(session, topic, [b"x" * 900], keys=[b"k"], acks=1, at=NOW_MS + n)

        def safe() -> dict[str, object]:
            offsets: dict[int, int | None] = dict(
                rows(
                    session,
                    "SELECT idx, \"offset\" FROM list_offsets(array_fill(%s, '{3}'), '{0,0,0}', %s::int8[])",
                    topic,
                    [-1, -3, NOW_MS + 1],
                )
            )
            return {
                "latest": offsets[1],
                "newest": offsets[2],
                "by time": offsets[3],
                "read": value(session, "SELECT count(*) FROM read('all')"),
                "chunk": value(
                    session,
                    "SELECT sum(record_count) FROM read_chunk('all', 0, 0, NULL, NULL, NULL, 100)",
                ),
                "by key": value(session, "SELECT min(\"offset\") FROM latest('all', 'k')"),
                "mirrored": value(
                    session, "SELECT sum(record_count) FROM mirror_read(%s, 0, 0, 1000000)", topic
                ),
                "shown": rows(
                    session, "SELECT high_watermark, log_end_offset FROM partitions WHERE topic = 'all'"
                ),
            }

        assert safe() == {
            "latest": 1,
            "newest": 0,
            "by time": None,
            "read": 1,
            "chunk": 1,
            "by key": 0,
            "mirrored": 1,
            "shown": [(1, 4)],
        }
        assert value(session, "SELECT count(*) FROM records WHERE topic = 'all'") == 4
        assert value(session, "SELECT delete_records('all', 0, -1)") == 1
        with pytest.raises(psycopg.Error, match="ends at offset 1"):
            session.execute("SELECT delete_records('all', 0, 2)")
        session.execute(
            'SELECT alter_topic(\'all\', \'{"retention.bytes": "1", "min.cleanable.dirty.ratio": "0"}\')'
        )
        session.execute("SELECT apply_retention(%s)", [topic])
        assert marks(leader, topic) == (1, 4)
        assert rows(session, "SELECT sources FROM topics_to_compact()") in ([], [([0],)])
        assert rows(session, "SELECT * FROM next_copy(%s)", topic) == []
        group.follow(group.node("s2"))
        sealed(group)
        eventually(lambda: marks(leader, topic) == (4, 4), "the end")
        assert value(session, "SELECT count(*) FROM read('all')") == 3
        session.execute("SELECT apply_retention(%s)", [topic])
        assert value(session, "SELECT min(log_start) FROM partitions WHERE topic = 'all'") > 1


def test_rewritten_batches_keep_what_they_say_of_their_transaction(group: Group) -> None:
    with group.leader.connect() as session:
        topic = value(
            session,
            'SELECT create_topic(\'again\', 1, \'{"cleanup.policy": "compact", "segment.bytes": "1024",'
            ' "min.cleanable.dirty.ratio": "0"}\')',
        )
        for n in range(6):
            append(session, topic, [b"x" * 400], keys=[f"k{n}".encode()], acks=ALL, at=NOW_MS + n)
    sealed(group)
    before = seen(group.leader, topic)
    while compaction.run_once(group.leader.dsn).more:
        pass
    assert group.leader.execute(
        "SELECT bool_or(rewritten) FROM logstore.topic_segment WHERE topic_id = %s", topic
    ) == [(True,)]
    # One row for many: the last one's number, which no follower takes for another cluster's, or for none.
    assert group.leader.execute(
        "SELECT count(*) FROM logstore.batches WHERE topic_id = %s AND xact IS NULL", topic
    ) == [(0,)]
    sealed(group)
    for node in group.nodes:
        eventually(lambda node=node: marks(node, topic) == (6, 6), "the end")  # type: ignore[misc]
    assert before
    with group.leader.connect() as session:
        for (segment,) in rows(
            session, "SELECT segment FROM topic_segment WHERE topic_id = %s AND live", topic
        ):
            assert (
                rows(
                    session,
                    "SELECT found FROM verify_segment(%s, %s) WHERE \"check\" = 'watermark'",
                    topic,
                    segment,
                )
                == []
            )


def test_the_sealer_writes_nothing_when_there_is_nothing_to_seal(group: Group, topic: int) -> None:
    put(group, topic, b"A")
    eventually(lambda: not seal.run_once(group.leader.dsn).more, "sealed")
    shows(group.node("s1"), topic, [b"A"])
    now = group.leader.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())")
    for _ in range(3):
        assert seal.run_once(group.leader.dsn) == seal.Sealed(0, 0)
    assert group.leader.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())") == now
    # Other transactions are none of its business.
    group.leader.execute("CREATE TABLE IF NOT EXISTS public.other (n int)")
    assert seal.run_once(group.leader.dsn) == seal.Sealed(0, 0)
    # Neither does it write while the standbys do not come along.
    group.cut_off(group.node("s2"))
    put(group, topic, b"B", 1)
    seal.run_once(group.leader.dsn, longest_s=1)
    stuck = group.leader.execute("SELECT max(seal_id) FROM logstore.seal")
    assert not seal.run_once(group.leader.dsn, longest_s=1).more
    assert group.leader.execute("SELECT max(seal_id) FROM logstore.seal") == stuck


def test_an_old_snapshot_does_not_slow_sealing(group: Group, topic: int) -> None:
    with group.leader.connect() as holder, group.leader.connect() as session:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM seal")

        def look() -> int:
            """How many pages a look at the newest seal takes."""
            session.execute("SELECT newest_seal()")
            ((plan,),) = rows(session, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT newest_seal()")
            hit: int = plan[0]["Plan"]["Shared Hit Blocks"]
            return hit

        put(group, topic, b"A", 1)
        sealed(group)
        before = look()
        for _ in range(40):
            session.execute(
                "INSERT INTO seal (xact, snapshot, lsn, confirmed) SELECT pg_current_xact_id()::text::int8,"
                " s.snapshot, s.lsn, s.confirmed FROM seal s, generate_series(1, 50)"
                " WHERE s.seal_id = (SELECT max(seal_id) FROM seal)"
            )
            session.execute("SELECT delete_old_seals()")
        assert value(session, "SELECT count(*) FROM seal") <= 101
        assert look() <= before + 2
        sealed(group)
