"""Transactions over many partitions: producers abort, are killed and are fenced, and a reader looks on.

Each transaction sends its number of parts to as many partitions.  A reader that looks at snapshots has to see
all parts of a transaction or none, and no offset left out; afterwards the log is compared with what the
producers said.  ``python -m tests.support.transfer_chaos --seconds 600`` runs it at length.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from logstore import Producer
from logstore.errors import LogstoreError, ProducerFencedError
from tests.support.servers import embedded

__all__ = ["Outcome", "Part", "Plan", "Snapshots", "check", "run"]

MOST_PARTS: Final = 6
ABORTED: Final = 0.2
"""How many of the transactions."""


@dataclass(frozen=True)
class Plan:
    topics: int = 4
    partitions: int = 3
    producers: int = 4
    strikes: int = 8
    """Producers that are killed, or fenced by another with their transactional id."""
    pause_s: float = 0.3
    """Between them, on average."""
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """One record: a part of a transaction."""

    transaction: str
    """The producer's incarnation, and the number of its transaction."""
    part: int
    parts: int
    partition: tuple[str, int]

    @classmethod
    def parse(cls, value: str, partition: tuple[str, int]) -> Part:
        transaction, part, parts = value.split()
        return cls(transaction, int(part), int(parts), partition)


class Snapshots:
    """What a reader has seen so far, snapshot after snapshot; what was wrong with it."""

    def __init__(self) -> None:
        self.ends: dict[tuple[str, int], int] = defaultdict(int)
        self.seen: dict[str, set[int]] = defaultdict(set)
        self.parts: list[Part] = []
        self.problems: list[str] = []
        self.count = 0

    def look(self, rows: Sequence[tuple[str, int, int, str]]) -> None:
        """One snapshot of what came after the one before: topic, partition, offset, value, ascending."""
        self.count += 1
        touched: dict[str, int] = {}
        for topic, partition, offset, value in rows:
            place = topic, partition
            if offset != self.ends[place]:
                self.problems.append(f"{place} goes on with {offset} instead of {self.ends[place]}")
            self.ends[place] = offset + 1
            part = Part.parse(value, place)
            self.parts.append(part)
            self.seen[part.transaction].add(part.part)
            touched[part.transaction] = part.parts
        for transaction, parts in touched.items():
            if len(self.seen[transaction]) != parts:
                self.problems.append(
                    f"{len(self.seen[transaction])} of {parts} parts of {transaction} were seen"
                )


@dataclass
class Outcome:
    plan: Plan
    seconds: float
    said: Mapping[str, str]
    """What the producers said of each transaction: committed, aborted, fenced or begun (and no more)."""
    snapshots: Snapshots
    deadlocks: int
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = Counter(self.said.values())
        told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        return (
            f"{self.seconds:.1f} s: {told}; {len(self.snapshots.parts)} records in {self.snapshots.count} "
            f"snapshots; {self.deadlocks} deadlocks; {len(self.problems)} problems"
        )


def run(dsn: str, plan: Plan, journals: Path, seconds: float | None = None) -> Outcome:
    """Let producers work, be killed and be fenced; read meanwhile; check.  ``seconds``: at least so long."""
    began = time.monotonic()
    chance = random.Random(plan.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    incarnations = iter(range(1_000_000))
    snapshots = Snapshots()
    with psycopg.connect(dsn, autocommit=True) as raw:
        for number in range(plan.topics):
            raw.execute("SELECT logstore.create_topic(%s, %s, null)", [f"t{number}", plan.partitions])

        def start(place: int) -> Any:
            process = context.Process(
                target=_work, args=(dsn, plan, place, next(incarnations), journals), daemon=True
            )
            process.start()
            return process

        crowd = [[start(place)] for place in range(plan.producers)]
        stop = threading.Event()
        reader = threading.Thread(target=_read, args=(dsn, snapshots, stop))
        reader.start()
        strikes = 0
        try:
            while strikes < plan.strikes or time.monotonic() - began < (seconds or 0):
                time.sleep(chance.uniform(0.2, 1.8) * plan.pause_s)
                place = chance.randrange(plan.producers)
                if chance.random() < 0.5:
                    crowd[place][-1].kill()
                crowd[place].append(start(place))  # a zombie is fenced, says so, and ends
                # No more than one zombie a place: a slow machine would only start processes.
                for former in crowd[place][:-2]:
                    former.kill()
                    former.join()
                del crowd[place][:-2]
                strikes += 1
        finally:
            for process in [each for place in crowd for each in place]:
                process.kill()
                process.join()
            stop.set()
            reader.join()
        _look(raw, snapshots)  # whatever was committed at the very end
        row = raw.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        outcome = Outcome(plan, time.monotonic() - began, _said(journals), snapshots, row[0] if row else -1)
    outcome.problems = check(outcome)
    return outcome


def check(outcome: Outcome) -> list[str]:
    """What went wrong, in words."""
    problems = list(outcome.snapshots.problems)
    times = Counter((part.transaction, part.part) for part in outcome.snapshots.parts)
    problems += [f"part {part} of {name} is there {n} times" for (name, part), n in times.items() if n > 1]
    there = {part.transaction for part in outcome.snapshots.parts}
    for name, said in outcome.said.items():
        if said == "committed" and name not in there:
            problems.append(f"{name} was committed and is not there")
        if said in ("aborted", "fenced") and name in there:
            problems.append(f"{name} was {said} and is there")
    problems += [f"nobody knows of {name}" for name in there if name not in outcome.said]
    reached: dict[tuple[str, tuple[str, int]], int] = {}
    for part in outcome.snapshots.parts:
        incarnation, number = part.transaction.split(":")
        before = reached.get((incarnation, part.partition), -1)
        if int(number) < before:
            problems.append(f"{part.transaction} comes after {before} in {part.partition}")
        reached[incarnation, part.partition] = int(number)
    if outcome.deadlocks:
        problems.append(f"{outcome.deadlocks} deadlocks")
    return problems


# -- a producer --------------------------------------------------------------------------------------------


def _work(dsn: str, plan: Plan, place: int, incarnation: int, journals: Path) -> None:
    chance = random.Random(incarnation)
    out = os.open(journals / str(incarnation), os.O_WRONLY | os.O_CREAT)

    def say(what: str, name: str) -> None:
        os.write(out, f"{what} {name}\n".encode())

    with Producer(dsn, transactional_id=f"p{place}", retry_backoff_ms=5) as producer:
        producer.init_transactions()
        for number in range(1_000_000):
            name = f"{incarnation}:{number}"
            parts = chance.randrange(1, MOST_PARTS + 1)
            say("begun", name)
            try:
                producer.begin_transaction()
                for part in range(parts):
                    topic = f"t{chance.randrange(plan.topics)}"
                    producer.send(
                        topic,
                        f"{name} {part} {parts}".encode(),
                        partition=chance.randrange(plan.partitions),
                    )
                if chance.random() < ABORTED:
                    producer.abort_transaction()
                    say("aborted", name)
                else:
                    producer.commit_transaction()
                    say("committed", name)
            except ProducerFencedError:
                say("fenced", name)
                return
            except LogstoreError as error:
                say("failed", name)
                print(error, file=sys.stderr)
                return


def _said(journals: Path) -> dict[str, str]:
    said: dict[str, str] = {}
    for journal in journals.iterdir():
        for line in journal.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                what, name = line.split()
                said[name] = what
    return said


# -- the reader --------------------------------------------------------------------------------------------


def _read(dsn: str, snapshots: Snapshots, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as raw:
        while not stop.wait(0.01):
            _look(raw, snapshots)


def _look(raw: psycopg.Connection[Any], snapshots: Snapshots) -> None:
    """One statement, so one snapshot, over all that came since the one before."""
    ends = [(topic, partition, end) for (topic, partition), end in snapshots.ends.items()]
    rows = raw.execute(
        """SELECT b.topic, b.partition, b."offset", b.value_text
           FROM logstore.records b
           LEFT JOIN unnest(%s::text[], %s::int[], %s::bigint[]) seen (topic, partition, finish)
             ON (seen.topic, seen.partition) = (b.topic, b.partition)
           WHERE b."offset" >= coalesce(seen.finish, 0)
           ORDER BY 1, 2, 3""",
        [[each[0] for each in ends], [each[1] for each in ends], [each[2] for each in ends]],
    ).fetchall()
    snapshots.look(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Transactions by producers that abort, die and are fenced.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(topics=10, partitions=4, producers=options.producers, pause_s=2.0, seed=options.seed)
    print(plan, flush=True)
    with tempfile.TemporaryDirectory() as directory, embedded() as server:
        outcome = run(server.create(), plan, Path(directory), options.seconds)
    print(outcome)
    print(*outcome.problems[:20], sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
