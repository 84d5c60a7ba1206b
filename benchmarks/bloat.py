"""What the append and fetch paths leave for vacuum, also while somebody's transaction stays open."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg
from rich.console import Console

from benchmarks.figures import Section
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, Workload
from logstore import Consumer, Producer, TopicPartition

__all__ = ["bloat"]

_CHUNK = 500
_console = Console(stderr=True, highlight=False)

_COUNTERS = """
SELECT stat.relid IN (SELECT relid FROM pg_partition_tree('logstore.batches')) AS batches,
       sum(n_dead_tup)::int8, sum(n_tup_upd + n_tup_del)::int8, sum(n_tup_ins)::int8
FROM pg_stat_user_tables AS stat
WHERE schemaname = 'logstore'
GROUP BY 1
"""


class _Counters(NamedTuple):
    dead: int
    replaced: int
    """Rows updated or deleted, ever: vacuum does not take these back."""
    inserted: int


def bloat(server: BenchServer, *, records: int) -> Section:
    """Produce in small requests and read everything back, once alone and once beside an open transaction."""
    section = Section(
        "Dead tuples",
        f"{records:,} records by `send_many` of {_CHUNK} with a flush after each, then read back by a "
        "consumer; from pg_stat_user_tables, less what creating the topic left. Updated and deleted rows are "
        "counted too, which autovacuum cannot hide.",
    )
    for held in (False, True):
        dsn = server.fresh_log("bench_bloat")
        create_topic(dsn, "bloat", PARTITIONS)
        before = _counters(dsn)
        with ExitStack() as stack:
            if held:
                other = stack.enter_context(psycopg.connect(dsn))
                other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                other.execute("SELECT count(*) FROM logstore.topics")
            _produce_and_consume(dsn, records)
            after = _counters(dsn, sessions=1 if held else 0)
        if after[True].inserted == before[True].inserted:
            raise AssertionError("pg_stat_user_tables has not seen the batches: its counts mean nothing")
        circumstance = "a transaction held open" if held else "alone"
        for batches, table in ((True, "batches"), (False, "all other tables")):
            dead = after[batches].dead - before[batches].dead
            replaced = after[batches].replaced - before[batches].replaced
            section.add(f"dead tuples, {table}, {circumstance}", "rows", dead)
            section.add(f"rows updated or deleted, {table}, {circumstance}", "rows", replaced)
            name = f"dead tuples in {table} after {records:,} records, {circumstance}"
            section.at_most(name, 0 if batches else 16, max(dead, replaced), "rows")
            _console.print(f"  {name}: {dead} (updated or deleted: {replaced})")
        server.drop_log("bench_bloat")
    return section


def _produce_and_consume(dsn: str, records: int) -> None:
    workload = Workload(min(records, 100_000))
    with Producer(dsn, acks=1) as producer:
        done = 0
        while done < records:
            place = done % len(workload.values)
            chunk = slice(place, place + min(_CHUNK, records - done))
            producer.send_many("bloat", workload.values[chunk], workload.keys[chunk])
            producer.flush()
            done += len(workload.values[chunk])
    with Consumer(dsn=dsn, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("bloat", partition) for partition in range(PARTITIONS)])
        got = 0
        while got < records:
            answer = consumer.poll(timeout_ms=5000)
            assert answer, f"{got} of {records} records read"
            got += sum(map(len, answer.values()))


def _counters(dsn: str, sessions: int = 0) -> dict[bool, _Counters]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        deadline = time.monotonic() + 15
        while _others(connection) > sessions and time.monotonic() < deadline:
            time.sleep(0.05)  # a session reports its last counts when it ends
        rows: list[tuple[Any, ...]] = connection.execute(_COUNTERS).fetchall()
    found = {bool(batches): _Counters(*map(int, counts)) for batches, *counts in rows}
    return {batches: found.get(batches, _Counters(0, 0, 0)) for batches in (True, False)}


def _others(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    ).fetchone()
    assert row is not None
    return int(row[0])
