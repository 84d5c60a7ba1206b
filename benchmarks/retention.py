"""What it takes to let old records go, and what appends notice of it."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks import ceilings, machine
from benchmarks.figures import Section, median_ratio, percentile
from benchmarks.log import BenchServer, topic_id
from benchmarks.workload import Batch, Workload
from logstore import Admin
from logstore.workers import reclaim, retention, roll

__all__ = ["retention_run"]

_PARTITIONS: Final = 4
_DAY_MS: Final = 86_400_000
_DELAY_MS: Final = 2000
_CONFIGS: Final = {
    "segment.bytes": str(64 << 20),
    "retention.ms": str(_DAY_MS),
    "file.delete.delay.ms": str(_DELAY_MS),
}
_BATCH: Final = Batch(0, [b"key-%012d" % n for n in range(900)], [random.randbytes(1000) for _ in range(900)])
_ONE: Final = Workload(1)
_APPENDERS: Final = 2

_console = Console(stderr=True, highlight=False)


def retention_run(server: BenchServer, *, megabytes: int, repetitions: int) -> Section:
    """Drop so much at once, from a topic that is written to."""
    section = Section(
        "Retention",
        f"A topic of {_PARTITIONS} partitions, segment.bytes=64 MiB, with {megabytes:,} MB of records that "
        f"have expired, in closed segments; {_APPENDERS} sessions append records of 100 bytes to it one by "
        "one, durably, while the jobs retention and reclaim run, with their connections; reclaim a second "
        f"time once file.delete.delay.ms={_DELAY_MS} has passed, and deletes the files then. p99 of the "
        "appends that began meanwhile, or up to 0.3 s later, against those of as long just before. The "
        "files were taken out of the system's cache first, where what expires after days is not either. "
        '"By hand": files as large as those that PostgreSQL deletes are truncated one by one, with the same '
        "rests, beside the same appends; on "
        f"{machine.mounted(server.directory or Path(tempfile.gettempdir()))}.",
    )
    samples: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        dsn = server.fresh_log("bench_retention")
        with Admin(dsn) as admin:
            admin.create_topic("old", partitions=_PARTITIONS, configs=_CONFIGS)
        number = topic_id(dsn, "old")
        _console.print(f"  [dim]{repetition + 1}/{repetitions}[/dim] filling {megabytes:,} MB")
        _fill(dsn, number, megabytes)
        reclaim.run_once(dsn)  # it fills up the log's reserve, once
        copies = _copies(server, dsn, number)
        server.checkpoint()
        _forget(server)
        disk = _disk(dsn)
        with _appending(dsn, number) as latencies:
            time.sleep(8)
            begin = time.perf_counter()
            moved = retention.run_once(dsn)
            middle = time.perf_counter()
            detached = reclaim.run_once(dsn)
            gone = time.perf_counter()
            # What file.delete.delay.ms is a minute for, as a rule.
            time.sleep(_DELAY_MS / 1000)
            again = time.perf_counter()
            freed = reclaim.run_once(dsn)
            end = time.perf_counter()
            window = gone - begin + end - again + 0.6
            time.sleep(window + 1)
            by_hand = time.perf_counter()
            hand_s = _truncate(copies[: freed.segments])
            hand_end = time.perf_counter()
            time.sleep(1)
        if not freed.segments >= moved.segments > detached.segments == moved.evacuations == 0:
            raise AssertionError(f"not everything was dropped, or too early: {moved}, {detached}, {freed}")
        beside = _between(latencies, begin, gone + 0.3) + _between(latencies, again, end + 0.3)
        before = _between(latencies, begin - window, begin)
        after = _between(latencies, end + 0.3, end + 0.3 + window)
        hand = _between(latencies, by_hand, hand_end + 0.3)
        total_s = gone - begin + end - again - freed.rested_s
        for name, value in (
            ("moving the log starts and dropping the segments from the catalog", (middle - begin) * 1000),
            ("detaching their tables", (gone - middle) * 1000),
            ("both: from here on nobody finds them", (gone - begin) * 1000),
            ("dropping the tables, without the rests", (end - again - freed.rested_s) * 1000),
            ("all, without the rests", total_s * 1000),
            ("truncating such files by hand", hand_s * 1000),
            ("all, less truncating by hand", (total_s - hand_s) * 1000),
            ("all, with the rests", (gone - begin + end - again) * 1000),
            ("append, p99 before", percentile(before, 0.99)),
            ("append, p99 beside", percentile(beside, 0.99)),
            ("append, p99 after", percentile(after, 0.99)),
            ("append, p99 beside truncating by hand", percentile(hand, 0.99)),
            ("append, slowest before", max(before)),
            ("append, slowest until nobody finds them", max(_between(latencies, begin, gone), default=0.0)),
            ("append, slowest beside", max(beside)),
            ("append, slowest beside truncating by hand", max(hand)),
            ("bytes dropped", freed.bytes / 1e6),
            ("disk before", disk / 1e6),
            ("disk after", _disk(dsn) / 1e6),
        ):
            samples.setdefault(name, []).append(value)
            _console.print(f"    {name}: {value:,.1f}")
        server.drop_log("bench_retention")
    for name, values in samples.items():
        section.add(name, "MB" if name.startswith(("bytes", "disk")) else "ms", values)
    for what, sample in (
        ("out of the log, tables detached", "both: from here on nobody finds them"),
        ("and the files deleted, beyond the file system's own work", "all, less truncating by hand"),
        ("and the files deleted", "all, without the rests"),
    ):
        section.at_most(f"dropping {megabytes:,} MB: {what}", 200, statistics.median(samples[sample]), "ms")
    section.at_most(
        "append p99: beside ÷ before",
        1.5,
        median_ratio(samples["append, p99 beside"], samples["append, p99 before"]),
        "x",
    )
    section.at_most("slowest append beside", 50, statistics.median(samples["append, slowest beside"]), "ms")
    section.at_most(
        "disk: after ÷ before", 0.2, median_ratio(samples["disk after"], samples["disk before"]), "x"
    )
    return section


def _between(latencies: list[tuple[float, float]], begin: float, end: float) -> list[float]:
    return [ms for at, ms in latencies if begin <= at < end]


def _fill(dsn: str, number: int, megabytes: int) -> None:
    """Records of the day before yesterday, in segments that are closed."""
    old = time.time_ns() // 1_000_000 - 2 * _DAY_MS
    text = ceilings.append_text(_PARTITIONS)
    parts = [Batch(partition, _BATCH.keys, _BATCH.values) for partition in range(_PARTITIONS)]
    parameters = [value for part in parts for value in ceilings.encode(number, part, old)]
    with ceilings.binary_connection(dsn) as connection:
        cursor = connection.cursor(binary=True)
        for _ in range(megabytes * 9 // 8 // _PARTITIONS):
            cursor.execute(text, parameters).fetchone()
        # Else new records would come to old ones, and a segment that is half expired be written anew.
        cursor.execute("UPDATE logstore.topic SET roll_at = 0 WHERE topic_id = $1", [number])
        roll.run_once(dsn)
        # Autovacuum would have done that in these two days; it is not what is measured.
        cursor.execute("VACUUM (ANALYZE) logstore.batches")


def _forget(server: BenchServer) -> None:
    """Take the server's files out of the system's cache; not those of a server somewhere else."""
    if server.directory is None:
        return
    for name in server.directory.rglob("base/*/*"):
        _evict(name)


def _evict(name: Path) -> None:
    if hasattr(os, "posix_fadvise") and name.is_file():
        with name.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copies(server: BenchServer, dsn: str, number: int) -> list[list[Path]]:
    """For each closed segment as many files as its table consists of, each as large."""
    directory = server.directory or Path(tempfile.gettempdir())
    with psycopg.connect(server.superuser_dsn(dsn), autocommit=True) as connection:
        sizes: list[tuple[list[int]]] = connection.execute(
            """
            SELECT array_agg(pg_relation_size(f.oid, k.fork))
            FROM logstore.topic_segment s
            JOIN pg_class c ON c.oid = to_regclass(format('logstore.b_%%s_%%s', s.topic_id, s.segment))
            JOIN pg_class f ON f.oid IN (c.oid, c.reltoastrelid) OR f.oid IN (
                SELECT i.indexrelid FROM pg_index i WHERE i.indrelid IN (c.oid, c.reltoastrelid)),
            LATERAL (VALUES ('main'), ('fsm'), ('vm')) AS k (fork)
            WHERE s.topic_id = %s AND pg_relation_size(f.oid, k.fork) > 0
            GROUP BY s.segment ORDER BY s.segment
            """,
            [number],
        ).fetchall()
    copies = []
    for segment, (files,) in enumerate(sizes):
        names = [directory / f"truncated-{segment}-{place}" for place in range(len(files))]
        for name, size in zip(names, files, strict=True):
            with name.open("wb") as file:
                for begin in range(0, size, 1 << 20):
                    file.write(random.randbytes(min(1 << 20, size - begin)))
                file.flush()
                os.fsync(file.fileno())
            _evict(name)
        copies.append(names)
    return copies


def _truncate(copies: list[list[Path]]) -> float:
    """How long the file system takes for it, in s: nothing that drops tables can take less."""
    elapsed = 0.0
    for names in copies:
        begin = time.perf_counter()
        for name in names:
            os.truncate(name, 0)
        took = time.perf_counter() - begin
        elapsed += took
        time.sleep(min(reclaim.REST * took, reclaim.LONGEST_REST_S))
    for name in (name for names in copies for name in names):
        name.unlink()
    return elapsed


def _disk(dsn: str) -> float:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row: Any = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return float(row[0])


@contextmanager
def _appending(dsn: str, number: int) -> Iterator[list[tuple[float, float]]]:
    """Sessions append meanwhile; when each append began, and how many ms it took."""
    latencies: list[tuple[float, float]] = []
    stop = threading.Event()

    def work(partition: int) -> None:
        text = ceilings.append_text(1)
        one = Batch(partition, _ONE.keys, _ONE.values)
        with ceilings.binary_connection(dsn) as connection:
            cursor = connection.cursor(binary=True)
            while not stop.is_set():
                parameters = ceilings.encode(number, one, time.time_ns() // 1_000_000)
                begin = time.perf_counter()
                cursor.execute(text, parameters).fetchone()
                latencies.append((begin, (time.perf_counter() - begin) * 1000))

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(_APPENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield latencies
    finally:
        stop.set()
        for thread in threads:
            thread.join()
