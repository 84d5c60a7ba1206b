"""How long a group takes to balance, whom that disturbs, and what membership costs the server."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from rich.console import Console

from benchmarks.figures import Section
from benchmarks.log import BenchServer, create_topic
from logstore import Consumer, Producer
from logstore._core.group_calls import GroupCalls, MembershipTerms
from logstore._sync.driver import Connection

__all__ = ["heartbeats", "rebalance", "takeover"]

GROUP: Final = "bench"
PROCESSES: Final = 5
POLL_MS: Final = 100
RATE: Final = 200
"""Records a second that flow meanwhile, in five commits, each of which wakes every member."""

_console = Console(stderr=True, highlight=False)

_BALANCED = """
SELECT extract(epoch FROM clock_timestamp())::float8,
       (SELECT extract(epoch FROM max(joined_at))::float8 FROM logstore.group_members),
       count(*) FILTER (WHERE c.owner IS NULL OR c.owner <> c.target) = 0
       AND count(DISTINCT c.owner) = %s
       AND (SELECT max(n) - min(n) <= 1
            FROM (SELECT count(*) AS n FROM logstore.group_claim GROUP BY owner) AS load)
FROM logstore.group_claim c
"""


class _Poll(NamedTuple):
    """When a poll returned, on the clock that all processes share, and what the member had then."""

    at: float
    partitions: int


# -- members, in processes of their own ----------------------------------------------------------------------


def _member(dsn: str, stop: threading.Event, polls: list[_Poll]) -> None:
    with Consumer("t", dsn=dsn, group_id=GROUP, auto_offset_reset="earliest") as consumer:
        while not stop.is_set():
            consumer.poll(timeout_ms=POLL_MS)
            polls.append(_Poll(time.monotonic(), len(consumer.assignment())))


def _members(dsn: str, count: int, pipe: Pipe) -> None:
    """``count`` members, from one message through ``pipe`` to the next; then their polls go back."""
    pipe.send(None)
    pipe.recv()
    stop = threading.Event()
    polls: list[list[_Poll]] = [[] for _ in range(count)]
    threads = [threading.Thread(target=_member, args=(dsn, stop, mine)) for mine in polls]
    for thread in threads:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(polls)


class _Crew:
    """Processes full of members."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._context = multiprocessing.get_context("spawn")
        self._crew: list[tuple[Any, Pipe]] = []

    def board(self, count: int) -> None:
        """Start a process for ``count`` members, which do not join yet."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_members, args=(self._dsn, count, there), daemon=True)
        process.start()
        here.recv()
        self._crew.append((process, here))

    def join(self, place: int) -> None:
        """Have the members of one process join."""
        self._crew[place][1].send(None)

    def leave(self) -> list[list[_Poll]]:
        """Everybody leaves; the polls of each, in the order of joining."""
        for _, pipe in self._crew:
            pipe.send(None)
        polls = [each for _, pipe in self._crew for each in pipe.recv()]
        for process, _ in self._crew:
            process.join()
        return polls


@contextmanager
def _traffic(dsn: str) -> Iterator[None]:
    """Records keep coming."""
    done = threading.Event()

    def produce() -> None:
        with Producer(dsn, acks=1) as producer:
            number = 0
            while not done.wait(0.2):
                for _ in range(RATE // 5):
                    producer.send("t", b"x" * 100, key=b"%d" % number)
                    number += 1
                producer.flush()

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _balanced(raw: psycopg.Connection[Any], members: int, patience_s: float = 60.0) -> float:
    """Wait until ``members`` share everything evenly; the seconds since the last of them joined."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        now, joined, done = raw.execute(_BALANCED, [members]).fetchone() or (0, 0, False)
        if done:
            return float(now) - float(joined)
        time.sleep(0.02)
    raise TimeoutError(f"{members} members are not balanced after {patience_s:g} s")


def _longest_gap(polls: Sequence[Sequence[_Poll]], begin: float, end: float) -> float:
    """The longest time that any member went without a poll's return, ms."""
    return 1000 * max(
        (
            late.at - early.at
            for mine in polls
            for early, late in pairwise(mine)
            if begin <= late.at and early.at <= end
        ),
        default=0.0,
    )


def rebalance(server: BenchServer, *, partitions: int, members: int, repetitions: int) -> Section:
    """Start ``members`` at once, then one more."""
    section = Section(
        "Consumer groups: balance",
        f"{members} members ({PROCESSES} processes with {members // PROCESSES} consumers each) start at once "
        f"on {partitions:,} partitions of one topic with {RATE:,} rec/s; when they are balanced and have "
        "polled undisturbed for a while, one more joins. All options have their defaults.",
    )
    times, joins, moves, ratios, before_ms, during_ms = [], [], [], [], [], []
    for repetition in range(repetitions):
        dsn = server.fresh_log("bench_group")
        create_topic(dsn, "t", partitions)
        crew = _Crew(dsn)
        with _traffic(dsn), psycopg.connect(dsn, autocommit=True) as raw:
            for _ in range(PROCESSES):
                crew.board(members // PROCESSES)
            crew.board(1)
            for place in range(PROCESSES):
                crew.join(place)
            times.append(_balanced(raw, members))
            time.sleep(3)
            quiet_from = time.monotonic()
            time.sleep(3)
            epochs = dict(raw.execute("SELECT partition, claim_epoch FROM logstore.group_claim").fetchall())
            began = time.monotonic()
            crew.join(PROCESSES)
            joins.append(_balanced(raw, members + 1))
            ended = time.monotonic()
            after = dict(raw.execute("SELECT partition, claim_epoch FROM logstore.group_claim").fetchall())
            polls = crew.leave()[:-1]
        moved = sum(after[partition] != epoch for partition, epoch in epochs.items())
        before, during = _longest_gap(polls, quiet_from, began), _longest_gap(polls, began, ended)
        moves.append(moved)
        before_ms.append(before)
        during_ms.append(during)
        ratios.append(during / before)
        _console.print(
            f"  {repetition + 1}/{repetitions} balanced after {times[-1]:.2f} s; one more after "
            f"{joins[-1]:.2f} s, {moved} moved; longest gap {before:.0f} ms before, {during:.0f} ms meanwhile"
        )
        server.drop_log("bench_group")
    section.add(f"{members} members balanced after the last join", "s", times)
    section.add("one more balanced after its join", "s", joins)
    section.add("partitions moved by one more", "", moves)
    section.add("longest gap between polls of the others, before", "ms", before_ms)
    section.add("longest gap between polls of the others, meanwhile", "ms", during_ms)
    section.at_most(f"{members} members balanced after the last join", 5, max(times), "s")
    section.at_most("partitions moved by one more", -(-partitions // (members + 1)), max(moves), "")
    section.at_most("longest gap meanwhile / before", 2, sorted(ratios)[len(ratios) // 2], "x")
    return section


# -- heartbeats ----------------------------------------------------------------------------------------------


def _cpu_seconds(postmaster: int) -> float:
    """What the server's processes have used so far, ended ones included."""
    ticks = 0
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(directory.name) == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                ticks += sum(map(int, fields[11:13]))
    return ticks / 100


def _postmaster(raw: psycopg.Connection[Any]) -> int:
    row = raw.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int((Path("/proc") / str(row[0]) / "stat").read_text().rpartition(")")[2].split()[1])


def _counters(raw: psycopg.Connection[Any]) -> tuple[int, int]:
    row = raw.execute(
        "SELECT sum(n_dead_tup)::int8, sum(n_tup_upd + n_tup_del)::int8 FROM pg_stat_all_tables "
        "WHERE schemaname = 'logstore'"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def heartbeats(server: BenchServer, *, members: int, seconds: float, interval_ms: int = 3000) -> Section:
    """``members`` of one group beat every ``interval_ms`` while another session holds a snapshot."""
    section = Section(
        "Consumer groups: heartbeats",
        f"{members} members of one group with 1,000 partitions beat every {interval_ms} ms for {seconds:g} "
        "s, over 10 connections, while another session holds a transaction with a snapshot open; CPU time of "
        "all processes of the server.",
    )
    dsn = server.fresh_log("bench_beats")
    create_topic(dsn, "t", 1000)
    calls = GroupCalls()
    with ExitStack() as stack:
        raw = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        other = stack.enter_context(psycopg.connect(dsn))
        connections = [Connection.open(dsn) for _ in range(10)]
        for connection in connections:
            stack.callback(connection.close)
        terms = MembershipTerms(GROUP, None, "bench", None, 45_000, 300_000)
        group_id = 0
        for number in range(members):
            joined = connections[0].run(calls.join_group(terms, f"m{number}", ["t"], None))
            group_id = joined.group_id
        epoch = 0
        for _ in range(2):
            for number in range(members):
                beat = calls.heartbeat_group(group_id, f"m{number}", None, -1)
                epoch = connections[0].run(beat).assigned_epoch
        connections[0].close()  # and with that its statistics are written
        connections[0] = stack.enter_context(closing(Connection.open(dsn)))
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT pg_current_xact_id()")
        postmaster = _postmaster(raw)
        time.sleep(1.5)
        dead, changed = _counters(raw)
        begun, cpu = time.monotonic(), _cpu_seconds(postmaster)
        slowest: list[float] = []

        def beat_for(place: int) -> None:
            mine = range(place, members, len(connections))
            pause = interval_ms / 1000 / len(mine)
            due = begun
            while (due := due + pause) < begun + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                number = mine[round((due - begun) / pause) % len(mine)]
                at = time.monotonic()
                answer = connections[place].run(calls.heartbeat_group(group_id, f"m{number}", None, epoch))
                slowest.append(time.monotonic() - at)
                assert answer.unchanged

        threads = [threading.Thread(target=beat_for, args=(place,)) for place in range(len(connections))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.monotonic() - begun
        used = _cpu_seconds(postmaster) - cpu
        for connection in connections:
            connection.close()
        time.sleep(1.5)
        dead_after, changed_after = _counters(raw)
    server.drop_log("bench_beats")
    ordered = sorted(slowest)
    section.add("heartbeats", "1/s", len(ordered) / elapsed)
    section.add("heartbeat, p50", "ms", 1000 * ordered[len(ordered) // 2])
    section.add("heartbeat, p99", "ms", 1000 * ordered[len(ordered) * 99 // 100])
    section.add("server CPU", "% of a core", 100 * used / elapsed)
    section.add("rows updated or deleted", "rows", changed_after - changed)
    section.at_most(f"server CPU for {members} members", 10, 100 * used / elapsed, "% of a core")
    section.at_most(
        "dead tuples after that, a snapshot held", 16, max(dead_after - dead, changed_after - changed), "rows"
    )
    _console.print(
        f"  {len(ordered) / elapsed:.0f} heartbeats/s, {100 * used / elapsed:.1f} % of a core, "
        f"{changed_after - changed} rows updated or deleted"
    )
    return section


# -- a member dies -------------------------------------------------------------------------------------------


def takeover(
    server: BenchServer, *, repetitions: int, session_ms: int = 6000, heartbeat_ms: int = 1000
) -> Section:
    """One of two members is killed; when is its partition read again?"""
    section = Section(
        "Consumer groups: kill -9",
        f"Two member processes, one partition each, session_timeout_ms={session_ms}, "
        f"heartbeat_interval_ms={heartbeat_ms}; one is killed, and a record waits in its partition.",
    )
    context = multiprocessing.get_context("spawn")
    times = []
    for repetition in range(repetitions):
        dsn = server.fresh_log("bench_takeover")
        create_topic(dsn, "t", 2)
        crew = []
        for _ in range(2):
            here, there = context.Pipe()
            process = context.Process(
                target=_reader, args=(dsn, session_ms, heartbeat_ms, there), daemon=True
            )
            process.start()
            crew.append((process, here))
        with psycopg.connect(dsn, autocommit=True) as raw, Producer(dsn, acks=1) as producer:
            _balanced(raw, 2)
            owned = [pipe.recv() for _, pipe in crew]
            while any(len(each) != 1 for each in owned):
                owned = [pipe.recv() for _, pipe in crew]
            (victim, _), (survivor, news) = crew
            (partition,) = owned[0]
            victim.kill()
            begin = time.monotonic()
            producer.send("t", b"x", partition=partition).get(10)
            while partition not in news.recv():
                pass
            times.append(time.monotonic() - begin)
            survivor.kill()
        _console.print(f"  {repetition + 1}/{repetitions} taken over after {times[-1]:.2f} s")
        server.drop_log("bench_takeover")
    section.add("from kill -9 to reading again", "s", times)
    bound = (session_ms + 2 * heartbeat_ms) / 1000
    section.at_most("from kill -9 to reading again", bound, max(times), "s")
    return section


def _reader(dsn: str, session_ms: int, heartbeat_ms: int, pipe: Pipe) -> None:
    """Tells through ``pipe`` what it owns while there is nothing to read, and then what it has read."""
    with Consumer(
        "t",
        dsn=dsn,
        group_id=GROUP,
        auto_offset_reset="earliest",
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=heartbeat_ms,
    ) as consumer:
        while True:
            records = consumer.poll(timeout_ms=20)
            if records:
                pipe.send([tp.partition for tp in records])
            elif len(consumer.assignment()) == 1:
                pipe.send([tp.partition for tp in consumer.assignment()])
