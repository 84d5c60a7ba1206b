"""A day in the life of fifty topics, in minutes: disk stays what the configs allow, and nothing else grows.

``python -m tests.support.simulated_day`` makes topics with random configs, lets time pass five minutes at a
time, appends at random rates and runs the jobs at each tick.  What the configs allow each partition on disk,
in bytes as the log counts them:

- delete: the records younger than ``retention.ms`` (and one more tick, which is how often somebody looks),
  as far as they fit ``retention.bytes``; and, since only whole segments go, the records in front of those
  that may be in the same segment: at most ``segment.bytes`` and one batch of them, at most ``segment.ms`` and
  a tick older;
- compact: the newest record of each key, as many bytes again as ``min.cleanable.dirty.ratio`` lets be
  uncompacted, and the head, which is a segment at most;
- compact,delete: the smaller of the two.

That is the most that may be there at any time: each partition about to lose a whole segment.  What the same
rules keep at the end of the day, with the segments as they lie then, is less, and known to the byte
(:attr:`Day.kept`).  Between the two is what has expired in segments that other partitions still need: those
are written anew when it is the larger part of them, so it is never more than what is kept, and less than
half of that here.

What a byte of the log takes on disk (rows, pages, indexes) is measured on a table that nothing is ever
removed from; so is what a segment takes without any record, of which there are as many as ``segment.ms`` and
``segment.bytes`` make.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psycopg

from tests.support import audit, jobs
from tests.support.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from tests.support.log_story import connect
from tests.support.log_view import places, visible
from tests.support.servers import Server, embedded
from tests.support.sqllog import Session, append, rows, value

__all__ = ["Day", "Plan", "live"]

SLACK: Final = 1.10
KEYS: Final = 2000
RECORDS: Final = 64
"""In a batch."""
CATALOG: Final = (
    "pg_attribute", "pg_class", "pg_constraint", "pg_depend", "pg_index", "pg_inherits", "pg_shdepend",
    "pg_statistic", "pg_type",
)  # fmt: skip
VACUUMED_EVERY: Final = 6
"""Ticks."""
WASTE: Final = 0.5
"""How much that has expired may lie beside what is kept, as a part of that."""
FLAT: Final = 1.10
"""How much larger PostgreSQL's catalog may be in the end than at half time, for as many segments."""


@dataclass(frozen=True)
class Plan:
    topics: int = 50
    length_ms: int = DAY_MS
    tick_ms: int = 5 * MINUTE_MS
    busy: float = 1.0
    cleanup: tuple[str, ...] = (*["delete"] * 8, "compact", "compact,delete")
    seed: int = 0


class Batch(NamedTuple):
    base_offset: int
    last_offset: int
    timestamp: int
    size: int
    """As the log counts it."""
    keys: tuple[bytes, ...]


@dataclass
class Topic:
    name: str
    id: int
    configs: dict[str, str]
    weights: list[int]
    """How much of what comes goes to each partition."""
    busy: float
    """Batches a tick, on average."""
    batches: list[list[Batch]]

    @property
    def cleanup(self) -> str:
        return self.configs["cleanup.policy"]


@dataclass
class Day:
    """What it came to."""

    plan: Plan
    appended: int = 0
    """Bytes."""
    allowed: float = 0.0
    """Bytes on disk that the configs allow in the end."""
    needed: float = 0.0
    """Bytes on disk of the records that must be there."""
    kept: float = 0.0
    """Bytes on disk of the records that the rules keep, in the segments as they are, and of empty ones."""
    expired: float = 0.0
    """Bytes on disk of records that have expired, in segments that have others."""
    disk: int = 0
    segments: int = 0
    segments_made: int = 0
    catalog: list[tuple[int, int]] = field(default_factory=list)
    """Tables of segments, and bytes of PostgreSQL's catalog: in each quarter's end."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        catalog = ", ".join(f"{size / 1e6:.1f} MB with {tables}" for tables, size in self.catalog)
        return (
            f"{self.plan.topics} topics, {self.plan.length_ms / HOUR_MS:g} h in {self.seconds:.0f} s: "
            f"{self.appended / 1e6:,.0f} MB appended, {self.disk / 1e6:,.1f} MB on disk in "
            f"{self.segments} of {self.segments_made} segments; the configs need {self.needed / 1e6:,.1f} MB "
            f"and allow {self.allowed / 1e6:,.1f} MB ({self.disk / self.allowed:.2f} of it), whole segments "
            f"make that {self.kept / 1e6:,.1f} MB now ({self.disk / self.kept:.2f}), "
            f"{self.expired / 1e6:,.1f} MB are others' in the same segments; "
            f"the catalog by quarters: {catalog} segments; {len(self.problems)} problems"
        )


def live(server: Server, plan: Plan) -> Day:
    """Let the time pass; what it came to."""
    began = time.monotonic()
    dice = random.Random(plan.seed)
    day = Day(plan)
    dsn = server.create()
    try:
        with closing(connect(dsn)) as session, Clock(dsn) as clock:
            topics = [_topic(session, dice, plan, number) for number in range(plan.topics)]
            cost, empty = _cost(session, dice, clock)
            ticks = plan.length_ms // plan.tick_ms
            for tick in range(ticks):
                for topic in topics:
                    _append(session, dice, clock, plan, topic, tick)
                clock.advance(plan.tick_ms)
                jobs.run(dsn, *jobs.CLEANING)
                if tick % VACUUMED_EVERY == 0:
                    _vacuum(server, dsn)
                if (tick + 1) % (ticks // 4) == 0:
                    day.catalog.append(_catalog(dsn))
            jobs.settle(dsn)
            # What was dropped last stays for so long.
            clock.advance(MINUTE_MS)
            jobs.run(dsn, "reclaim")
            _look(session, clock.now_ms, topics, cost, empty, day)
        day.problems += audit.faults(dsn)
    finally:
        server.drop(dsn)
    day.seconds = time.monotonic() - began
    return day


def _topic(session: Session, dice: random.Random, plan: Plan, number: int) -> Topic:
    cleanup = dice.choice(plan.cleanup)
    longest = plan.length_ms // 2
    configs = {
        "cleanup.policy": cleanup,
        "retention.ms": str(dice.choice([-1, longest // 24, longest // 6, longest // 2])),
        "retention.bytes": str(dice.choice([-1, 2_000_000, 6_000_000])),
        "segment.bytes": str(dice.choice([500_000, 1_000_000, 2_000_000])),
        "segment.ms": str(dice.choice([longest // 24, longest // 6, longest // 2])),
        "segment.jitter.ms": str(dice.choice([0, longest // 100])),
        "min.cleanable.dirty.ratio": str(dice.choice([0.1, 0.5])),
        "file.delete.delay.ms": str(dice.choice([0, MINUTE_MS])),
    }
    if configs["retention.ms"] == configs["retention.bytes"] == "-1":
        configs["retention.ms"] = str(longest // 6)
    partitions = dice.choice([1, 1, 2, 4])
    name = f"t{number}"
    topic_id = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, json.dumps(configs))
    return Topic(
        name,
        topic_id,
        configs,
        # As far apart as hot and cold are.
        [dice.choice([1, 10, 100]) for _ in range(partitions)],
        dice.choice([2, 6, 12]) * plan.busy,
        [[] for _ in range(partitions)],
    )


def _append(session: Session, dice: random.Random, clock: Clock, plan: Plan, topic: Topic, tick: int) -> None:
    # Most topics rest for some of the time.
    if (tick // 12 + topic.id) % 5 == 0:
        return
    count = int(topic.busy + dice.random())
    for _ in range(count):
        (partition,) = dice.choices(range(len(topic.weights)), topic.weights)
        keys = tuple(b"k%d" % dice.randrange(KEYS) for _ in range(RECORDS))
        values = [dice.randbytes(dice.randrange(100, 400)) for _ in keys]
        now = clock.now_ms + dice.randrange(plan.tick_ms // 2)
        base, *_ = append(session, topic.id, values, partition, keys=keys, at=now, acks=0)
        size = _array(values) + _array(keys)
        topic.batches[partition].append(Batch(base, base + len(keys) - 1, now, size, keys))


def _array(elements: Sequence[bytes]) -> int:
    """The size of an array as PostgreSQL keeps it."""
    return 24 + sum((4 + len(element) + 3) // 4 * 4 for element in elements)


def _cost(session: Session, dice: random.Random, clock: Clock) -> tuple[float, int]:
    """What a byte of such records takes on disk, and a segment without any."""
    topic = value(session, "SELECT create_topic('measure', 1)")
    table = f"b_{topic}_0"
    empty = value(session, "SELECT pg_total_relation_size(%s::text::regclass)", table)
    size = 0
    for _ in range(200):
        keys = [b"k%d" % dice.randrange(KEYS) for _ in range(RECORDS)]
        values = [dice.randbytes(dice.randrange(100, 400)) for _ in keys]
        append(session, topic, values, keys=keys, at=clock.now_ms, acks=0)
        size += _array(values) + _array(keys)
    assert size == value(session, "SELECT max(segment_bytes) FROM batches WHERE topic_id = %s", topic)
    disk = value(session, "SELECT pg_total_relation_size(%s::text::regclass)", table)
    session.execute("SELECT delete_topic('measure')")
    return float(disk - empty) / size, empty


def _vacuum(server: Server, dsn: str) -> None:
    """What autovacuum would do in that time."""
    superuser = server.as_superuser(dsn) if server.superuser_dsn else dsn
    with psycopg.connect(superuser, autocommit=True) as each:
        each.execute(f"VACUUM {', '.join(CATALOG)}".encode())


def _catalog(dsn: str) -> tuple[int, int]:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM logstore.topic_segment), sum(pg_total_relation_size(oid))::int8 "
            "FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'"
        ).fetchone()
        assert row is not None
        return row[0], row[1]


def _look(session: Session, now: int, topics: Sequence[Topic], cost: float, empty: int, day: Day) -> None:
    session.execute("SELECT pg_stat_force_next_flush()")
    for topic in topics:
        day.allowed += empty * _segments(topic, now, day.plan.tick_ms)
        ((kept, expired),) = rows(
            session,
            "SELECT coalesce(sum(bytes) FILTER (WHERE reason IS NULL), 0)::int8,"
            " coalesce(sum(bytes) FILTER (WHERE reason IS NOT NULL), 0)::int8 FROM retention_parts(%s)",
            topic.id,
        )
        day.kept += cost * kept
        day.expired += cost * expired
        there = places(session, topic.id)
        left = visible(session, topic.name) if "compact" in topic.cleanup else {}
        for partition, batches in enumerate(topic.batches):
            needed, required, permitted = _bounds(topic, batches, now, day.plan.tick_ms)
            day.needed += cost * required
            day.allowed += cost * permitted
            day.appended += sum(batch.size for batch in batches)
            if there[partition].log_start > needed:
                day.problems.append(
                    f"{topic.name}-{partition} starts at {there[partition].log_start}, {needed} was to stay"
                )
            if "compact" in topic.cleanup:
                newest = {key: batch.base_offset for batch in batches for key in batch.keys}
                offsets = {record.key: record.offset for record in left.get(partition, [])}
                lost = [key for key, base in newest.items() if base >= needed and key not in offsets]
                if lost:
                    day.problems.append(f"{topic.name}-{partition} lost the last values of {lost}")
    day.disk = value(
        session,
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::int8 FROM pg_class"
        r" WHERE relnamespace = 'logstore'::regnamespace AND relkind = 'r' AND relname ~ '^b_\d+_\d+$'",
    )
    day.segments = value(session, "SELECT count(*) FROM topic_segment")
    day.segments_made = value(session, "SELECT sum(last_segment + 1) FROM topic")
    day.kept += empty * day.segments
    if day.disk > SLACK * day.allowed:
        day.problems.append(f"{day.disk} bytes on disk, but the configs allow {day.allowed:.0f}")
    if day.expired > WASTE * day.kept:
        day.problems.append(f"{day.expired:.0f} bytes have expired beside {day.kept:.0f} that are kept")
    dead = rows(
        session,
        "SELECT relname::text, n_dead_tup FROM pg_stat_user_tables WHERE relname ~ '^b_' AND n_dead_tup > 0",
    )
    if dead:
        day.problems.append(f"dead tuples: {dead}")
    _, (before, smaller), _, (tables, larger) = day.catalog[-4:]
    if larger > FLAT * smaller * max(1, tables / before):
        day.problems.append(f"the catalog has grown from {smaller} to {larger} bytes")


def _bounds(topic: Topic, batches: Sequence[Batch], now: int, tick_ms: int) -> tuple[int, float, float]:
    """The offset from which on records must be there, how many bytes must be, and how many may be."""
    configs = topic.configs
    segment_bytes = int(configs["segment.bytes"])
    needed, allowed = _extent(topic, batches, now, tick_ms)
    offset = batches[needed].base_offset if needed < len(batches) else _end(batches)
    required = sum(batch.size for batch in batches[needed:])
    permitted = float(sum(batch.size for batch in batches[allowed:]))
    if "compact" in topic.cleanup:
        newest = {key: batch for batch in batches for key in batch.keys}
        unique = sum(batch.size / len(batch.keys) for batch in newest.values() if batch.base_offset >= offset)
        permitted = min(
            permitted, unique / (1 - float(configs["min.cleanable.dirty.ratio"])) + 2 * segment_bytes
        )
        required = min(required, int(unique))
    return offset, required, permitted


def _extent(topic: Topic, batches: Sequence[Batch], now: int, tick_ms: int) -> tuple[int, int]:
    """The first batch that has to be there, and the first that may be, since whole segments go."""
    segment_bytes, segment_ms = int(topic.configs["segment.bytes"]), int(topic.configs["segment.ms"])
    needed, allowed = _deletion(topic, batches, now, tick_ms) if "delete" in topic.cleanup else (0, 0)
    shared, first = 0, allowed
    while (
        0 < allowed < len(batches)
        and shared <= segment_bytes
        and batches[first].timestamp - batches[allowed - 1].timestamp <= segment_ms + tick_ms
    ):
        allowed -= 1
        shared += batches[allowed].size
    return needed, allowed


def _segments(topic: Topic, now: int, tick_ms: int) -> float:
    """Into how many segments the topic's configs divide what they allow: by time, by size, and one more."""
    size, oldest = 0, now
    for batches in topic.batches:
        _, allowed = _extent(topic, batches, now, tick_ms)
        size += sum(batch.size for batch in batches[allowed:])
        oldest = min([oldest, *(batch.timestamp for batch in batches[allowed : allowed + 1])])
    span = int(topic.configs["segment.ms"]) - int(topic.configs["segment.jitter.ms"])
    return (now - oldest) / span + size / int(topic.configs["segment.bytes"]) + 1


def _end(batches: Sequence[Batch]) -> int:
    return batches[-1].last_offset + 1 if batches else 0


def _deletion(topic: Topic, batches: Sequence[Batch], now: int, tick_ms: int) -> tuple[int, int]:
    """The first batch that has to be there, and the first that may be if segments were batches."""
    retention_ms = int(topic.configs["retention.ms"])
    retention_bytes = int(topic.configs["retention.bytes"])
    needed = allowed = 0
    for index, batch in enumerate(batches):
        if 0 <= retention_ms < now - batch.timestamp:
            needed = index + 1
        if 0 <= retention_ms < now - tick_ms - batch.timestamp:
            allowed = index + 1
    if retention_bytes >= 0:
        newer, index = 0, len(batches)
        while index > 0 and newer < retention_bytes:
            index -= 1
            newer += batches[index].size
        needed, allowed = max(needed, index), max(allowed, index)
    return needed, allowed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A day in the life of a log, accelerated.")
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(options.topics, int(options.hours * HOUR_MS), seed=options.seed)
    print(plan, flush=True)
    with embedded() as server:
        day = live(server, plan)
    print(day)
    print(*day.problems[:20], sep="\n")
    return 1 if day.problems else 0


if __name__ == "__main__":
    sys.exit(main())
