"""Share groups: how many records a second members take from one partition; what an old snapshot costs."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import closing
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks.figures import Section, percentile
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import Workload
from logstore import Admin, Producer, ShareConsumer
from logstore._core.share_calls import Acknowledgements, ShareCalls
from logstore._sync.driver import Connection

__all__ = ["share", "share_snapshot"]

GROUP: Final = "bench"
WORKERS: Final = 8
BATCH: Final = 500
LOCKS: Final = 2 * WORKERS * BATCH

_console = Console(stderr=True, highlight=False)


def _fill(dsn: str, records: int, configs: dict[str, object]) -> None:
    create_topic(dsn, "t", 1)
    with Admin(dsn) as admin:
        admin.alter_share_configs(GROUP, {"share.auto.offset.reset": "earliest", **configs})
    workload = Workload(records)
    with Producer(dsn, acks=1) as producer:
        producer.send_many("t", workload.values, workload.keys)
        producer.flush()


# -- throughput ----------------------------------------------------------------------------------------------


def _work(dsn: str, key_ordered: bool, records: int, done: Synchronized[int], begin: Barrier) -> None:
    with ShareConsumer(
        "t", group_id=GROUP, dsn=dsn, max_poll_records=BATCH, key_ordered=key_ordered
    ) as consumer:
        begin.wait()
        while done.value < records:
            # Asking for more acknowledges what came before.
            taken = sum(map(len, consumer.poll(timeout_ms=50).values()))
            with done.get_lock():
                done.value += taken
        consumer.commit()
        begin.wait()


def _throughput(dsn: str, *, records: int, key_ordered: bool) -> float:
    """Records a second, from the first poll to the last acknowledgement."""
    context = multiprocessing.get_context("spawn")
    done: Any = context.Value("q", 0)
    begin = context.Barrier(WORKERS + 1)
    crew = [
        context.Process(target=_work, args=(dsn, key_ordered, records, done, begin), daemon=True)
        for _ in range(WORKERS)
    ]
    for process in crew:
        process.start()
    begin.wait()
    began = time.perf_counter()
    begin.wait()
    elapsed = time.perf_counter() - began
    for process in crew:
        process.join()
    with psycopg.connect(dsn) as raw:
        left = raw.execute(
            "SELECT sum(lag)::int8, sum(start_offset)::int8 FROM logstore.share_groups"
        ).fetchone()
    assert left == (0, records), left
    return records / elapsed


def share(server: BenchServer, *, records: int, repetitions: int) -> Section:
    """``WORKERS`` processes take everything from one partition and acknowledge it."""
    section = Section(
        "Share groups: throughput",
        f"{WORKERS} processes with one ShareConsumer each take {records:,} records (16-byte keys, 100-byte "
        f"values) from one partition by poll, at most {BATCH} at a time, each poll acknowledging the one "
        "before; from the first poll to the last acknowledgement. share.partition.max.record.locks is "
        f"{LOCKS}, so that each can have its share; all else is as it comes.",
    )
    plain: list[float] = []
    keyed: list[float] = []
    for repetition in range(repetitions):
        for rates, key_ordered in ((plain, False), (keyed, True)):
            dsn = server.fresh_log("bench_share")
            _fill(dsn, records, {"share.key.ordered": key_ordered, "share.partition.max.record.locks": LOCKS})
            server.checkpoint()
            rates.append(_throughput(dsn, records=records, key_ordered=key_ordered))
            server.drop_log("bench_share")
        _console.print(
            f"  {repetition + 1}/{repetitions} {plain[-1]:,.0f} rec/s; in the order of keys {keyed[-1]:,.0f}"
        )
    name = f"{WORKERS} members, one partition"
    in_any_order = section.add(f"{name}, acquired and acknowledged", "rec/s", plain)
    section.add(f"{name}, in the order of keys", "rec/s", keyed)
    section.at_least(f"share group, {name}", 10_000, in_any_order.median, "rec/s")
    return section


# -- a held snapshot -----------------------------------------------------------------------------------------


def share_snapshot(server: BenchServer, *, cycles: int, batch: int = 20) -> Section:
    """Acquire and acknowledge again and again while another session holds a snapshot."""
    section = Section(
        "Share groups: beside an old snapshot",
        f"One member, on one connection, acquires and acknowledges {batch} records {cycles:,} times, while "
        "another session holds a transaction with a snapshot open; the first 200 times against the last 200.",
    )
    dsn = server.fresh_log("bench_share")
    _fill(dsn, cycles * batch, {})
    calls = ShareCalls()
    with psycopg.connect(dsn) as other, closing(Connection.open(dsn)) as connection:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT count(*) FROM logstore.topics")
        acquired, acknowledged = [], []
        for _ in range(cycles):
            asked = time.perf_counter()
            ranges = connection.run(calls.acquire(GROUP, "m", ["t"], batch)).ranges
            got = time.perf_counter()
            connection.run(
                calls.acknowledge(
                    GROUP,
                    "m",
                    Acknowledgements(
                        [each.topic_id for each in ranges],
                        [each.partition for each in ranges],
                        [each.first_offset for each in ranges],
                        [each.last_offset for each in ranges],
                        [1] * len(ranges),
                    ),
                )
            )
            acquired.append(1000 * (got - asked))
            acknowledged.append(1000 * (time.perf_counter() - got))
        connection.close()
        time.sleep(1.5)  # until the statistics are there
        with psycopg.connect(dsn) as raw:
            row = raw.execute(
                "SELECT sum(n_dead_tup)::int8, sum(pg_total_relation_size(relid))::int8 "
                "FROM pg_stat_user_tables WHERE schemaname = 'logstore' AND relname ^@ 'share'"
            ).fetchone()
    assert row is not None
    server.drop_log("bench_share")
    for name, samples in (("acquire", acquired), ("acknowledge", acknowledged)):
        early, late = percentile(samples[:200], 0.5), percentile(samples[-200:], 0.5)
        section.add(f"{name}, p50 of the first 200", "ms", early)
        section.add(f"{name}, p50 of the last 200", "ms", late)
        section.at_most(f"{name} after {cycles:,} times / at first, a snapshot held", 1.5, late / early, "x")
    section.add("dead row versions at the end", "rows", row[0])
    section.add("tables and indexes at the end", "kB", row[1] / 1024)
    _console.print(f"  {row[0]:,} dead row versions after {cycles:,} cycles, {row[1] / 1024:,.0f} kB")
    return section
