"""Clients that share a quota, which changes, while their sessions are killed at random; and whether it held.

Besides, a transaction keeps an old snapshot open from the first to the last.  ``python -m
tests.support.quota_chaos --seconds 120`` runs it at length, on an embedded server.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from logstore import Admin, ClientQuotaEntity, Consumer, Producer, TopicPartition
from tests.support.log_story import connect
from tests.support.servers import embedded
from tests.support.sqllog import Session, rows, value

__all__ = ["Outcome", "Plan", "run"]

CLIENT_ID = "shared"
REQUEST = 4096
"""The largest batch."""
RECORD = 900
PATIENCE_S = 60


@dataclass(frozen=True)
class Plan:
    seconds: float = 5.0
    """How long to produce."""
    changes: int = 2
    """How often the quota is another one meanwhile."""
    kills: int = 10
    producers: int = 4
    seed: int = 0


@dataclass
class Outcome:
    plan: Plan
    acknowledged: int = 0
    read: int = 0
    kills: int = 0
    used: list[float] = field(default_factory=list)
    """Of each quota, the part that was used while it was there."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        used = ", ".join(f"{part:.0%}" for part in self.used)
        return (
            f"{self.acknowledged} records acknowledged, {self.read} read, {self.kills} sessions killed, "
            f"quotas used to {used}; {len(self.problems)} problems"
        )


def run(dsn: str, plan: Plan) -> Outcome:
    """Produce and consume with a quota, change it, kill; check."""
    outcome = Outcome(plan)
    dice = random.Random(plan.seed)
    enough = threading.Event()
    rates: list[tuple[int, int]] = []
    with Admin(dsn) as admin, closing(connect(dsn)) as session, closing(connect(dsn)) as holder:
        admin.create_topic("t", 2)

        def alter() -> None:
            rate = dice.randrange(100_000, 400_000)
            admin.alter_client_quotas(
                {
                    ClientQuotaEntity(client_id=CLIENT_ID): {
                        "producer_byte_rate": rate,
                        "consumer_byte_rate": 10**6,
                    }
                }
            )
            rates.append((value(session, "SELECT clock_ms()"), rate))

        alter()
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        rows(holder, "SELECT * FROM quota")
        with ThreadPoolExecutor(plan.producers + 1) as pool:
            writers = [pool.submit(_write, dsn, number, enough) for number in range(plan.producers)]
            reader = pool.submit(_read, dsn, enough, writers)
            try:
                steps = ["kill"] * plan.kills + ["alter"] * plan.changes
                dice.shuffle(steps)
                for step in steps:
                    enough.wait(plan.seconds / (len(steps) + 1) * dice.uniform(0.5, 1.5))
                    if step == "alter":
                        alter()
                    else:
                        outcome.kills += _kill(session, dice)
                enough.wait(plan.seconds / (len(steps) + 1))
            finally:
                rates.append((value(session, "SELECT clock_ms()"), 0))
                # So that what is in the buffers need not wait for long.
                admin.alter_client_quotas(
                    {
                        ClientQuotaEntity(client_id=CLIENT_ID): {
                            "producer_byte_rate": None,
                            "consumer_byte_rate": None,
                        }
                    }
                )
                enough.set()
            written = set(itertools.chain.from_iterable(writer.result() for writer in writers))
            got = reader.result()
        outcome.acknowledged, outcome.read = len(written), len(got)
        if len(got) != len(set(got)):
            outcome.problems.append("a record was read twice")
        if lost := written - set(got):
            outcome.problems.append(f"{len(lost)} records are lost, such as {min(lost)!r}")
        outcome.problems += _overdrawn(session, plan, rates, outcome)
        outcome.problems += _left_behind(session, plan)
        holder.execute("COMMIT")
    return outcome


def _kill(session: Session, dice: random.Random) -> int:
    """End, or interrupt, one of the clients' sessions."""
    return len(
        rows(
            session,
            "SELECT CASE %s WHEN 'end' THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END"
            " FROM pg_stat_activity WHERE application_name = %s ORDER BY random() LIMIT 1",
            dice.choice(["end", "interrupt"]),
            CLIENT_ID,
        )
    )


def _write(dsn: str, number: int, enough: threading.Event) -> list[bytes]:
    """What was acknowledged."""
    sent = []
    with Producer(
        dsn, client_id=CLIENT_ID, linger_ms=1, max_request_size=REQUEST, buffer_memory=4 * REQUEST
    ) as producer:
        for count in itertools.count():
            if enough.is_set():
                break
            content = b"%d %d " % (number, count)
            content += b"x" * (RECORD - len(content))
            sent.append((content, producer.send("t", content)))
        for _, future in sent:
            future.get(PATIENCE_S)
    return [content for content, _ in sent]


def _read(dsn: str, enough: threading.Event, writers: Sequence[object]) -> list[bytes]:
    """Everything, to the end."""
    got: list[bytes] = []
    partitions = [TopicPartition("t", each) for each in range(2)]
    with Consumer(dsn=dsn, client_id=CLIENT_ID, auto_offset_reset="earliest") as consumer:
        consumer.assign(partitions)
        while True:
            finishing = enough.is_set() and all(writer.done() for writer in writers)  # type: ignore[attr-defined]
            polled = consumer.poll(timeout_ms=100)
            got += [record.value for records in polled.values() for record in records]
            if finishing and not polled:
                ends = consumer.end_offsets(partitions)
                if all(consumer.position(each) >= ends[each] for each in partitions):
                    return got


def _overdrawn(session: Session, plan: Plan, rates: Sequence[tuple[int, int]], outcome: Outcome) -> list[str]:
    """More than the quota, while it was the quota: a second's worth ahead, and what was under way."""
    problems = []
    for (begin, rate), (end, _) in itertools.pairwise(rates):
        sent = value(
            session,
            "SELECT coalesce(sum(size_bytes), 0)::int8 FROM batches"
            " WHERE append_time >= %s AND append_time < %s",
            begin,
            end,
        )
        # Each producer may have two requests under way, of a batch for each partition.
        allowed = rate * ((end - begin) / 1000 + 1) + plan.producers * 4 * REQUEST
        outcome.used.append(sent / (rate * max(end - begin, 1) / 1000))
        if sent > allowed:
            problems.append(f"{sent} bytes in {end - begin} ms, with a quota of {rate} a second")
    return problems


def _left_behind(session: Session, plan: Plan) -> list[str]:
    """Locks that nobody gives back, rows that nobody removes."""
    problems = []
    locks = value(
        session,
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory'"
        " AND l.classid::int8 = (lock_class('quota')::int8 & 4294967295)",
    )
    if locks:
        problems.append(f"{locks} locks of buckets are left")
    session.execute("SELECT pg_stat_force_next_flush()")
    dead = value(
        session,
        "SELECT coalesce(sum(n_dead_tup), 0)::int8 FROM pg_stat_user_tables WHERE relname = 'quota'",
    )
    if dead > plan.changes + 2:
        problems.append(f"{dead} dead rows, and the quota was changed {plan.changes} times")
    buckets = value(
        session,
        "SELECT max(pg_relation_size(oid)) FROM pg_class"
        " WHERE relkind = 'S' AND relname ~ '^quota_[0-9a-f]{24}$'",
    )
    if buckets > 8192:
        problems.append(f"a bucket has grown to {buckets} bytes")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill and change beside clients that share a quota.")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--producers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(
        options.seconds,
        changes=int(options.seconds / 10),
        kills=int(options.seconds * 2),
        producers=options.producers,
        seed=options.seed,
    )
    print(plan, flush=True)
    with embedded() as server:
        outcome = run(server.create(), plan)
    print(outcome)
    print(*outcome.problems[:20], sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
