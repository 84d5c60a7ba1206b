"""Whether a topic of very many segments is as fast as one of few."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks import ceilings
from benchmarks.figures import Section, median_ratio, percentile
from benchmarks.log import BenchServer, topic_id
from benchmarks.workload import Batch, Workload
from logstore import Admin

__all__ = ["segments"]

_CALLS: Final = 200
"""Calls of one sample; a sample is their p50."""
_ONE: Final = Workload(1)
_THOUSAND: Final = Workload(1000)
_ACTIVE: Final = 20
"""Batches of the active segment."""
_FETCH: Final = (
    "SELECT base_offset, timestamps, keys, values"
    " FROM logstore.fetch($1::int4[], $2::int4[], $3::int8[], $4::int4, $5::int4)"
)

_console = Console(stderr=True, highlight=False)


class _Log:
    """A topic of one partition with so many segments, each a batch of 1,000 records."""

    def __init__(self, dsn: str, connection: psycopg.Connection[Any], count: int) -> None:
        self.name = f"{count:,} segments"
        self.cursor = connection.cursor(binary=True)
        with Admin(dsn) as admin:
            admin.create_topic("many", configs={"segment.bytes": "14"})
            self.topic = topic_id(dsn, "many")
            for _ in range(count - 1):
                self.append(_THOUSAND)
            admin.alter_configs("many", {"segment.bytes": None})
            for _ in range(_ACTIVE):
                self.append(_THOUSAND)
        self.end = 1000 * (count - 1 + _ACTIVE)
        self.sealed = 1000 * (count - 1)
        self._dice = random.Random(4)
        # A session knows the leaves that it has read: those of a consumer at one place of the log.
        self._place = max(0, self.sealed // 2 - 5000)
        self._next = self._place

    def append(self, records: Workload) -> None:
        batch = Batch(0, records.keys, records.values)
        parameters = ceilings.encode(self.topic, batch, time.time_ns() // 1_000_000)
        self.cursor.execute(ceilings.append_text(1), parameters).fetchone()

    def append_one(self) -> None:
        self.append(_ONE)

    def fetch_last(self) -> None:
        self._fetch(self.end - 1)

    def fetch_known(self) -> None:
        self._fetch(self._place + 1000 * self._dice.randrange(5))

    def fetch_any(self) -> None:
        self._fetch(self._dice.randrange(self.sealed))

    def _fetch(self, offset: int) -> None:
        row = self.cursor.execute(_FETCH, [[self.topic], [0], [offset], 1, 1]).fetchall()[-1]
        assert row[0] is not None, "nothing was fetched"


_WORK: Final[dict[str, Callable[[_Log], None]]] = {
    "append of 1 record": _Log.append_one,
    "fetch of the last 1,000 records": _Log.fetch_last,
    "fetch of 1,000 records of the middle": _Log.fetch_known,
    "fetch of any 1,000 records": _Log.fetch_any,
}


def segments(server: BenchServer, *, few: int, many: int, repetitions: int) -> Section:
    """p50 of append and fetch, call by call in turn, beside few segments and beside many."""
    section = Section(
        "Segments",
        f"p50 of {_CALLS} calls by bare SQL in a warm session, durable, call by call from log to log; "
        f"medians of {repetitions}. A topic of one partition; each closed segment holds a batch of 1,000 "
        "records. Of the middle: five segments, again and again, as consumers read that follow each other. "
        "Any: each call most likely a segment that the session has never read.",
    )
    with ExitStack() as stack:
        logs = []
        for count in (few, many):
            database = f"bench_segments_{count}"
            dsn = server.fresh_log(database)
            stack.callback(server.drop_log, database)
            _console.print(f"  making {count:,} segments")
            connection = stack.enter_context(ceilings.binary_connection(dsn))
            begin = time.perf_counter()
            logs.append(_Log(dsn, connection, count))
            section.add(f"append that makes the next of {count:,} segments", "ms",
                        (time.perf_counter() - begin) / (count + _ACTIVE) * 1000)  # fmt: skip
        server.checkpoint()
        samples: dict[tuple[str, str], list[float]] = {}
        for log in logs:
            for work in _WORK.values():
                for _ in range(20):
                    work(log)
        for repetition in range(repetitions):
            for name, work in _WORK.items():
                found: dict[str, list[float]] = {log.name: [] for log in logs}
                for _ in range(_CALLS):
                    for log in logs:
                        begin = time.perf_counter()
                        work(log)
                        found[log.name].append((time.perf_counter() - begin) * 1000)
                for log in logs:
                    samples.setdefault((name, log.name), []).append(percentile(found[log.name], 0.5))
            _console.print(f"  [dim]{repetition + 1}/{repetitions}[/dim] measured")
        for name in _WORK:
            for log in logs:
                section.add(f"{name}, {log.name}", "ms", samples[name, log.name])
            ratio = median_ratio(samples[name, logs[1].name], samples[name, logs[0].name])
            section.at_most(f"{name}: {logs[1].name} ÷ {logs[0].name}", 1.3, ratio, "x")
    return section
