"""How fast records come out: the client against bare SQL and a plain table; counting through the view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, LiteralString

import asyncpg
import psycopg

from benchmarks import ceilings
from benchmarks.figures import Section, Speed, interleave, median_ratio, rates, timed
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, Workload
from logstore import AsyncConsumer, Consumer, Producer, TopicPartition

__all__ = ["fetch", "fill"]

_TOPIC = "fetch"
_FETCH = (
    "SELECT idx, base_offset, last_offset, record_count, timestamps, keys, values"
    " FROM logstore.fetch($1::int4[], $2::int4[], $3::int8[], $4::int4, $5::int4)"
)
_MAX_BYTES = 52_428_800
_MAX_PARTITION_BYTES = 1_048_576


def fill(
    dsn: str, topic: str, records: int, partitions: int = PARTITIONS, acks: Literal[1, "all"] = 1
) -> int:
    """Create ``topic`` and put ``records`` records into it; its number."""
    number = create_topic(dsn, topic, partitions)
    step = min(records, 500_000)
    if step:
        workload = Workload(step, partitions)
        with Producer(dsn, acks=acks, batch_size=262_144) as producer:
            for done in range(0, records, step):
                count = min(step, records - done)
                producer.send_many(topic, workload.values[:count], workload.keys[:count])
            producer.flush()
    return number


def fetch(server: BenchServer, *, records: int, repetitions: int) -> Section:
    """``poll`` loops of both colours with the ceilings between them, and ``count(*)``."""
    dsn = server.fresh_log("bench_fetch")
    number = fill(dsn, _TOPIC, records)
    workload = Workload(records)
    bare = ceilings.BareTable(dsn, "bare_copy")
    bare.copy(bare.rows(workload))
    with psycopg.connect(server.superuser_dsn(dsn), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")  # no sample pays for hint bits

    def reading(work: Callable[[], int]) -> Speed:
        def checked() -> None:
            got = work()
            if got != records:
                raise AssertionError(f"{got} records read, {records} are there")

        return timed(records, checked)

    samples = interleave(
        {
            "poll": lambda: reading(lambda: _poll(dsn, records)),
            "poll 10,000": lambda: reading(lambda: _poll(dsn, records, max_poll_records=10_000)),
            "iterate": lambda: reading(lambda: _iterate(dsn, records)),
            "async getmany": lambda: reading(lambda: asyncio.run(_getmany(dsn, records))),
            "async getmany 10,000": lambda: reading(
                lambda: asyncio.run(_getmany(dsn, records, max_poll_records=10_000))
            ),
            "bare fetch": lambda: reading(lambda: _bare_fetch(dsn, number, records)),
            "bare fetch, asyncpg": lambda: reading(
                lambda: asyncio.run(_bare_fetch_asyncpg(dsn, number, records))
            ),
            "bare rows": lambda: reading(lambda: _bare_rows(dsn)),
            "count(*)": lambda: _count(dsn, records),
            "count(*) of one topic": lambda: _count(dsn, records, _TOPIC),
        },
        repetitions,
    )
    server.drop_log("bench_fetch")

    seconds = {name: [records / value for value in rates(samples.pop(name))] for name in _COUNTS}
    section = Section(
        "Fetch",
        f"{records:,} records in {PARTITIONS} partitions, read from the start by one client process; "
        f"medians of {repetitions}.",
    )
    labels = {
        "poll": "`Consumer.poll` loop, defaults (500 records a poll)",
        "poll 10,000": "`Consumer.poll` loop, max_poll_records=10,000",
        "iterate": "`for record in consumer`",
        "async getmany": "`AsyncConsumer.getmany` loop, defaults",
        "async getmany 10,000": "`AsyncConsumer.getmany` loop, max_poll_records=10,000",
        "bare fetch": "ceiling: `fetch()` by bare SQL, psycopg, no record made",
        "bare fetch, asyncpg": "ceiling: the same with asyncpg",
        "bare rows": "ceiling: rows of a plain table, psycopg binary, a cursor of 10,000",
    }
    speeds = {name: rates(values) for name, values in samples.items()}
    medians = {name: section.add(labels[name], "rec/s", values).median for name, values in speeds.items()}
    for name in ("poll", "iterate", "async getmany"):
        section.add(f"{labels[name]}: client CPU", "µs/record", [speed.cpu_us for speed in samples[name]])
    for name, values in seconds.items():
        section.add(f"`{name}` through `logstore.records`", "s", values)
    section.at_least("`poll` loop", 800_000, medians["poll"], "rec/s")
    section.at_most(
        f"`count(*)` of {records:,} records through `logstore.records`",
        0.5 * records / 1_000_000,
        max(sorted(values)[len(values) // 2] for values in seconds.values()),
        "s",
    )
    section.add("`poll` loop ÷ bare fetch", "x", median_ratio(speeds["poll"], speeds["bare fetch"]))
    return section


_COUNTS = ("count(*)", "count(*) of one topic")


def _partitions() -> list[TopicPartition]:
    return [TopicPartition(_TOPIC, partition) for partition in range(PARTITIONS)]


def _poll(dsn: str, records: int, **options: Any) -> int:
    got = 0
    with Consumer(dsn=dsn, auto_offset_reset="earliest", **options) as consumer:
        consumer.assign(_partitions())
        while got < records:
            answer = consumer.poll(timeout_ms=5000)
            if not answer:
                break
            for batch in answer.values():
                got += len(batch)
    return got


def _iterate(dsn: str, records: int) -> int:
    got = 0
    with Consumer(dsn=dsn, auto_offset_reset="earliest", consumer_timeout_ms=5000) as consumer:
        consumer.assign(_partitions())
        for _ in consumer:
            got += 1
            if got == records:
                break
    return got


async def _getmany(dsn: str, records: int, **options: Any) -> int:
    got = 0
    async with AsyncConsumer(dsn=dsn, auto_offset_reset="earliest", **options) as consumer:
        consumer.assign(_partitions())
        while got < records:
            answer = await consumer.getmany(timeout_ms=5000)
            if not answer:
                break
            for batch in answer.values():
                got += len(batch)
    return got


def _advance(rows: list[Any], offsets: list[int]) -> int:
    got = 0
    for idx, base, last, count, _, _, values in rows:
        if base is not None:
            offsets[idx - 1] = last + 1
            got += count
            assert len(values) == count
    return got


def _bare_fetch(dsn: str, topic_id: int, records: int) -> int:
    offsets = [0] * PARTITIONS
    partitions = list(range(PARTITIONS))
    got = 0
    with ceilings.binary_connection(dsn) as connection:
        cursor = connection.cursor(binary=True)
        while got < records:
            parameters = [[topic_id] * PARTITIONS, partitions, offsets, _MAX_BYTES, _MAX_PARTITION_BYTES]
            step = _advance(cursor.execute(_FETCH, parameters).fetchall(), offsets)
            if not step:
                break
            got += step
    return got


async def _bare_fetch_asyncpg(dsn: str, topic_id: int, records: int) -> int:
    offsets = [0] * PARTITIONS
    partitions = list(range(PARTITIONS))
    got = 0
    connection = await asyncpg.connect(dsn)
    try:
        while got < records:
            rows = await connection.fetch(
                _FETCH, [topic_id] * PARTITIONS, partitions, offsets, _MAX_BYTES, _MAX_PARTITION_BYTES
            )
            step = _advance(rows, offsets)
            if not step:
                break
            got += step
    finally:
        await connection.close()
    return got


def _bare_rows(dsn: str) -> int:
    got = 0
    with psycopg.connect(dsn) as connection, connection.cursor("bare", binary=True) as cursor:
        cursor.itersize = 10_000
        cursor.execute('SELECT "partition", "offset", timestamp, key, value FROM bare_copy')
        for _ in cursor:
            got += 1
    return got


def _count(dsn: str, records: int, topic: str | None = None) -> Speed:
    text: LiteralString = "SELECT count(*) FROM logstore.records"
    if topic:
        text += " WHERE topic = %s"

    def count() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute(text, [topic] if topic else []).fetchone()
            assert row == (records,), row

    return timed(records, count)
