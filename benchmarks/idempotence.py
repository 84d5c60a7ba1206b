"""What numbering batches costs: the same producer with and without, and single appends on the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import psycopg

from benchmarks.figures import Clock, Section, Speed, interleave, median_ratio, percentile, rates
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, Workload
from logstore import Producer

__all__ = ["idempotence"]

_CHUNK = 10_000
_CALLS = 1000
"""Appends of one record in a sample."""
_APPEND = (
    "SELECT logstore.append($1::int4, 0, 1, $2::int8, null, null, $3::bytea[], null, null, null, 0::int2,"
    " $4::int8, $5::int2, $6::int4)"
)


def idempotence(server: BenchServer, *, records: int, repetitions: int) -> Section:
    """``send`` and ``send_many`` with idempotence and without, alternately; then single appends."""
    dsn = server.fresh_log("bench_idempotence")
    workload = Workload(records)
    numbers = count()

    def fresh_topic() -> tuple[str, int]:
        name = f"idempotence-{next(numbers)}"
        return name, create_topic(dsn, name, PARTITIONS)

    def client(work: Callable[..., Speed], idempotent: bool) -> Callable[[], Speed]:
        return lambda: work(dsn, fresh_topic()[0], workload, idempotent)

    samples = interleave(
        {
            "send": client(_send, True),
            "send without": client(_send, False),
            "send_many": client(_send_many, True),
            "send_many without": client(_send_many, False),
        },
        repetitions,
        before=server.checkpoint,
    )
    single = [_single(dsn, fresh_topic()[1]) for _ in range(repetitions)]
    server.drop_log("bench_idempotence")

    section = Section(
        "Idempotence",
        f"{records:,} records a sample, 16-byte keys, 100-byte values, {PARTITIONS} partitions, acks=1, "
        f"durable, one client process; medians of {repetitions}. Single appends: {_CALLS:,} of one record in "
        "one partition, not waiting for the disk; the median of each sample.",
    )
    labels = {
        "send": "`Producer.send` in a loop, then `flush`",
        "send without": "the same with `enable_idempotence=False`",
        "send_many": f"`Producer.send_many`, {_CHUNK:,} records a call",
        "send_many without": "the same with `enable_idempotence=False`",
    }
    speeds = {name: rates(values) for name, values in samples.items()}
    for name, label in labels.items():
        section.add(label, "rec/s", speeds[name])
    for place, label in enumerate(
        (
            "one append without a number",
            "one append, the last batch being the producer's own",
            "one append, the last batch being another producer's",
        )
    ):
        section.add(label, "µs", [each[place] for each in single])
    for name in ("send", "send_many"):
        cost = 1 - median_ratio(speeds[name], speeds[f"{name} without"])
        section.at_most(f"`{name}`: cost of idempotence", 10, 100 * cost, "%")
    return section


def _send(dsn: str, topic: str, workload: Workload, idempotent: bool) -> Speed:
    with Producer(dsn, acks=1, enable_idempotence=idempotent) as producer:
        producer.partitions_for(topic)
        with Clock(workload.records) as clock:
            send = producer.send
            for key, value in zip(workload.keys, workload.values, strict=True):
                send(topic, value, key)
            producer.flush()
    return clock.speed


def _send_many(dsn: str, topic: str, workload: Workload, idempotent: bool) -> Speed:
    keys, values = workload.keys, workload.values
    with Producer(dsn, acks=1, enable_idempotence=idempotent) as producer:
        producer.partitions_for(topic)
        with Clock(workload.records) as clock:
            for place in range(0, len(values), _CHUNK):
                producer.send_many(topic, values[place : place + _CHUNK], keys[place : place + _CHUNK])
            producer.flush()
    return clock.speed


def _single(dsn: str, topic_id: int) -> tuple[float, float, float]:
    """µs of one call: without a number, after one's own batch, after another producer's."""
    now_ms = time.time_ns() // 1_000_000
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = psycopg.RawCursor(connection)

        def one(number: tuple[Any, Any, Any]) -> float:
            begun = time.perf_counter()
            cursor.execute(_APPEND, (topic_id, now_ms, [b"v" * 100], *number), prepare=True)
            return (time.perf_counter() - begun) * 1e6

        for _ in range(100):
            one((None, None, None))
        plain, own, others = [], [], []
        for call in range(_CALLS):
            plain.append(one((None, None, None)))
            one((1, 0, 2 * call))
            own.append(one((1, 0, 2 * call + 1)))
            others.append(one((2, 0, call)))
    return percentile(plain, 0.5), percentile(own, 0.5), percentile(others, 0.5)
