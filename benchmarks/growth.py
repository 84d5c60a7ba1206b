"""Whether the log stays as fast as it was: append and fetch beside more and more records and topics."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle, repeat
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks import ceilings
from benchmarks.figures import Section, median_ratio, percentile
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, Batch, Workload
from logstore import Admin

__all__ = ["growth"]

_CALLS: Final = 200
"""Calls of one sample; a sample is their p50."""
_ONE: Final = Workload(1)
_THOUSAND: Final = Workload(1000)
_FETCH: Final = (
    "SELECT base_offset, timestamps, keys, values"
    " FROM logstore.fetch($1::int4[], $2::int4[], $3::int8[], $4::int4, $5::int4)"
)
_ENDS: Final = "SELECT idx, high_watermark FROM logstore.high_watermarks($1::int4[], $2::int4[])"

_console = Console(stderr=True, highlight=False)


_SINGLE: Final = (0, 1)
"""Partitions that get single records."""
_BATCHED: Final = (2, 3)
"""Partitions that get batches of 1,000 and nothing else, so that every fetch brings the same."""


class _State:
    """A log of some size, and a session that has used it."""

    def __init__(self, name: str, connection: psycopg.Connection[Any], topics: list[int]) -> None:
        self.name = name
        self.topics = topics
        self.cursor = connection.cursor(binary=True)
        self._append = ceilings.append_text(1)
        self._single = cycle((topic, partition) for partition in _SINGLE for topic in topics)
        self._batched = cycle((topic, partition) for partition in _BATCHED for topic in topics)
        self._dice = random.Random(3)
        self._ends: dict[tuple[int, int], int] = {}

    def append(self, turns: Iterator[tuple[int, int]], records: Workload) -> None:
        topic, partition = next(turns)
        batch = Batch(partition, records.keys, records.values)
        parameters = ceilings.encode(topic, batch, time.time_ns() // 1_000_000)
        self.cursor.execute(self._append, parameters).fetchone()

    def append_one(self) -> None:
        self.append(self._single, _ONE)

    def append_thousand(self) -> None:
        self.append(self._batched, _THOUSAND)

    def fetch_last(self) -> None:
        place = next(self._batched)
        self._fetch(place, self._ends[place] - 1)

    def fetch_any(self) -> None:
        place = next(self._batched)
        self._fetch(place, self._dice.randrange(self._ends[place]))

    def look(self) -> None:
        """Learn where the partitions end, so that a fetch is a fetch and nothing else."""
        places = [(topic, partition) for topic in self.topics for partition in _BATCHED]
        rows = self.cursor.execute(_ENDS, [[topic for topic, _ in places], [part for _, part in places]])
        self._ends = {places[idx - 1]: end for idx, end in rows.fetchall()}

    def _fetch(self, place: tuple[int, int], offset: int) -> None:
        row = self.cursor.execute(_FETCH, [[place[0]], [place[1]], [offset], 1, 1]).fetchall()[-1]
        assert row[0] is not None, "nothing was fetched"


_WORK: Final[dict[str, Callable[[_State], None]]] = {
    "append of 1 record": _State.append_one,
    "append of 1,000 records": _State.append_thousand,
    "fetch of the last 1,000 records": _State.fetch_last,
    "fetch of any 1,000 records": _State.fetch_any,
}


def growth(
    server: BenchServer, *, retained: tuple[int, ...], topics: tuple[int, ...], repetitions: int
) -> Section:
    """p50 of append and fetch in logs of each size, in turn; every size is compared with the smallest.

    With more topics every call goes to another topic.
    """
    section = Section(
        "Growth",
        f"p50 of {_CALLS} calls by bare SQL in a warm session, durable, call by call from log to log; "
        f"medians of {repetitions}. What is retained is batches of 1,000 records too. With more topics, each "
        "call goes to the next topic.",
    )
    with ExitStack() as stack:

        def state(name: str, dsn: str, topics: list[int]) -> _State:
            return _State(name, stack.enter_context(ceilings.binary_connection(dsn)), topics)

        by_records = []
        for records in retained:
            database = f"bench_retained_{records}"
            dsn = server.fresh_log(database)
            stack.callback(server.drop_log, database)
            _console.print(f"  filling a log with {records:,} records")
            number = create_topic(dsn, "growth", PARTITIONS)
            with ceilings.binary_connection(dsn) as connection:
                ceilings.append(connection, number, _requests(records))
            by_records.append(state(f"{records:,} records", dsn, [number]))
        by_topics = []
        for count in topics:
            database = f"bench_topics_{count}"
            dsn = server.fresh_log(database)
            stack.callback(server.drop_log, database)
            begin = time.perf_counter()
            numbers = _create_topics(dsn, count)
            section.add(
                f"create a topic of {PARTITIONS} partitions, {count:,} in a row",
                "ms",
                (time.perf_counter() - begin) / count * 1000,
            )
            by_topics.append(state(f"{count:,} topics", dsn, numbers))

        with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
            admin.execute("CHECKPOINT")
        _measure(section, by_records, repetitions, 1.2)
        _measure(section, by_topics, repetitions, 1.5)
    return section


def _requests(records: int) -> Iterator[list[Batch]]:
    """Batches of 1,000, of all partitions in turn."""
    request = [Batch(partition, _THOUSAND.keys, _THOUSAND.values) for partition in range(PARTITIONS)]
    return repeat(request, records // (_THOUSAND.records * PARTITIONS))


def _create_topics(dsn: str, count: int) -> list[int]:
    with Admin(dsn) as admin:
        for number in range(count):
            admin.create_topic(f"growth-{number}", partitions=PARTITIONS)
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [
            int(row[0])
            for row in connection.execute("SELECT topic_id FROM logstore.topics ORDER BY topic_id")
        ]


def _measure(section: Section, states: list[_State], repetitions: int, bound: float) -> None:
    samples: dict[tuple[str, str], list[float]] = {}
    for state in states:  # the first touch of a leaf is the session's business, not the log's
        touches = range(max(50, len(state.topics) * len(_SINGLE)))
        for _ in touches:
            state.append_one()
            state.append_thousand()
        state.look()
        for _ in touches:
            state.fetch_last()
    for repetition in range(repetitions):
        for name, work in _WORK.items():
            found: dict[str, list[float]] = {state.name: [] for state in states}
            for state in states:
                state.look()
            for _ in range(_CALLS):
                for state in states:  # call by call: whatever else the machine does, it does to all of them
                    begin = time.perf_counter()
                    work(state)
                    found[state.name].append((time.perf_counter() - begin) * 1000)
            for state in states:
                samples.setdefault((name, state.name), []).append(percentile(found[state.name], 0.5))
        _console.print(f"  [dim]{repetition + 1}/{repetitions}[/dim] {len(states)} logs measured")
    for name in _WORK:
        for state in states:
            section.add(f"{name}, {state.name}", "ms", samples[name, state.name])
        for state in states[1:]:
            ratio = median_ratio(samples[name, state.name], samples[name, states[0].name])
            section.at_most(f"{name}: {state.name} ÷ {states[0].name}", bound, ratio, "x")
