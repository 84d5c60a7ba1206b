"""From `send` to the consumer's hands at a steady rate; what a consumer costs that has nothing to read."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks import ceilings
from benchmarks.figures import Section, percentile
from benchmarks.log import BenchServer, create_topic, topic_id
from benchmarks.workload import PARTITIONS, VALUE_BYTES, Batch
from logstore import AsyncConsumer, AsyncProducer, Consumer, Producer, TopicPartition

__all__ = ["idle", "latency"]

_RATE: Final = 1000
_WARM_UP_S: Final = 1.0
_STAMP: Final = 8
"""A value begins with the moment of its `send`, in ns of the monotonic clock, which all processes share."""

_console = Console(stderr=True, highlight=False)
_processes = multiprocessing.get_context("spawn")


def latency(server: BenchServer, *, seconds: float, repetitions: int) -> Section:
    """Producer and consumer in processes of their own, 1,000 records a second, linger_ms=0."""
    dsn = server.fresh_log("bench_latency")
    pairs: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
        "sync": (_produce, _consume),
        "async": (_produce_async, _consume_async),
        "bare": (_produce_bare, _consume_bare),
    }
    samples: dict[str, dict[str, list[float]]] = {
        name: {share: [] for share in ("p50", "p99", "p99.9")} for name in pairs
    }
    for repetition in range(repetitions):
        for name, (producer, consumer) in pairs.items():
            topic = f"latency-{name}-{repetition}"
            create_topic(dsn, topic, PARTITIONS)
            server.checkpoint()
            found = _run_pair(dsn, topic, producer, consumer, int(_RATE * (_WARM_UP_S + seconds)))
            steady = found[int(_RATE * _WARM_UP_S) :]
            for share, at in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
                samples[name][share].append(percentile(steady, at))
            _console.print(
                f"  [dim]{repetition + 1}/{repetitions}[/dim] {name}: "
                + ", ".join(f"{share} {values[-1]:.2f} ms" for share, values in samples[name].items())
            )
    server.drop_log("bench_latency")

    section = Section(
        "End-to-end latency",
        f"{_RATE:,} records a second for {seconds:g} s after {_WARM_UP_S:g} s of warm-up, "
        f"linger_ms=0, acks=1, keyed, {PARTITIONS} partitions, producer and consumer in processes of "
        "their own; from the call of `send` to the record in the hands of the consumer; medians of "
        f"{repetitions}.",
    )
    labels = {
        "sync": "`Producer` to `Consumer.poll`",
        "async": "`AsyncProducer` to `AsyncConsumer.getmany`",
        "bare": "ceiling: bare `append()`, bare `high_watermarks()` and `fetch()` polled every 1 ms",
    }
    for name, shares in samples.items():
        for share, values in shares.items():
            figure = section.add(f"{labels[name]}: {share}", "ms", values)
            if name == "sync" and share == "p50":
                section.at_most("send to poll at 1,000 rec/s, p50", 2.0, figure.median, "ms")
            if name == "sync" and share == "p99":
                section.at_most("send to poll at 1,000 rec/s, p99", 8.0, figure.median, "ms")
    return section


def _run_pair(
    dsn: str, topic: str, producer: Callable[..., None], consumer: Callable[..., None], records: int
) -> list[float]:
    """The latencies in ms, in the order in which the records came."""
    ready = _processes.Event()
    receiving, sending = _processes.Pipe(duplex=False)
    reader = _processes.Process(target=consumer, args=(dsn, topic, records, ready, sending))
    writer = _processes.Process(target=producer, args=(dsn, topic, records, ready))
    reader.start()
    sending.close()
    writer.start()
    try:
        nanoseconds: list[int] = receiving.recv()
    finally:
        writer.join()
        reader.join()
    return [value / 1e6 for value in nanoseconds]


def _paced(records: int) -> Iterator[tuple[int, bytes]]:
    """Keys and values at the rate; a late one is not made up for by a burst of stamps in the past."""
    filler = b"x" * (VALUE_BYTES - _STAMP)
    gc.collect()
    begin = time.monotonic()
    for number in range(records):
        wait = begin + number / _RATE - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield number, time.monotonic_ns().to_bytes(_STAMP) + filler


def _key(number: int) -> bytes:
    return b"key-%012d" % (number % 1000)


def _produce(dsn: str, topic: str, records: int, ready: Event) -> None:
    with Producer(dsn, acks=1, linger_ms=0) as producer:
        producer.partitions_for(topic)
        ready.wait()
        for number, value in _paced(records):
            producer.send(topic, value, _key(number))


def _produce_async(dsn: str, topic: str, records: int, ready: Event) -> None:
    async def run() -> None:
        filler = b"x" * (VALUE_BYTES - _STAMP)
        async with AsyncProducer(dsn, acks=1, linger_ms=0) as producer:
            await producer.partitions_for(topic)
            await asyncio.to_thread(ready.wait)
            begin = time.monotonic()
            for number in range(records):
                wait = begin + number / _RATE - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                await producer.send(topic, time.monotonic_ns().to_bytes(_STAMP) + filler, _key(number))

    asyncio.run(run())


def _produce_bare(dsn: str, topic: str, records: int, ready: Event) -> None:
    number_of_topic = topic_id(dsn, topic)
    text = ceilings.append_text(1)
    with ceilings.binary_connection(dsn) as connection:
        cursor = connection.cursor(binary=True)
        ready.wait()
        for number, value in _paced(records):
            batch = Batch(number % PARTITIONS, [_key(number)], [value])
            now_ms = time.time_ns() // 1_000_000
            cursor.execute(text, ceilings.encode(number_of_topic, batch, now_ms)).fetchone()


def _consume(dsn: str, topic: str, records: int, ready: Event, answer: Any) -> None:
    found: list[int] = []
    with Consumer(dsn=dsn, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
        consumer.poll(timeout_ms=0)
        ready.set()
        while len(found) < records:
            for batch in consumer.poll(timeout_ms=1000).values():
                now = time.monotonic_ns()
                found += [now - int.from_bytes(record.value[:_STAMP]) for record in batch]
    answer.send(found)


def _consume_async(dsn: str, topic: str, records: int, ready: Event, answer: Any) -> None:
    found: list[int] = []

    async def run() -> None:
        async with AsyncConsumer(dsn=dsn, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
            await consumer.getmany(timeout_ms=0)
            ready.set()
            while len(found) < records:
                batches = await consumer.getmany(timeout_ms=1000)
                now = time.monotonic_ns()
                for batch in batches.values():
                    found.extend(now - int.from_bytes(record.value[:_STAMP]) for record in batch)

    asyncio.run(run())
    answer.send(found)


def _consume_bare(dsn: str, topic: str, records: int, ready: Event, answer: Any) -> None:
    number_of_topic = topic_id(dsn, topic)
    topics, partitions, offsets = (
        [number_of_topic] * PARTITIONS,
        list(range(PARTITIONS)),
        [0] * PARTITIONS,
    )
    look = "SELECT idx, high_watermark FROM logstore.high_watermarks($1::int4[], $2::int4[])"
    fetch = (
        "SELECT idx, last_offset, values"
        " FROM logstore.fetch($1::int4[], $2::int4[], $3::int8[], $4::int4, $5::int4)"
        " WHERE base_offset IS NOT NULL"
    )
    found: list[int] = []
    with ceilings.binary_connection(dsn) as connection:
        cursor = connection.cursor(binary=True)
        ready.set()
        while len(found) < records:
            ends = cursor.execute(look, [topics, partitions]).fetchall()
            if all(end <= offsets[idx - 1] for idx, end in ends):
                time.sleep(0.001)
                continue
            rows = cursor.execute(fetch, [topics, partitions, offsets, 1 << 20, 1 << 20]).fetchall()
            now = time.monotonic_ns()
            for idx, last, values in rows:
                offsets[idx - 1] = last + 1
                found += [now - int.from_bytes(value[:_STAMP]) for value in values]
    answer.send(found)


def idle(server: BenchServer, *, seconds: float) -> Section:
    """Statements a second of a consumer whose partitions get no records.

    Counted by the server (pg_stat_statements) over a long and a short wait: the difference is free of what it
    takes to connect and to close.
    """
    dsn = server.fresh_log("bench_idle")
    create_topic(dsn, "idle", PARTITIONS)
    short = 3.0
    section = Section(
        "Idle consumer",
        f"Statements in pg_stat_statements while nothing is produced: {short + seconds:g} s less "
        f"{short:g} s, so that connecting is not counted.",
    )

    def waiting(consumer: Callable[[float], None]) -> float:
        counts = []
        for wait in (short, short + seconds):
            before = _statements(server, "bench_idle")
            consumer(wait)
            counts.append(_statements(server, "bench_idle") - before)
        return (counts[1] - counts[0]) / seconds

    contestants: dict[str, Callable[[float], None]] = {
        "`for record in consumer`": lambda wait: _wait_iterating(dsn, wait),
        "`poll(timeout_ms=500)` loop": lambda wait: _wait_polling(dsn, wait),
        "`AsyncConsumer.getmany(timeout_ms=500)` loop": lambda wait: asyncio.run(_wait_async(dsn, wait)),
        '`for record in consumer`, wakeup="poll"': lambda wait: _wait_iterating(dsn, wait, wakeup="poll"),
    }
    for name, consumer in contestants.items():
        figure = section.add(name, "queries/s", waiting(consumer))
        _console.print(f"  {name}: {figure.median:.2f} queries/s")
        section.at_most(f"idle consumer, {name}", 1.0, figure.median, "queries/s")
    server.drop_log("bench_idle")
    return section


def _statements(server: BenchServer, database: str) -> int:
    with server.admin() as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        deadline = time.monotonic() + 15
        while _sessions(connection, database) and time.monotonic() < deadline:
            time.sleep(0.05)
        row = connection.execute(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements JOIN pg_database ON oid = dbid"
            " WHERE datname = %s",
            [database],
        ).fetchone()
    assert row is not None
    return int(row[0])


def _sessions(connection: psycopg.Connection[Any], database: str) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
        [database],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _idle_partitions() -> list[TopicPartition]:
    return [TopicPartition("idle", partition) for partition in range(PARTITIONS)]


def _wait_iterating(dsn: str, seconds: float, **options: Any) -> None:
    with Consumer(dsn=dsn, consumer_timeout_ms=int(seconds * 1000), **options) as consumer:
        consumer.assign(_idle_partitions())
        for _ in consumer:
            raise AssertionError("nothing was produced")


def _wait_polling(dsn: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    with Consumer(dsn=dsn) as consumer:
        consumer.assign(_idle_partitions())
        while time.monotonic() < end:
            consumer.poll(timeout_ms=500)


async def _wait_async(dsn: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    async with AsyncConsumer(dsn=dsn) as consumer:
        consumer.assign(_idle_partitions())
        while time.monotonic() < end:
            await consumer.getmany(timeout_ms=500)
