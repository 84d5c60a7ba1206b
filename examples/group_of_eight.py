"""Eight processes read the access log together while members are killed: who owned what, when?

    python examples/group_of_eight.py [--seconds 20] [--kills 4] [--dsn DSN]

A producer writes the 10,000 requests of a web server's log into a topic with 16 partitions.  Eight
processes, one consumer group, read them.  Now and then one is killed with SIGKILL and another one is
started.  In the end a table shows who owned each partition when, and the group's history is checked: no
partition was ever owned by two members at once, and every request was read at least once.

Without ``--dsn`` (and ``LOGSTORE_DSN``) an embedded PostgreSQL is started for it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import string
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

from logstore import Admin, Consumer, Producer

TOPIC = "access-of-eight"
GROUP = "eight"
PARTITIONS = 16
MEMBERS = 8
SESSION_MS = 2000
HEARTBEAT_MS = 300


class Sample(NamedTuple):
    """The group at one moment, as the server knows it."""

    at: float
    owners: dict[int, tuple[str, int]]
    """Partition -> (member, claim epoch)."""


def member(name: str, dsn: str | None, news: Queue[Any]) -> None:
    """One process: reads until it is killed."""
    with Consumer(
        TOPIC,
        dsn=dsn,
        group_id=GROUP,
        client_id=name,
        auto_offset_reset="earliest",
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        auto_commit_interval_ms=200,
        max_poll_records=50,
    ) as consumer:
        while True:
            for tp, records in consumer.poll(timeout_ms=200).items():
                news.put((tp.partition, [record.offset for record in records]))


def requests() -> list[bytes]:
    """The lines of a real web server's log, which come with logstore."""
    return (resources.files("logstore.cli") / "data" / "apache_access.log").read_bytes().splitlines()


def produced(producer: Producer, seconds: float) -> Iterator[None]:
    """Sends everything, evenly over ``seconds``; yields after each tenth of a second."""
    lines = requests()
    ticks = max(1, round(seconds * 10))
    for tick in range(ticks):
        for line in lines[len(lines) * tick // ticks : len(lines) * (tick + 1) // ticks]:
            producer.send(TOPIC, line, key=line.split(b" ", 1)[0])
        producer.flush()
        yield


class Crew:
    """The member processes, named A, B, C, ... in the order in which they start."""

    def __init__(self, dsn: str | None) -> None:
        self.dsn = dsn
        self._context = multiprocessing.get_context("spawn")
        self._queues: list[Queue[Any]] = []
        self._names = iter(string.ascii_uppercase + string.ascii_lowercase)
        self.running: dict[str, Any] = {}
        self.read: dict[int, set[int]] = {number: set() for number in range(PARTITIONS)}
        self.read_in_all = 0

    @property
    def distinct(self) -> int:
        return sum(map(len, self.read.values()))

    def start(self) -> str:
        name = next(self._names)
        # A queue each: a process that is killed while it writes would spoil a common one for all.
        queue: Queue[Any] = self._context.Queue()
        process = self._context.Process(target=member, args=(name, self.dsn, queue), daemon=True)
        process.start()
        self._queues.append(queue)
        self.running[name] = process
        return name

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.join()

    def listen(self) -> None:
        """Take in what the members have said."""
        for queue in self._queues:
            while not queue.empty():
                partition, offsets = queue.get()
                self.read[partition].update(offsets)
                self.read_in_all += len(offsets)

    def stop(self) -> None:
        for name in list(self.running):
            self.kill(name)


def sample(admin: Admin, at: float) -> Sample:
    owners: dict[int, tuple[str, int]] = {}
    for each in admin.describe_group(GROUP).members:
        for tp, epoch in each.assignment.items():
            owners[tp.partition] = (each.client_id, epoch)
    return Sample(at, owners)


def draw(
    samples: Sequence[Sample], deaths: Sequence[tuple[float, str]], births: Sequence[tuple[float, str]]
) -> str:
    """Partitions down, time across, a letter for the owner, a dot for nobody."""
    width = min(100, len(samples))
    columns = [samples[index * len(samples) // width] for index in range(width)]
    lines = []
    for partition in range(PARTITIONS):
        cells = (each.owners.get(partition, ("·", 0))[0] for each in columns)
        lines.append(f"{partition:>9} {''.join(cells)}")
    for title, events in (("killed", deaths), ("started", births)):
        marks = [" "] * width
        for at, name in events:
            place = sum(each.at < at for each in columns)
            marks[min(place, width - 1)] = name
        lines.append(f"{title:>9} {''.join(marks).rstrip()}")
    seconds = samples[-1].at - samples[0].at
    lines.append(f"{'':>9} 0 s{'':{max(0, width - 8)}}{seconds:>4.0f} s")
    return "\n".join(["partition owner", *lines])


def owned_twice(samples: Sequence[Sample]) -> list[str]:
    """Where an epoch went back, or one claim belonged to two members: there is none."""
    found = []
    for partition in range(PARTITIONS):
        claims = [each.owners[partition] for each in samples if partition in each.owners]
        for (owner, epoch), (later, later_epoch) in pairwise(claims):
            if later_epoch < epoch or (later_epoch == epoch and later != owner):
                found.append(
                    f"partition {partition}: {owner} under {epoch}, then {later} under {later_epoch}"
                )
    return found


def everybody_is_there(admin: Admin) -> bool:
    if all(each.group != GROUP for each in admin.list_groups()):
        return False
    owners = sample(admin, 0.0).owners
    return len(owners) == PARTITIONS and len({name for name, _ in owners.values()}) == MEMBERS


def run(dsn: str | None, seconds: float, kills: int) -> int:
    chance = random.Random(8)
    with Admin(dsn) as admin:
        if TOPIC in admin.list_topics():
            admin.delete_topic(TOPIC)
        admin.create_topic(TOPIC, partitions=PARTITIONS)
        crew = Crew(admin.dsn)
        deaths: list[tuple[float, str]] = []
        births: list[tuple[float, str]] = []
        samples: list[Sample] = []
        try:
            for _ in range(MEMBERS):
                crew.start()
            while not everybody_is_there(admin):
                time.sleep(0.1)
            begin = time.monotonic()
            with Producer(admin.dsn) as producer:
                for _ in produced(producer, seconds):
                    now = time.monotonic() - begin
                    if len(deaths) < kills and now > (len(deaths) + 1) * seconds / (kills + 1):
                        victim = chance.choice(sorted(crew.running))
                        crew.kill(victim)
                        deaths.append((now, victim))
                        births.append((now, crew.start()))
                    samples.append(sample(admin, now))
                    crew.listen()
                    time.sleep(max(0.0, begin + len(samples) * 0.1 - time.monotonic()))
            sent = len(requests())
            patience = time.monotonic() + 60
            while crew.distinct < sent and time.monotonic() < patience:
                samples.append(sample(admin, time.monotonic() - begin))
                crew.listen()
                time.sleep(0.1)
        finally:
            crew.stop()
    twice = owned_twice(samples)
    print(draw(samples, deaths, births))
    print()
    again = crew.read_in_all - crew.distinct
    print(f"{sent:,} requests sent, {crew.distinct:,} read, {again:,} of them again after a kill")
    print(f"{len(deaths)} members killed; owned twice: {'; '.join(twice) or 'never'}")
    return 0 if crew.distinct == sent and not twice else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dsn", help="the PostgreSQL to use (default: LOGSTORE_DSN, else an embedded one)")
    parser.add_argument("--seconds", type=float, default=20, help="how long to produce (default: 20)")
    parser.add_argument(
        "--kills", type=int, default=4, help="how many members to kill meanwhile (default: 4)"
    )
    options = parser.parse_args()
    return run(options.dsn, options.seconds, options.kills)


if __name__ == "__main__":
    raise SystemExit(main())
