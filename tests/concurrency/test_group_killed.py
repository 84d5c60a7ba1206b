"""Processes of a group are killed while they read: nothing is lost, nothing is owned twice."""

from __future__ import annotations

import json
import random
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from logstore import Producer
from tests.support.appender import Appender
from tests.support.programs import eventually, kill, program

pytestmark = pytest.mark.long

PARTITIONS = 8
SESSION_MS = 1500
HEARTBEAT_MS = 300

# Writes a line before a record counts as done, so that the file knows of everything that was processed.
MEMBER = """
import json, os, sys, time
from logstore import Consumer, ConsumerRebalanceListener

dsn, path = sys.argv[1:3]
session_ms, heartbeat_ms = map(int, sys.argv[3:5])
out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(what, **said):
    said |= {"at": time.monotonic(), "pid": os.getpid(), "what": what}
    os.write(out, json.dumps(said).encode() + b"\\n")

class Claims(ConsumerRebalanceListener):
    def on_partitions_assigned(self, assigned):
        held = consumer._group._membership.held
        for tp in assigned:
            note("assigned", partition=tp.partition, epoch=held[tp].epoch)

    def on_partitions_revoked(self, revoked):
        for tp in revoked:
            note("gone", partition=tp.partition)

consumer = Consumer(
    dsn=dsn, group_id="g", auto_offset_reset="earliest", max_poll_records=20,
    session_timeout_ms=session_ms, heartbeat_interval_ms=heartbeat_ms, auto_commit_interval_ms=50,
)
consumer.subscribe(["t"], listener=Claims())
print("up", flush=True)
while True:
    for tp, records in consumer.poll(timeout_ms=50).items():
        epoch = consumer._group._membership.held.get(tp)
        for record in records:
            note("read", partition=tp.partition, offset=record.offset, epoch=epoch and epoch.epoch)
"""

# Every change of an owner, as it is committed.
TRIGGER = """
CREATE TABLE public.claim_log (
    id bigserial, partition int, former bigint, owner bigint, epoch bigint
);
CREATE FUNCTION public.note_claim() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.claim_log (partition, former, owner, epoch)
    VALUES (new.partition, old.owner, new.owner, new.claim_epoch);
    RETURN NULL;
END $$;
CREATE TRIGGER note_claim AFTER UPDATE ON logstore.group_claim FOR EACH ROW
    WHEN (old.owner IS DISTINCT FROM new.owner OR old.claim_epoch <> new.claim_epoch)
    EXECUTE FUNCTION public.note_claim();
"""


@pytest.fixture
def log(database: str) -> Iterator[Appender]:
    with Appender(database) as made, psycopg.connect(database) as raw:
        made.create("t", PARTITIONS)
        raw.execute(TRIGGER)
        raw.commit()
        yield made


class Crew:
    """Member processes and what they wrote."""

    def __init__(self, dsn: str, path: Path) -> None:
        self.dsn = dsn
        self.path = path
        self.running: list[subprocess.Popen[str]] = []
        self._stack = ExitStack()

    def hire(self) -> None:
        process = self._stack.enter_context(program(MEMBER, self.dsn, self.path, SESSION_MS, HEARTBEAT_MS))
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        self.running.append(process)

    def kill_one(self, chance: random.Random) -> int:
        process = self.running.pop(chance.randrange(len(self.running)))
        kill(process.pid)
        process.wait()
        return process.pid

    def notes(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole = self.path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def offsets(self) -> dict[int, set[int]]:
        seen: dict[int, set[int]] = defaultdict(set)
        for note in self.notes():
            if note["what"] == "read":
                seen[note["partition"]].add(note["offset"])
        return seen

    def count(self) -> int:
        return sum(map(len, self.offsets().values()))

    def has_read_more_than(self, count: int) -> bool:
        return self.count() > count

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def crew(database: str, tmp_path: Path) -> Iterator[Crew]:
    made = Crew(database, tmp_path / "notes.jsonl")
    try:
        yield made
    finally:
        made.close()


def owners(dsn: str) -> list[int | None]:
    with psycopg.connect(dsn) as raw:
        rows = raw.execute("SELECT owner FROM logstore.group_claim ORDER BY partition").fetchall()
    return [owner for (owner,) in rows]


def check_claims(dsn: str) -> None:
    """A claim goes from one owner to nobody and from nobody to the next, and its epoch only rises."""
    with psycopg.connect(dsn) as raw:
        rows = raw.execute(
            "SELECT partition, former, owner, epoch FROM public.claim_log ORDER BY id"
        ).fetchall()
    history: dict[int, list[tuple[int | None, int | None, int]]] = defaultdict(list)
    for partition, former, owner, epoch in rows:
        assert former is None or owner is None, (
            f"partition {partition} went straight from {former} to {owner}"
        )
        history[partition].append((former, owner, epoch))
    assert len(history) == PARTITIONS
    for changes in history.values():
        for (_, owner, epoch), (former, later_owner, later_epoch) in pairwise(changes):
            assert former == owner
            assert later_epoch == (epoch + 1 if later_owner is not None else epoch)


def check_reads(notes: list[dict[str, Any]]) -> None:
    """Whoever reads under a later epoch begins after everybody has stopped reading under earlier ones."""
    last: dict[tuple[int, int], float] = {}
    first: dict[tuple[int, int], float] = {}
    readers: dict[tuple[int, int], set[int]] = defaultdict(set)
    for note in notes:
        if note["what"] == "read":
            claim = note["partition"], note["epoch"]
            first.setdefault(claim, note["at"])
            last[claim] = note["at"]
            readers[claim].add(note["pid"])
    assert all(len(pids) == 1 for pids in readers.values()), "one claim, two readers"
    for partition, epoch in first:
        for other, earlier in last:
            if other == partition and earlier < epoch:
                assert last[partition, earlier] < first[partition, epoch]


@pytest.mark.timeout(240)
def test_members_are_killed_at_random(database: str, log: Appender, crew: Crew) -> None:
    chance = random.Random(7)
    for _ in range(4):
        crew.hire()
    sent = 0
    with Producer(database, acks=1) as producer:
        for _ in range(5):
            for number in range(sent, sent + 1600):
                producer.send("t", b"%d" % number, partition=number % PARTITIONS)
            sent += 1600
            producer.flush()
            eventually(partial(crew.has_read_more_than, crew.count()), "records are being read")
            crew.kill_one(chance)
            crew.hire()
    expected = {number: set(range(sent // PARTITIONS)) for number in range(PARTITIONS)}
    eventually(lambda: crew.offsets() == expected, "everything has been read", 60)
    check_claims(database)
    check_reads(crew.notes())


def test_partitions_of_a_killed_member_are_taken_over(database: str, log: Appender, crew: Crew) -> None:
    """How soon is measured by ``python -m benchmarks takeover``; here, that it happens by itself, once."""
    crew.hire()
    crew.hire()

    def shared() -> bool:
        found = owners(database)
        return None not in found and len(found) == PARTITIONS and len(set(found)) == 2

    eventually(shared, "two members")
    before = owners(database)
    crew.kill_one(random.Random(1))
    eventually(lambda: len(set(owners(database))) == 1 and None not in owners(database), "one has everything")
    after = owners(database)
    assert sum(former == owner for former, owner in zip(before, after, strict=True)) == PARTITIONS // 2
    check_claims(database)
