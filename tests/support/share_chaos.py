"""Members of a share group in processes of their own, killed at random; and whether all went well.

``python -m tests.support.share_chaos --records 100000`` runs it at length, on an embedded server.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from logstore import Producer, ShareConsumer
from logstore._core.share_calls import ShareCalls
from logstore._sync.driver import Connection
from logstore.errors import InvalidRecordStateError
from logstore.share import RELEASE
from tests.support.servers import embedded

__all__ = ["Plan", "Report", "check", "run"]

TOPIC: Final = "t"
GROUP: Final = "g"
RELEASED: Final = 50
"""Every so-many-th record is released when it comes for the first time."""


@dataclass(frozen=True)
class Plan:
    records: int
    partitions: int = 1
    keys: int = 100
    key_ordered: bool = True
    workers: int = 4
    kills: int = 6
    """At the least; members are killed until all records are finished."""
    pause_s: float = 0.3
    """Between kills, on average."""
    batch: int = 100
    work_s: float = 0.03
    """What a member does with a batch takes that long: most kills come meanwhile."""
    lock_ms: int = 1500
    limit: int = 10
    seed: int = 0


class Event(NamedTuple):
    """One line of the journal."""

    kind: str
    """d: delivered, a: its acceptance is committed."""
    member: str
    partition: int
    offset: int
    key: str
    deliveries: int


@dataclass
class Report:
    plan: Plan
    seconds: float
    kills: int
    journal: list[Event]
    dead: set[tuple[int, int]]
    """What went to the dead-letter topic, as (partition, offset)."""
    ends: dict[int, int]
    """The end of each partition."""
    left: int
    """Rows that the group still has."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        deliveries = Counter((each.partition, each.offset) for each in self.journal if each.kind == "d")
        return (
            f"{self.plan.records} records, {self.kills} kills in {self.seconds:.1f} s; "
            f"{sum(deliveries.values())} deliveries, at most {max(deliveries.values(), default=0)} of one; "
            f"{len(self.dead)} dead letters; {len(self.problems)} problems"
        )


def run(dsn: str, plan: Plan, journal: Path) -> Report:
    """Produce, consume with members that are killed, and check."""
    _prepare(dsn, plan)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance = random.Random(plan.seed)
    began = time.monotonic()

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_work, args=(dsn, plan, journal), daemon=True)
        process.start()
        return process

    workers = [start() for _ in range(plan.workers)]
    kills = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            while kills < plan.kills or not _finished(connection):
                time.sleep(chance.uniform(0.2, 1.8) * plan.pause_s)
                victim = chance.randrange(plan.workers)
                workers[victim].kill()
                workers[victim].join()
                workers[victim] = start()
                kills += 1
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        report = Report(
            plan,
            time.monotonic() - began,
            kills,
            _read(journal),
            _dead(connection),
            dict(
                connection.execute(
                    "SELECT partition, high_watermark FROM logstore.partitions WHERE topic = %s", [TOPIC]
                ).fetchall()
            ),
            _left(connection),
        )
    report.problems = check(report)
    return report


def check(report: Report) -> list[str]:
    """What went wrong, in words."""
    problems: list[str] = []
    delivered: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    accepted: Counter[tuple[int, int]] = Counter()
    reached: dict[tuple[int, str], int] = {}
    for event in report.journal:
        place = event.partition, event.offset
        if event.kind == "a":
            accepted[place] += 1
            continue
        if accepted[place]:
            problems.append(f"{place} was delivered after it had been accepted")
        if delivered[place] and event.deliveries <= delivered[place][-1]:
            problems.append(f"{place} was delivered as number {event.deliveries} after {delivered[place]}")
        delivered[place].append(event.deliveries)
        if report.plan.key_ordered:
            key = event.partition, event.key
            if event.offset < reached.get(key, 0):
                problems.append(f"{place} of key {event.key} was delivered after {reached[key]}")
            reached[key] = max(event.offset, reached.get(key, 0))
    for place, counts in delivered.items():
        if len(counts) > report.plan.limit or counts[-1] > report.plan.limit:
            problems.append(f"{place} was delivered {counts} times")
    problems += [f"{place} was accepted {count} times" for place, count in accepted.items() if count > 1]
    problems += [f"{place} was accepted and is a dead letter" for place in report.dead if accepted[place]]
    everything = {(partition, offset) for partition, end in report.ends.items() for offset in range(end)}
    problems += [
        f"{place} was never delivered" for place in sorted(everything - set(delivered) - report.dead)
    ]
    if report.left:
        problems.append(f"{report.left} rows are left of finished records")
    return problems


# -- a member ----------------------------------------------------------------------------------------------


def _work(dsn: str, plan: Plan, journal: Path) -> None:
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(kind: str, member: str, records: Sequence[tuple[int, int, str, int]]) -> None:
        lines = [f"{kind} {member} {' '.join(map(str, record))}\n" for record in records]
        os.write(out, "".join(lines).encode())

    with ShareConsumer(
        TOPIC,
        group_id=GROUP,
        dsn=dsn,
        share_acknowledgement_mode="explicit",
        key_ordered=plan.key_ordered,
        max_poll_records=plan.batch,
    ) as consumer:
        while True:
            # A process that got no time to run must not write down late what others have meanwhile.
            asked = time.monotonic()
            records = [
                each
                for batch in consumer.poll(timeout_ms=200, max_records=plan.batch).values()
                for each in batch
            ]
            if time.monotonic() - asked > 0.2 + plan.lock_ms / 3000:
                for record in records:
                    consumer.acknowledge(record, RELEASE)
                continue
            noted = [
                (each.partition, each.offset, (each.key or b"-").decode(), each.delivery_count)
                for each in records
            ]
            note("d", consumer.member_id, noted)
            time.sleep(plan.work_s)
            accepted = []
            for record, line in zip(records, noted, strict=True):
                if record.offset % RELEASED == 0 and record.delivery_count == 1:
                    consumer.acknowledge(record, RELEASE)
                else:
                    consumer.acknowledge(record)
                    accepted.append(line)
            refused: set[tuple[int, int]] = set()
            try:
                consumer.commit()
            except InvalidRecordStateError as error:
                for _, partition, first, last in error.details["refused"]:
                    refused.update((partition, offset) for offset in range(first, last + 1))
            note("a", consumer.member_id, [line for line in accepted if line[:2] not in refused])


# -- before and after --------------------------------------------------------------------------------------


def _prepare(dsn: str, plan: Plan) -> None:
    calls = ShareCalls()
    connection = Connection.open(dsn)
    connection.run(calls.create_topic(TOPIC, plan.partitions))
    connection.run(calls.create_topic("dlq", 1))
    connection.run(
        calls.alter_share_group(
            GROUP,
            {
                "errors.deadletterqueue.topic.name": "dlq",
                "share.auto.offset.reset": "earliest",
                "share.delivery.count.limit": str(plan.limit),
                "share.key.ordered": str(plan.key_ordered).lower(),
                "share.record.lock.duration.ms": str(plan.lock_ms),
            },
        )
    )
    connection.close()
    with Producer(dsn) as producer:
        for number in range(plan.records):
            producer.send(TOPIC, b"%d" % number, key=b"k%d" % (number % plan.keys))


def _finished(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = connection.execute(
        'SELECT sum(lag) FROM logstore.share_groups WHERE "group" = %s HAVING count(*) = '
        "(SELECT partitions FROM logstore.topics WHERE topic = %s)",
        [GROUP, TOPIC],
    ).fetchone()
    return row is not None and row[0] == 0


def _left(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM logstore.share_flight) + (SELECT count(*) FROM logstore.share_delay)"
    ).fetchone()
    assert row is not None
    return row[0]


def _dead(connection: psycopg.Connection[tuple[int, int]]) -> set[tuple[int, int]]:
    rows = connection.execute(
        """SELECT max(h ->> 'value') FILTER (WHERE h ->> 'key' = '__dlq.errors.partition'),
                  max(h ->> 'value') FILTER (WHERE h ->> 'key' = '__dlq.errors.offset')
           FROM logstore.records r, jsonb_array_elements(r.headers) h
           WHERE r.topic = 'dlq' GROUP BY r.offset"""
    )
    return {(int(partition), int(offset)) for partition, offset in rows}


def _read(journal: Path) -> list[Event]:
    events = []
    for line in journal.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # else: killed while it was written
            kind, member, partition, offset, key, deliveries = line.split()
            events.append(Event(kind, member, int(partition), int(offset), key, int(deliveries)))
    return events


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill members of a share group at random.")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--any-order", action="store_true", help="without the order of keys")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.records,
        options.partitions,
        keys=1000,
        key_ordered=not options.any_order,
        workers=options.workers,
        kills=30,
        lock_ms=3000,
        seed=options.seed,
    )
    print(plan)
    with tempfile.TemporaryDirectory() as directory, embedded() as server:
        report = run(server.create(), plan, Path(directory) / "journal")
    print(report)
    print(*report.problems[:20], sep="\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
