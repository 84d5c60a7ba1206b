"""What a follower costs who writes, and what followers spare a leader that is read from."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any, Final, Literal

import psycopg
from rich.console import Console

from benchmarks import ceilings
from benchmarks.fetch import fill
from benchmarks.figures import Clock, Section, Speed, interleave, median_ratio, percentile, rates
from benchmarks.followers import Member, Replicated, replicated
from benchmarks.log import BenchServer, topic_id
from benchmarks.workload import PARTITIONS, Batch, Workload
from logstore import Admin, Consumer, Producer, TopicPartition

__all__ = ["follower_reads", "replication"]

CHUNK: Final = 10_000
"""Records in one call of ``send_many``."""
BATCH_BYTES: Final = 1 << 20
INSYNC: Final = {"min.insync.replicas": 2}

_console = Console(stderr=True, highlight=False)


# -- writing -------------------------------------------------------------------------------------------------


def replication(server: BenchServer, *, records: int, appends: int, repetitions: int) -> Section:
    """acks="all" with one quorum follower against acks=1, in large batches and a record at a time."""
    section = Section(
        "Replication: acks=all",
        "A leader and one hot standby, both on this machine and durable, over loopback TCP, "
        "synchronous_standby_names='ANY 1 (follower1)'; topics with min.insync.replicas=2. "
        f"`send_many` of {records:,} records (16-byte keys, 100-byte values), {CHUNK:,} a call, "
        f"{PARTITIONS} partitions, batch_size={BATCH_BYTES:,}; then {appends:,} appends of one record by "
        f"bare SQL, and by `Producer.send(...).get()`, one after the other; {repetitions} rounds that "
        "alternate. The follower takes part in both, so it competes for the processors in both.",
    )
    workload = Workload(records)
    with replicated(1) as group:
        group.wait_for("ANY 1 (follower1)")
        dsn = group.leader.dsn()
        numbers = count()

        def before() -> None:
            group.settle()
            group.checkpoint()

        _many(dsn, "warm-up", workload, "all")
        samples = interleave(
            {
                "acks=1": lambda: _many(dsn, f"many-{next(numbers)}", workload, 1),
                'acks="all"': lambda: _many(dsn, f"many-{next(numbers)}", workload, "all"),
            },
            repetitions,
            before=before,
        )
        singles = _singles(group, appends=appends, repetitions=repetitions)
    speeds = {name: rates(values) for name, values in samples.items()}
    for name, values in speeds.items():
        section.add(f"`send_many`, {name}", "rec/s", values)
    for name, times in singles.items():
        section.add(f"{name}: p50", "ms", [1000 * percentile(each, 0.5) for each in times])
        section.add(f"{name}: p99", "ms", [1000 * percentile(each, 0.99) for each in times])
    section.at_least(
        '`send_many`, acks="all" with one quorum follower ÷ acks=1',
        0.6,
        median_ratio(speeds['acks="all"'], speeds["acks=1"]),
        "x",
    )
    for how in ("bare append of 1 record", "`send(...).get()`"):
        section.at_most(
            f'{how}, p50: acks="all" ÷ acks=1',
            3.0,
            median_ratio(
                [percentile(each, 0.5) for each in singles[f'{how}, acks="all"']],
                [percentile(each, 0.5) for each in singles[f"{how}, acks=1"]],
            ),
            "x",
        )
    return section


def _many(dsn: str, topic: str, workload: Workload, acks: Literal[1, "all"]) -> Speed:
    with Admin(dsn) as admin:
        admin.create_topic(topic, PARTITIONS, INSYNC)
    keys, values = workload.keys, workload.values
    with Producer(dsn, acks=acks, batch_size=BATCH_BYTES) as producer:
        producer.partitions_for(topic)
        with Clock(workload.records) as clock:
            for place in range(0, len(values), CHUNK):
                producer.send_many(topic, values[place : place + CHUNK], keys[place : place + CHUNK])
            producer.flush()
    return clock.speed


def _singles(group: Replicated, *, appends: int, repetitions: int) -> dict[str, list[list[float]]]:
    """The seconds that each append took, by how it was done, round by round."""
    dsn = group.leader.dsn()
    with Admin(dsn) as admin:
        admin.create_topic("single", 1, INSYNC)
    number = topic_id(dsn, "single")
    batch = Batch(0, [b"k" * 16], [b"v" * 100])
    found: dict[str, list[list[float]]] = {}
    with (
        ceilings.binary_connection(dsn) as connection,
        Producer(dsn, acks=1, linger_ms=0) as one,
        Producer(dsn, acks="all", linger_ms=0) as every,
    ):
        text = ceilings.append_text(1)
        cursor = connection.cursor(binary=True)

        def bare(acks: int) -> Any:
            parameters = ceilings.encode(number, batch, time.time_ns() // 1_000_000, acks)
            return cursor.execute(text, parameters).fetchone()

        ways: dict[str, Callable[[], object]] = {
            "bare append of 1 record, acks=1": lambda: bare(1),
            'bare append of 1 record, acks="all"': lambda: bare(-1),
            "`send(...).get()`, acks=1": lambda: one.send("single", b"v" * 100, b"k" * 16).get(30),
            '`send(...).get()`, acks="all"': lambda: every.send("single", b"v" * 100, b"k" * 16).get(30),
        }
        for repetition in range(repetitions + 1):
            for name in list(ways)[:: 1 if repetition % 2 else -1]:
                work, times = ways[name], []
                for _ in range(appends if repetition else 50):
                    began = time.perf_counter()
                    work()
                    times.append(time.perf_counter() - began)
                if repetition:  # the first round is to warm up
                    found.setdefault(name, []).append(times)
                    _console.print(
                        f"  [dim]{repetition}/{repetitions}[/dim] {name}: "
                        f"p50 {1000 * percentile(times, 0.5):.3f} ms"
                    )
    return found


# -- reading -------------------------------------------------------------------------------------------------


def follower_reads(server: BenchServer, *, records: int, passes: int, repetitions: int) -> Section:
    """What the leader computes for a record that is read from it, or from a follower."""
    section = Section(
        "Replication: reading from followers",
        f"A leader and two hot standbys as above, 'ANY 1 (follower1, follower2)'. {records:,} records in "
        f'{PARTITIONS} partitions, appended with acks="all", are read {2 * passes} times from the start by '
        '`Consumer.poll` (max_poll_records=10,000), by two consumers in turn: with read_from="leader", and '
        'with read_from="follower", each from a follower of its own. Processor time of all processes of a '
        f"server, from /proc; {repetitions} rounds that alternate.",
    )
    leader_us: list[float] = []
    spared_us: list[float] = []
    follower_us: list[float] = []
    idle_us: list[float] = []
    with replicated(2) as group:
        group.wait_for("ANY 1 (follower1, follower2)")
        fill(group.leader.dsn(), "t", records, acks="all")
        group.settle()
        with psycopg.connect(group.leader.superuser_dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")  # no sample pays for hint bits
        group.checkpoint()
        group.settle()
        for repetition in range(repetitions + 1):
            served = 2 * passes * records
            own, _, seconds = _read(group, passes, records, follower=False)
            spared, others, longer = _read(group, passes, records, follower=True)
            at_rest = _resting(group, longer)
            if repetition:  # the first round is to warm up
                leader_us.append(1e6 * own / served)
                spared_us.append(1e6 * spared / served)
                follower_us.append(1e6 * others / served)
                idle_us.append(1e6 * at_rest / served)
                _console.print(
                    f"  [dim]{repetition}/{repetitions}[/dim] leader {leader_us[-1]:.3f} µs a record; "
                    f"{spared_us[-1]:.3f} when followers serve, which take {follower_us[-1]:.3f} "
                    f"({seconds:.1f} s, {longer:.1f} s)"
                )
    section.add("leader's processor, read from the leader", "µs/record", leader_us)
    section.add("leader's processor, read from two followers", "µs/record", spared_us)
    section.add("… of which it takes without any reader", "µs/record", idle_us)
    section.add("followers' processors, read from two followers", "µs/record", follower_us)
    section.at_least(
        "leader's processor a record: read from the leader ÷ from two followers",
        1.5,
        median(a / max(b, 1e-3) for a, b in zip(leader_us, spared_us, strict=True)),
        "x",
    )
    section.at_least(
        "records that two followers serve ÷ that the leader serves, in the same processor time each",
        1.5,
        median(2 * a / b for a, b in zip(leader_us, follower_us, strict=True)),
        "x",
    )
    return section


def _read(group: Replicated, passes: int, records: int, *, follower: bool) -> tuple[float, float, float]:
    """Processor seconds of the leader and of both followers, and seconds, while everything is read."""
    partitions = [TopicPartition("t", number) for number in range(PARTITIONS)]
    before: list[float] = []
    spent = [0.0, 0.0]
    took = 0.0
    for member in group.followers:
        with Consumer(
            dsn=_hosts(group.leader, member),
            read_from="follower" if follower else "leader",
            auto_offset_reset="latest",
            max_poll_records=10_000,
        ) as consumer:
            consumer.assign(partitions)
            deadline = time.monotonic() + 30
            while follower and not consumer.metrics().get("reading-from-follower"):
                consumer.poll(timeout_ms=10)
                if time.monotonic() > deadline:
                    raise SystemExit("the follower is not read from")
            before = [group.leader.processor_s(), sum(each.processor_s() for each in group.followers)]
            began = time.perf_counter()
            for _ in range(passes):
                consumer.seek_to_beginning()
                left = records
                while left:
                    left -= sum(map(len, consumer.poll(timeout_ms=1000).values()))
            took += time.perf_counter() - began
            if follower and not consumer.metrics().get("reading-from-follower"):
                raise SystemExit("the leader was read from, not the follower")
            spent[0] += group.leader.processor_s() - before[0]
            spent[1] += sum(each.processor_s() for each in group.followers) - before[1]
    return spent[0], spent[1], took


def _resting(group: Replicated, seconds: float) -> float:
    """Processor seconds of the leader in ``seconds`` in which nobody reads."""
    before = group.leader.processor_s()
    time.sleep(seconds)
    return group.leader.processor_s() - before


def _hosts(*members: Member) -> str:
    """The DSN of several servers."""
    first = members[0]
    places = ",".join(f"127.0.0.1:{member.port}" for member in members)
    return f"postgresql://logstore:{first.password}@{places}/logstore"
