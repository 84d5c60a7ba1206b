"""What a record costs the transaction that it is produced in, and how soon a consumer has it."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks.figures import Section, percentile
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, VALUE_BYTES
from logstore import Consumer, Producer

__all__ = ["outbox"]

_SLICE: Final = 50
"""Transactions of one kind in a row: so few that whatever disturbs the machine disturbs all kinds."""
_ARRIVALS: Final = {"now and then": 0.2, "100 a second": 0.01, "1,000 a second": 0.001}
"""Seconds between two transactions, on average; the gaps are exponentially distributed."""
_STAMP: Final = 8
"""A value begins with a moment in ns of the monotonic clock, which all processes share."""

_console = Console(stderr=True, highlight=False)
_processes = multiprocessing.get_context("spawn")


def outbox(server: BenchServer, *, transactions: int, seconds: float, repetitions: int) -> Section:
    """The same transaction with and without a record; then the way from COMMIT to the consumer's hands."""
    dsn = server.fresh_log("bench_outbox")
    create_topic(dsn, "outbox", PARTITIONS)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.mine (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n text)"
        )
        connection.execute("CREATE TABLE public.captured (LIKE public.mine INCLUDING ALL)")
        connection.execute("SELECT logstore.capture('public.captured', 'outbox')")
    server.checkpoint()
    costs = [_costs(dsn, transactions) for _ in range(repetitions)]
    delays: dict[str, list[list[float]]] = {name: [] for name in _ARRIVALS}
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute("SELECT more FROM logstore.drain()").fetchone() == (True,):
            pass
    for name, gap in _ARRIVALS.items():
        for _ in range(repetitions):
            delays[name].append(_delays(dsn, gap, max(20, int(seconds / gap))))
            _console.print(f"  {name}: p99 {percentile(delays[name][-1], 0.99):.2f} ms")
    server.drop_log("bench_outbox")

    section = Section(
        "Outbox",
        f"Transactions of one insert into a table of the program's, durable, one session, slices of {_SLICE} "
        f"of each kind in turn, {transactions:,} of each a sample, the median of which counts. Then "
        f"transactions with one record of {VALUE_BYTES} bytes at three rates, while a consumer in another "
        "process waits and nobody else drains: from the end of COMMIT to the record in its hands. Medians of "
        f"{repetitions}.",
    )
    labels = {
        "plain": "transaction without a record: p50",
        "produce": "with `SELECT logstore.produce(…)`: p50",
        "captured": "into a table with `logstore.capture(…)`: p50",
        "send": "with `producer.send(…, connection=…)`: p50",
    }
    for name, label in labels.items():
        section.add(label, "ms", [cost[name] for cost in costs])
    for name, label in labels.items():
        if name != "plain":
            added = section.add(
                label.removesuffix(": p50") + ": added, p50",
                "ms",
                [cost[name] - cost["plain"] for cost in costs],
            )
            section.at_most(f"outbox: added by {name}, p50", 0.5, added.median, "ms")
    for name, samples in delays.items():
        section.add(f"commit to consumer, {name}: p50", "ms", [percentile(each, 0.5) for each in samples])
        last = section.add(
            f"commit to consumer, {name}: p99", "ms", [percentile(each, 0.99) for each in samples]
        )
        section.at_most(f"outbox: commit to consumer, {name}, p99", 20.0, last.median, "ms")
    return section


def _costs(dsn: str, transactions: int) -> dict[str, float]:
    """The median time of a transaction of each kind, in ms."""
    value = b"x" * VALUE_BYTES
    with psycopg.connect(dsn) as connection, Producer(dsn) as producer:
        connection.prepare_threshold = 0

        def plain() -> None:
            connection.execute("INSERT INTO public.mine (n) VALUES (%s)", [value.decode()])

        def produce() -> None:
            plain()
            connection.execute("SELECT logstore.produce('outbox', %s::bytea, %s::bytea)", [b"key", value])

        def captured() -> None:
            connection.execute("INSERT INTO public.captured (n) VALUES (%s)", [value.decode()])

        def send() -> None:
            plain()
            producer.send("outbox", value, key=b"key", connection=connection)

        kinds: dict[str, Callable[[], None]] = {
            "plain": plain,
            "produce": produce,
            "captured": captured,
            "send": send,
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for work in kinds.values():
            for _ in range(10):
                work()
                connection.commit()
        for _ in range(transactions // _SLICE):
            for name, work in kinds.items():
                for _ in range(_SLICE):
                    begin = time.perf_counter()
                    work()
                    connection.commit()
                    times[name].append((time.perf_counter() - begin) * 1000)
    return {name: percentile(found, 0.5) for name, found in times.items()}


def _delays(dsn: str, gap: float, transactions: int) -> list[float]:
    """From the end of COMMIT to the consumer, in ms."""
    ready = _processes.Event()
    receiving, sending = _processes.Pipe(duplex=False)
    reader = _processes.Process(target=_consume, args=(dsn, transactions, ready, sending))
    reader.start()
    sending.close()
    dice = random.Random(transactions)
    committed: list[int] = []
    try:
        with psycopg.connect(dsn) as connection:
            ready.wait(60)
            for number in range(transactions):
                time.sleep(dice.expovariate(1 / gap))
                value = number.to_bytes(_STAMP) + b"x" * (VALUE_BYTES - _STAMP)
                connection.execute("SELECT logstore.produce('outbox', null, %s::bytea)", [value])
                connection.commit()
                committed.append(time.monotonic_ns())
            arrived: dict[int, int] = receiving.recv()
    finally:
        reader.join()
    # The consumer may have it before the program has been told that the commit is done.
    return [max(0.0, (arrived[number] - at) / 1e6) for number, at in enumerate(committed)]


def _consume(dsn: str, transactions: int, ready: Event, answer: Any) -> None:
    arrived: dict[int, int] = {}
    with Consumer("outbox", dsn=dsn, auto_offset_reset="latest") as consumer:
        consumer.poll(timeout_ms=500)  # longer than it takes to go to sleep
        ready.set()
        while len(arrived) < transactions:
            for part in consumer.poll(timeout_ms=1000).values():
                now = time.monotonic_ns()
                for record in part:
                    arrived[int.from_bytes(record.value[:_STAMP])] = now
    answer.send(arrived)
