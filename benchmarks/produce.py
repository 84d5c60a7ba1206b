"""How fast records go in: the client against bare SQL, COPY and the speed of Python itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from benchmarks import ceilings
from benchmarks.figures import Clock, Section, Speed, interleave, median_ratio, rates, timed
from benchmarks.log import BenchServer, create_topic, request_shapes
from benchmarks.workload import PARTITIONS, Batch, Workload
from logstore import AsyncProducer, Producer

__all__ = ["produce"]

_CHUNK = 10_000
"""Records in one call of ``send_many``."""


def produce(server: BenchServer, *, records: int, repetitions: int) -> Section:
    """``send`` loop and ``send_many``, both colours, with the ceilings between them."""
    dsn = server.fresh_log("bench_produce")
    workload = Workload(records)
    create_topic(dsn, "shape", PARTITIONS)
    _send_many(dsn, "shape", workload)
    requests = workload.requests(request_shapes(dsn, "shape"))
    bare = ceilings.BareTable(dsn, "bare_copy")
    rows = bare.rows(workload)
    bare.copy(rows)  # the first WAL of a new server is slower: its files have to be made
    numbers = count()

    def fresh_topic() -> tuple[str, int]:
        name = f"produce-{next(numbers)}"
        return name, create_topic(dsn, name, PARTITIONS)

    def client(work: Callable[[str, str, Workload], Speed]) -> Speed:
        topic, _ = fresh_topic()
        return work(dsn, topic, workload)

    def bare_append() -> Speed:
        _, number = fresh_topic()
        with ceilings.binary_connection(dsn) as connection:
            return timed(records, lambda: ceilings.append(connection, number, requests))

    def bare_append_encoded() -> Speed:
        _, number = fresh_topic()
        prepared = ceilings.encoded_requests(number, requests)
        with ceilings.binary_connection(dsn) as connection:
            return timed(records, lambda: ceilings.append_encoded(connection, prepared))

    def copy(work: Callable[..., Speed], per_commit: int | None) -> Speed:
        bare.truncate()
        return work(rows, per_commit)

    samples = interleave(
        {
            # Side by side: the promise is their ratio.
            "send": lambda: client(_send),
            "COPY": lambda: copy(bare.copy, None),
            "async send": lambda: client(_async_send),
            "send_many": lambda: client(_send_many),
            "async send_many": lambda: client(_async_send_many),
            "bare append": bare_append,
            "bare append, encoded beforehand": bare_append_encoded,
            "COPY by 1,000": lambda: copy(bare.copy, 1000),
            "asyncpg COPY": lambda: copy(bare.copy_asyncpg, None),
            "asyncpg COPY by 1,000": lambda: copy(bare.copy_asyncpg, 1000),
            "accumulate and promise": lambda: timed(
                records, lambda: ceilings.accumulate_and_promise(workload)
            ),
        },
        repetitions,
        before=server.checkpoint,
    )
    server.drop_log("bench_produce")

    section = Section(
        "Produce",
        f"{records:,} records a sample, 16-byte keys, 100-byte values, {PARTITIONS} partitions, "
        f"acks=1, durable, one client process; medians of {repetitions}. The bare append sends the "
        f"{len(requests):,} requests that `send_many` made, of {_batches(requests):,} batches.",
    )
    labels = {
        "send": "`Producer.send` in a loop, then `flush`",
        "async send": "`AsyncProducer.send` in a loop, then `flush`",
        "send_many": f"`Producer.send_many`, {_CHUNK:,} records a call",
        "async send_many": f"`AsyncProducer.send_many`, {_CHUNK:,} records a call",
        "bare append": "ceiling: `append()` by bare SQL, psycopg",
        "bare append, encoded beforehand": "ceiling: the same, arrays encoded beforehand (server only)",
        "COPY": "ceiling: psycopg binary COPY `write_row`, one transaction",
        "COPY by 1,000": "ceiling: psycopg binary COPY `write_row`, a commit every 1,000 rows",
        "asyncpg COPY": "ceiling: asyncpg `copy_records_to_table`, one transaction",
        "asyncpg COPY by 1,000": "ceiling: asyncpg `copy_records_to_table`, a commit every 1,000 rows",
        "accumulate and promise": "ceiling: accumulate and promise in Python, no server",
    }
    speeds = {name: rates(values) for name, values in samples.items()}
    medians = {name: section.add(labels[name], "rec/s", values).median for name, values in speeds.items()}
    for name in ("send", "async send", "send_many", "async send_many"):
        section.add(f"{labels[name]}: client CPU", "µs/record", [speed.cpu_us for speed in samples[name]])
    section.at_least("`send` loop", 350_000, medians["send"], "rec/s")
    section.at_least(
        "`send` loop ÷ psycopg COPY in one transaction",
        1.2,
        median_ratio(speeds["send"], speeds["COPY"]),
        "x",
    )
    section.at_least("`send_many`", 700_000, medians["send_many"], "rec/s")
    section.at_least(
        "`send_many` ÷ bare append of the same batches",
        0.7,
        median_ratio(speeds["send_many"], speeds["bare append"]),
        "x",
    )
    return section


# Connecting and looking the topic up is not part of what is measured, neither here nor of the ceilings.


def _send(dsn: str, topic: str, workload: Workload) -> Speed:
    with Producer(dsn, acks=1) as producer:
        producer.partitions_for(topic)
        with Clock(workload.records) as clock:
            send = producer.send
            for key, value in zip(workload.keys, workload.values, strict=True):
                send(topic, value, key)
            producer.flush()
    return clock.speed


def _async_send(dsn: str, topic: str, workload: Workload) -> Speed:
    async def run() -> Speed:
        async with AsyncProducer(dsn, acks=1) as producer:
            await producer.partitions_for(topic)
            with Clock(workload.records) as clock:
                send = producer.send
                for key, value in zip(workload.keys, workload.values, strict=True):
                    await send(topic, value, key)
                await producer.flush()
        return clock.speed

    return asyncio.run(run())


def _send_many(dsn: str, topic: str, workload: Workload) -> Speed:
    keys, values = workload.keys, workload.values
    with Producer(dsn, acks=1) as producer:
        producer.partitions_for(topic)
        with Clock(workload.records) as clock:
            for place in range(0, len(values), _CHUNK):
                producer.send_many(topic, values[place : place + _CHUNK], keys[place : place + _CHUNK])
            producer.flush()
    return clock.speed


def _async_send_many(dsn: str, topic: str, workload: Workload) -> Speed:
    keys, values = workload.keys, workload.values

    async def run() -> Speed:
        async with AsyncProducer(dsn, acks=1) as producer:
            await producer.partitions_for(topic)
            with Clock(workload.records) as clock:
                for place in range(0, len(values), _CHUNK):
                    chunk = slice(place, place + _CHUNK)
                    await producer.send_many(topic, values[chunk], keys[chunk])
                await producer.flush()
        return clock.speed

    return asyncio.run(run())


def _batches(requests: list[list[Batch]]) -> int:
    return sum(map(len, requests))
