"""Consume, update a table and produce, in one transaction for each batch: how many records a second."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks.figures import Section
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import Workload
from logstore import AsyncConsumer, Consumer, ConsumerRecord, Producer

__all__ = ["exactly_once"]

BATCH: Final = 500
PARTITIONS: Final = 4
ACCOUNTS: Final = 100
BOUND: Final = 40_000

_console = Console(stderr=True, highlight=False)

_COUNT: Final = """
INSERT INTO seen (account, records) SELECT * FROM unnest($1::int[], $2::bigint[])
ON CONFLICT (account) DO UPDATE SET records = seen.records + excluded.records"""

_OPTIONS: Final[Any] = {
    "group_id": "bench",
    "auto_offset_reset": "earliest",
    "max_poll_records": BATCH,
    "delivery": "exactly_once",
}


def _fill(dsn: str, records: int) -> None:
    create_topic(dsn, "in", PARTITIONS)
    create_topic(dsn, "out", PARTITIONS)
    workload = Workload(records)
    with Producer(dsn) as producer:
        producer.send_many("in", workload.values, workload.keys)
    with psycopg.connect(dsn) as raw:
        raw.execute("CREATE TABLE seen (account int PRIMARY KEY, records bigint)")


def _counted(records: Iterable[ConsumerRecord]) -> tuple[list[int], list[int]]:
    counts = Counter(sum(record.key or b"") % ACCOUNTS for record in records)
    accounts = sorted(counts)
    return accounts, [counts[account] for account in accounts]


def _threads(dsn: str, records: int) -> float:
    left = records
    began = 0.0
    with Consumer("in", dsn=dsn, **_OPTIONS) as consumer:

        def handle(tx: Any) -> None:
            nonlocal left, began
            began = began or time.perf_counter()
            psycopg.RawCursor(tx.connection).execute(_COUNT, _counted(tx.records))
            for record in tx.records:
                tx.send("out", record.value, key=record.key)
            left -= len(tx.records)
            if left <= 0:
                consumer.wakeup()

        consumer.run(handle)
    return records / (time.perf_counter() - began)


def _tasks(dsn: str, records: int) -> float:
    async def run() -> float:
        left = records
        began = 0.0
        async with AsyncConsumer("in", dsn=dsn, **_OPTIONS) as consumer:

            async def handle(tx: Any) -> None:
                nonlocal left, began
                began = began or time.perf_counter()
                await tx.connection.execute(_COUNT, *_counted(tx.records))
                for record in tx.records:
                    await tx.send("out", record.value, key=record.key)
                left -= len(tx.records)
                if left <= 0:
                    consumer.wakeup()

            await consumer.run(handle)
        return records / (time.perf_counter() - began)

    return asyncio.run(run())


def _with_a_producer(dsn: str, records: int) -> float:
    """As in Kafka: a consumer, and a producer whose transactions commit its offsets; no table."""
    left = records
    began = 0.0
    options = {**_OPTIONS, "delivery": "at_least_once", "enable_auto_commit": False}
    with Consumer("in", dsn=dsn, **options) as consumer, Producer(dsn, transactional_id="bench") as producer:
        producer.init_transactions()
        while left > 0:
            polled = consumer.poll(timeout_ms=1000)
            began = began or time.perf_counter()
            with producer.transaction():
                for read in polled.values():
                    for record in read:
                        producer.send("out", record.value, key=record.key)
                    left -= len(read)
                producer.send_offsets_to_transaction(
                    {tp: read[-1].offset + 1 for tp, read in polled.items()}, consumer.group_metadata()
                )
    return records / (time.perf_counter() - began)


def _measure(server: BenchServer, name: str, way: Callable[[str, int], float], records: int) -> float:
    dsn = server.fresh_log(name)
    try:
        _fill(dsn, records)
        server.checkpoint()
        rate = way(dsn, records)
        with closing(psycopg.connect(dsn)) as raw:
            row = raw.execute(
                "SELECT (SELECT sum(high_watermark) FROM logstore.partitions WHERE topic = 'out')::int8,"
                " (SELECT sum(lag) FROM logstore.lag_of('bench'))::int8,"
                " coalesce((SELECT sum(records) FROM seen), %s)::int8",
                [records],
            ).fetchone()
        assert row == (records, 0, records), row
        return rate
    finally:
        server.drop_log(name)


def exactly_once(server: BenchServer, *, records: int, repetitions: int) -> Section:
    """The three ways, in turns."""
    section = Section(
        "Exactly once",
        f"One process reads {records:,} records (16-byte keys, 100-byte values) from {PARTITIONS} partitions "
        f"in batches of {BATCH}. One transaction for each batch (fsync on) adds to the rows of a table, "
        f"produces every record to another topic with {PARTITIONS} partitions, and commits the offsets.",
    )
    ways: dict[str, Callable[[str, int], float]] = {
        "Consumer.run, psycopg": _threads,
        "AsyncConsumer.run, asyncpg": _tasks,
        "Consumer and transactional Producer, without the table": _with_a_producer,
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        for name, way in ways.items():
            rate = _measure(server, f"exactly_once_{repetition}", way, records)
            samples[name].append(rate)
            _console.print(f"  {name}: {rate:,.0f} rec/s")
    for name, rates in samples.items():
        figure = section.add(name, "rec/s", rates)
        section.at_least(f"{name}, exactly once", BOUND, figure.median, "rec/s")
    return section
