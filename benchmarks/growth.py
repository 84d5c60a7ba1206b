"""Whether the log stays as fast as it was: append and fetch beside more and more records and topics."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks import ceilings
from benchmarks.fetch import fill
from benchmarks.figures import Section, median_ratio, percentile
from benchmarks.log import BenchServer
from benchmarks.workload import PARTITIONS, Batch, Workload
from logstore import Admin

__all__ = ["growth"]

_CALLS: Final = 200
"""Calls of one sample; a sample is their p50."""
_BATCH: Final = 1000
_FETCH: Final = (
    "SELECT idx, base_offset, last_offset, keys, values"
    " FROM logstore.fetch($1::int4[], $2::int4[], $3::int8[], $4::int4, $5::int4)"
)
_ENDS: Final = "SELECT high_watermark FROM logstore.high_watermarks($1::int4[], $2::int4[])"

_console = Console(stderr=True, highlight=False)


@dataclass
class _State:
    """A log of some size, and a session that has used it."""

    name: str
    connection: psycopg.Connection[Any]
    topics: list[int]
    retained: int
    one: list[Batch]
    thousand: list[Batch]

    def __post_init__(self) -> None:
        self.cursor = self.connection.cursor(binary=True)
        self.text = ceilings.append_text(1)
        self.turns = cycle((topic, partition) for partition in range(PARTITIONS) for topic in self.topics)
        self.dice = random.Random(3)

    def append(self, batches: list[Batch]) -> None:
        topic, partition = next(self.turns)
        parameters = ceilings.encode(topic, batches[partition], time.time_ns() // 1_000_000)
        self.cursor.execute(self.text, parameters).fetchone()

    def fetch_tail(self) -> None:
        topic, partition = next(self.turns)
        end = self._end(topic, partition)
        self._fetch(topic, partition, max(0, end - 1))

    def fetch_anywhere(self) -> None:
        topic, partition = next(self.turns)
        end = self._end(topic, partition)
        self._fetch(topic, partition, self.dice.randrange(max(1, end)))

    def _end(self, topic: int, partition: int) -> int:
        row = self.cursor.execute(_ENDS, [[topic], [partition]]).fetchone()
        assert row is not None
        return int(row[0])

    def _fetch(self, topic: int, partition: int, offset: int) -> None:
        self.cursor.execute(_FETCH, [[topic], [partition], [offset], 1, 1]).fetchall()


_WORK: Final[dict[str, Callable[[_State], None]]] = {
    "append of 1 record": lambda state: state.append(state.one),
    "append of 1,000 records": lambda state: state.append(state.thousand),
    "fetch of the last batch": _State.fetch_tail,
    "fetch of a batch anywhere": _State.fetch_anywhere,
}


def growth(
    server: BenchServer, *, retained: tuple[int, ...], topics: tuple[int, ...], repetitions: int
) -> Section:
    """p50 of append and fetch in logs of each size, in turn; every size is compared with the smallest.

    With many topics every call goes to another topic.
    """
    one = [Batch(partition, [b"key-%012d" % partition], [b"x" * 100]) for partition in range(PARTITIONS)]
    some = Workload(_BATCH)
    thousand = [Batch(partition, some.keys, some.values) for partition in range(PARTITIONS)]
    section = Section(
        "Growth",
        f"p50 of {_CALLS} calls by bare SQL in a warm session, durable; the logs are measured in turn; "
        f"medians of {repetitions}. With more topics, every call goes to the next topic.",
    )
    with ExitStack() as stack:

        def state(name: str, dsn: str, numbers: list[int], records: int) -> _State:
            connection = stack.enter_context(ceilings.binary_connection(dsn))
            return _State(name, connection, numbers, records, one, thousand)

        by_records = []
        for records in retained:
            database = f"bench_retained_{records}"
            dsn = server.fresh_log(database)
            stack.callback(server.drop_log, database)
            _console.print(f"  filling a log with {records:,} records")
            number = fill(dsn, "growth", records)
            by_records.append(state(f"{records:,} records", dsn, [number], records))
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
            by_topics.append(state(f"{count:,} topics", dsn, numbers, 0))

        with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
            admin.execute("CHECKPOINT")
        _measure(section, by_records, repetitions, 1.2)
        _measure(section, by_topics, repetitions, 1.5)
    return section


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
        for work in _WORK.values():
            for _ in range(max(50, len(state.topics) * PARTITIONS)):
                work(state)
    for repetition in range(repetitions):
        for name, work in _WORK.items():
            for state in states:
                found = []
                for _ in range(_CALLS):
                    begin = time.perf_counter()
                    work(state)
                    found.append((time.perf_counter() - begin) * 1000)
                samples.setdefault((name, state.name), []).append(percentile(found, 0.5))
        _console.print(f"  [dim]{repetition + 1}/{repetitions}[/dim] {len(states)} logs measured")
    for name in _WORK:
        for state in states:
            section.add(f"{name}, {state.name}", "ms", samples[name, state.name])
        for state in states[1:]:
            ratio = median_ratio(samples[name, state.name], samples[name, states[0].name])
            section.at_most(f"{name}: {state.name} ÷ {states[0].name}", bound, ratio, "x")
