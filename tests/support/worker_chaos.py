"""Several workers at once, killed at random, beside producers and consumers; and whether all went well.

``python -m tests.support.worker_chaos --batches 5000`` runs it at length, on an embedded server.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from typing import Final

from logstore import Consumer, Producer, TopicPartition
from tests.support import audit, jobs
from tests.support.appender import Appender
from tests.support.log_story import connect
from tests.support.log_view import fetched, places, visible
from tests.support.servers import embedded
from tests.support.sqllog import value
from tests.support.worker_killed import workers

__all__ = ["Outcome", "Plan", "run"]

CONFIGS: Final = {
    "kept": {"cleanup.policy": ""},
    "deleted": {"retention.bytes": "30000"},
    "compacted": {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": "0",
    },
}
"""The topics; each has two partitions."""
KEYS: Final = 20
PATIENCE_S: Final = 60


@dataclass(frozen=True)
class Plan:
    batches: int = 300
    """That each producer sends, one topic after the other."""
    producers: int = 2
    workers: int = 2
    kills: int = 0
    seed: int = 0


@dataclass
class Outcome:
    plan: Plan
    acknowledged: int = 0
    read: int = 0
    kills: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} records acknowledged, {self.read} read, {self.kills} workers killed "
            f"in {self.seconds:.0f} s; {len(self.problems)} problems"
        )


Place = tuple[str, int, int]
"""Topic, partition, offset."""


def run(dsn: str, plan: Plan) -> Outcome:
    """Produce, consume and work; kill workers now and then; check."""
    outcome = Outcome(plan)
    began = time.monotonic()
    with Appender(dsn) as appender:
        for topic, configs in CONFIGS.items():
            named = {"segment.bytes": "8000", "file.delete.delay.ms": "0", **configs}
            appender.connection.run(appender.calls.create_topic(topic, 2, named))
    context = workers()
    dice = random.Random(plan.seed)
    enough = context.Event()
    done = threading.Event()

    def start() -> ForkServerProcess:
        process = context.Process(target=_work, args=(dsn, enough), daemon=True)
        process.start()
        return process

    crew = [start() for _ in range(plan.workers)]
    written: dict[Place, bytes | None] = {}
    try:
        with ThreadPoolExecutor(plan.producers + len(CONFIGS)) as pool:
            readers = [pool.submit(_read, dsn, topic, done) for topic in CONFIGS]
            writers = [pool.submit(_write, dsn, plan, number) for number in range(plan.producers)]
            try:
                while any(not writer.done() for writer in writers):
                    if outcome.kills < plan.kills:
                        victim = dice.randrange(plan.workers)
                        crew[victim].join(dice.uniform(0.05, 0.5))
                        crew[victim].kill()
                        crew[victim].join()
                        crew[victim] = start()
                        outcome.kills += 1
                    else:
                        writers[0].exception()
            finally:
                done.set()
            for writer in writers:
                written |= writer.result()
            seen = [reader.result() for reader in readers]
        enough.set()
        for process in crew:
            process.join(PATIENCE_S)
            if process.exitcode != 0:
                outcome.problems.append(f"a worker ended with {process.exitcode}")
    finally:
        for process in crew:
            process.kill()
            process.join()
    outcome.acknowledged = len(written)
    outcome.read = sum(map(len, seen))
    jobs.settle(dsn)
    outcome.problems += audit.faults(dsn)
    outcome.problems += [problem for got in seen for problem in _misread(got, written)]
    outcome.problems += _mislaid(dsn, written)
    outcome.seconds = time.monotonic() - began
    return outcome


def _work(dsn: str, enough: Event) -> None:
    while not enough.is_set():
        jobs.run(dsn, *jobs.CLEANING)


def _write(dsn: str, plan: Plan, number: int) -> dict[Place, bytes | None]:
    """What was acknowledged, and where it is."""
    dice = random.Random(plan.seed * 1000 + number)
    sent = []
    with Producer(dsn, linger_ms=1) as producer:
        for count in range(plan.batches):
            for topic in CONFIGS:
                key = b"k%d" % dice.randrange(KEYS)
                dead = topic == "compacted" and dice.random() < 0.2
                content = None if dead else b"%d %d %s" % (number, count, b"x" * dice.randrange(400))
                sent.append((content, producer.send(topic, content, key=key)))
            if count % 10 == 9:
                producer.flush()
        found: dict[Place, bytes | None] = {}
        for content, future in sent:
            metadata = future.get(PATIENCE_S)
            found[metadata.topic, metadata.partition, metadata.offset] = content
        return found


def _read(dsn: str, topic: str, done: threading.Event) -> list[tuple[Place, bytes | None]]:
    """What a consumer got, from the beginning to the end."""
    got: list[tuple[Place, bytes | None]] = []
    partitions = [TopicPartition(topic, each) for each in range(2)]
    with Consumer(dsn=dsn, auto_offset_reset="earliest", max_partition_fetch_bytes=3000) as consumer:
        consumer.assign(partitions)
        while True:
            finishing = done.is_set()
            polled = consumer.poll(timeout_ms=100, max_records=50)
            for records in polled.values():
                got += [((topic, each.partition, each.offset), each.value) for each in records]
            if finishing and not polled:
                ends = consumer.end_offsets(partitions)
                if all(consumer.position(each) >= ends[each] for each in partitions):
                    return got


def _misread(got: Sequence[tuple[Place, bytes | None]], written: dict[Place, bytes | None]) -> list[str]:
    """What a consumer must not have seen; those of topic ``kept`` must have seen everything."""
    problems = []
    last: dict[int, int] = {}
    for place, content in got:
        topic, partition, offset = place
        if written.get(place, b"nothing") != content:
            problems.append(f"{place} was read as {content!r}")
        if offset <= last.get(partition, -1):
            problems.append(f"{place} was read after {last[partition]}")
        if topic == "kept" and offset != last.get(partition, -1) + 1:
            problems.append(f"{place} was read next after {last.get(partition, -1)}")
        last[partition] = offset
    return problems


def _mislaid(dsn: str, written: dict[Place, bytes | None]) -> list[str]:
    """What is not in the log as it should be."""
    problems = []
    with closing(connect(dsn)) as session:
        for topic in CONFIGS:
            topic_id = value(session, "SELECT topic_id FROM topic WHERE name = %s", topic)
            there = visible(session, topic)
            for partition, place in places(session, topic_id).items():
                records = there.get(partition, [])
                where = f"{topic}-{partition}"
                if fetched(session, topic_id, partition, place.log_start, place.end) != records:
                    problems.append(f"{where}: fetch() and the view do not agree")
                found = [record.offset for record in records]
                if found != sorted(set(found)):
                    problems.append(f"{where}: offsets are out of order, or there twice")
                for record in records:
                    if written.get((topic, partition, record.offset), b"nothing") != record.value:
                        problems.append(f"{where}: {record} is not what was acknowledged")
                wanted = {
                    offset
                    for name, number, offset in written
                    if (name, number) == (topic, partition) and offset >= place.log_start
                }
                if topic != "compacted" and set(found) != wanted:
                    problems.append(f"{where}: lost {sorted(wanted - set(found))[:10]}")
                if topic == "kept" and place.log_start != 0:
                    problems.append(f"{where} starts at {place.log_start}")
                if topic == "compacted":
                    head = [offset for offset in wanted if offset >= place.compacted_to]
                    if not set(head) <= set(found):
                        problems.append(f"{where}: lost of the head {sorted(set(head) - set(found))[:10]}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill workers at random beside producers and consumers.")
    parser.add_argument("--batches", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(options.batches, workers=options.workers, kills=options.kills, seed=options.seed)
    print(plan, flush=True)
    with embedded() as server:
        outcome = run(server.create(), plan)
    print(outcome)
    print(*outcome.problems[:20], sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
