"""What compaction does a second, what appends notice of it, and what its index of keys costs and gives."""

from __future__ import annotations

import ctypes
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Final

import psycopg
from rich.console import Console

from benchmarks.figures import Section
from benchmarks.log import BenchServer, topic_id
from benchmarks.workload import PARTITIONS, VALUE_BYTES, Workload
from logstore import Admin, Consumer, Producer
from logstore.workers import compaction as job
from logstore.workers import rewriting
from logstore.workers.connections import opened
from logstore.workers.rewriting import DUTY

__all__ = ["compaction"]

_BATCH: Final = 1000
_BULK: Final = 10_000
_UPDATES: Final = 10
"""Records a key, on average."""
_NORMAL_S: Final = 4.0
_LOOK_UPS: Final = 300
_console = Console(stderr=True, highlight=False)
_processes = multiprocessing.get_context("spawn")
_FILL: Final = """
    SELECT count(logstore.append(%(topic)s, b %% %(partitions)s, %(batch)s, %(now)s, null,
        array(SELECT decode(lpad(to_hex(CASE WHEN %(updates)s = 1 THEN b::int8 * %(batch)s + n
                                             ELSE floor(random() * %(keys)s)::int8 END), 32, '0'), 'hex')
              FROM generate_series(1, %(batch)s) n),
        array(SELECT substr(%(noise)s::bytea, 1 + floor(random() * 9000)::int4, %(bytes)s) || int4send(n + b)
              FROM generate_series(1, %(batch)s) n), null, null, null, 0::int2))
    FROM generate_series(%(first)s::int4, %(last)s::int4) b"""


def compaction(server: BenchServer, *, records: int, distinct: int, repetitions: int) -> Section:
    """Compact a topic while another one is appended to; then one whose keys are all different."""
    section = Section(
        "Compaction",
        f"{records:,} records of 16 + {VALUE_BYTES} bytes in {PARTITIONS} partitions, {_UPDATES} a key on "
        f"average, batches of {_BATCH:,}. `compaction` is run by itself, and again at its default pace "
        "while another process appends to an ordinary topic as fast as it can (`send_many`, acks=1); "
        f"appends beside it against those of {_NORMAL_S:.0f} s before and after. Memory: {distinct:,} "
        "records with as many keys, the backend looked at every 3 ms.",
    )
    samples: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        dsn = server.fresh_log("bench_compaction")
        _console.print(f"  [dim]{repetition + 1}/{repetitions}[/dim] filling {records:,} records")
        for name in ("alone", "paced"):
            _fill(dsn, name, records, _UPDATES)
        server.checkpoint()
        with Admin(dsn) as admin:
            admin.create_topic("beside", partitions=PARTITIONS)
        alone = _compact(dsn, "alone", duty=1.0)
        with _appending(dsn) as appended:
            before = _rate(appended)
            begun, count = time.monotonic(), appended.value
            paced = _compact(dsn, "paced", duty=DUTY)
            during = (appended.value - count) / (time.monotonic() - begun)
            after = _rate(appended)
        seen = {
            "by itself": records / alone,
            "beside appends": records / paced,
            "appends, normally": (before + after) / 2,
            "appends beside it": during,
            "ratio": during / ((before + after) / 2),
        }
        for name, number in (seen | _index(dsn)).items():
            samples.setdefault(name, []).append(number)
        _console.print("  " + ", ".join(f"{name} {number:,.2f}" for name, number in seen.items()))
        server.drop_log("bench_compaction")

    section.add("compaction by itself", "rec/s", samples["by itself"])
    paced_figure = section.add("compaction beside appends", "rec/s", samples["beside appends"])
    section.add("appends, normally", "rec/s", samples["appends, normally"])
    section.add("appends beside compaction", "rec/s", samples["appends beside it"])
    section.at_least("compaction beside appends", 200_000, paced_figure.median, "rec/s")
    section.at_least("appends beside compaction, of normal", 0.7, statistics.median(samples["ratio"]), "x")
    section.add("append() of 1,000 records, ordinary topic", "ms", samples["append, ordinary"])
    section.add("append() of 1,000 records, compacted topic", "ms", samples["append, compacted"])
    section.add("`consumer.latest`: p50", "ms", samples["latest"])
    _memory(server, section, distinct)
    return section


def _fill(dsn: str, topic: str, records: int, updates: int) -> None:
    """A compacted topic with so many records in closed segments."""
    with Admin(dsn) as admin:
        configs = {"cleanup.policy": "compact", "segment.ms": "3600000"}
        admin.create_topic(topic, partitions=PARTITIONS, configs=configs)
    arguments = {
        "topic": topic_id(dsn, topic),
        "partitions": PARTITIONS,
        "batch": _BATCH,
        "now": time.time_ns() // 1_000_000,
        "updates": updates,
        "keys": records // updates,
        "noise": random.randbytes(9200),
        "bytes": VALUE_BYTES - 4,
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        for first in range(0, records // _BATCH, 50):
            last = min(first + 50, records // _BATCH) - 1
            connection.execute(_FILL, arguments | {"first": first, "last": last})
        _close(connection, topic_id(dsn, topic))


def _close(connection: psycopg.Connection[Any], topic: int) -> None:
    """Nobody writes any more to the segments that there are."""
    connection.execute("UPDATE logstore.topic SET roll_at = 0 WHERE topic_id = %s", [topic])
    while connection.execute("SELECT more FROM logstore.roll_topic(%s)", [topic]).fetchone() == (True,):
        pass


def _compact(dsn: str, topic: str, *, duty: float) -> float:
    """Compact ``topic`` and nothing else; the seconds it takes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT logstore.start_rewrite(topic_id, 'compact', sources) "
                           "FROM logstore.topics_to_compact() WHERE topic = %s", [topic])  # fmt: skip
        connection.execute("UPDATE logstore.topic SET compacted = (name = %s)", [topic])
    begun = time.monotonic()
    while job.run_once(dsn, duty=duty, budget_s=600).more:
        pass
    return time.monotonic() - begun


@contextmanager
def _appending(dsn: str) -> Iterator[Synchronized[int]]:
    """While a producer in another process appends; how many records it has appended so far."""
    appended = _processes.Value(ctypes.c_int64, 0)
    stop = _processes.Event()
    child = _processes.Process(target=_append, args=(dsn, appended, stop))
    child.start()
    try:
        while not appended.value:
            time.sleep(0.01)
        time.sleep(1)
        yield appended
    finally:
        stop.set()
        child.join()


def _append(dsn: str, appended: Synchronized[int], stop: Any) -> None:
    workload = Workload(_BULK)
    with Producer(dsn, acks=1) as producer:
        under_way = [producer.send_many("beside", workload.values, keys=workload.keys)]
        while not stop.is_set():
            under_way.append(producer.send_many("beside", workload.values, keys=workload.keys))
            under_way.pop(0).get(60)
            appended.value += _BULK
        producer.flush(60)


def _rate(appended: Synchronized[int]) -> float:
    begun, count = time.monotonic(), appended.value
    time.sleep(_NORMAL_S)
    return (appended.value - count) / (time.monotonic() - begun)


def _index(dsn: str) -> dict[str, float]:
    """What an append to a compacted topic costs, against one to an ordinary topic; and a look-up."""
    times: dict[str, list[float]] = {"append, ordinary": [], "append, compacted": []}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name, policy in (("ordinary", "delete"), ("compacted", "compact")):
            connection.execute(
                "SELECT logstore.create_topic(%s, 1, jsonb_build_object('cleanup.policy', %s::text))",
                [name, policy],
            )
        for number in range(300):
            keys = [b"key-%012d" % (number * _BATCH + each) for each in range(_BATCH)]
            values = [random.randbytes(VALUE_BYTES) for _ in keys]
            for name in ("ordinary", "compacted"):
                begun = time.perf_counter()
                connection.execute(
                    "SELECT logstore.append((SELECT topic_id FROM logstore.topic WHERE name = %s), 0, %s, 1, "
                    "null, %b::bytea[], %b::bytea[], null, null, null, 1::int2)",
                    [name, _BATCH, keys, values],
                    binary=True,
                )
                times[f"append, {name}"].append((time.perf_counter() - begun) * 1000)
    looked = []
    with Consumer(dsn=dsn) as consumer:
        for _ in range(_LOOK_UPS):
            key = b"key-%012d" % random.randrange(300 * _BATCH)
            begun = time.perf_counter()
            assert consumer.latest("compacted", key) is not None
            looked.append((time.perf_counter() - begun) * 1000)
    # The mean: what is put off until the list is full counts as well.
    means = {name: statistics.fmean(each) for name, each in times.items()}
    return means | {"latest": statistics.median(looked)}


def _memory(server: BenchServer, section: Section, records: int) -> None:
    dsn = server.fresh_log("bench_compaction")
    _console.print(f"  filling {records:,} records with as many keys")
    _fill(dsn, "distinct", records, 1)
    server.checkpoint()
    receiving, sending = _processes.Pipe(duplex=False)
    child = _processes.Process(target=_watched, args=(dsn, sending))
    child.start()
    sending.close()
    seconds, worker, backend, private = receiving.recv()
    child.join()
    section.add(f"{records:,} different keys", "rec/s", records / seconds)
    section.add("worker: largest resident set", "MiB", worker)
    section.add("backend: largest resident set, with shared buffers", "MiB", backend)
    section.add("backend: largest resident set of its own", "MiB", private)
    section.at_most(f"compaction of {records:,} keys: memory of the backend's own", 256, private, "MiB")
    section.at_most(f"compaction of {records:,} keys: memory of the worker", 256, worker, "MiB")
    server.drop_log("bench_compaction")


def _watched(dsn: str, answer: Any) -> None:
    """Compact; answer the seconds and the largest sizes of the worker and of its backend."""
    with opened(dsn, "logstore", "compaction", rewriting.LIMITS) as connection:
        backend = connection.raw.info.backend_pid
        ((topic, sources),) = connection.rows("SELECT topic_id, sources FROM {}.topics_to_compact()")
        connection.value("SELECT {}.start_rewrite(%s, 'compact', %s)", topic, sources)
        private = [0.0]
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(backend, private, stop))
        watcher.start()
        begun = time.monotonic()
        finished = False
        while not finished:
            finished = rewriting.advance(
                connection, topic, until=begun + 3600, stop=threading.Event(), duty=1.0
            ).finished
        seconds = time.monotonic() - begun
        stop.set()
        watcher.join()
        answer.send((seconds, _mib("self", "VmHWM"), _mib(backend, "VmHWM"), max(private)))


def _watch(backend: int, private: list[float], stop: threading.Event) -> None:
    while not stop.wait(0.003):
        private.append(_mib(backend, "RssAnon"))


def _mib(process: int | str, name: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0
