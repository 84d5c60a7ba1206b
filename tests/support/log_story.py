"""A log with work in it for every job that decides which records stay, and what has to be left of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

import logstore
from tests.support import audit, jobs
from tests.support.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from tests.support.kafka_rules import Record
from tests.support.log_view import fetched, places, visible
from tests.support.servers import Server
from tests.support.sqllog import Session, append, rows, value

__all__ = ["JOBS", "TOPICS", "Story", "compare", "connect", "goes_on", "told"]

KEYS: Final = 7
TOPICS: Final = ("aged", "sized", "deleted", "keyed", "both", "quiet", "far")
"""Those that are read afterwards."""
JOBS: Final = (*jobs.CLEANING[:-1], "tier", "reclaim")


@dataclass
class Story:
    """A database that others are made from, and what its topics hold in the end."""

    server: Server
    template: str
    files: Path
    """A directory for what goes to files."""
    wanted: dict[str, dict[int, list[Record]]] = field(default_factory=dict)

    @contextmanager
    def copy(self) -> Iterator[str]:
        """The DSN of a log in which no job has run yet."""
        dsn = self.server.create(migrated=False, like=self.template)
        try:
            with closing(connect(dsn)) as session:
                configs = {"remote.storage.url": f"file://{self.place(dsn)}", "remote.storage.enable": True}
                session.execute("SELECT alter_topic('far', %s)", [json.dumps(configs)])
            yield dsn
        finally:
            self.server.drop(dsn)
            shutil.rmtree(self.place(dsn), ignore_errors=True)

    def place(self, dsn: str) -> Path:
        """Where files of one log are."""
        return self.files / urlsplit(dsn).path[1:]

    def faults(self, dsn: str) -> list[str]:
        """What is not as it has to be once all jobs are done."""
        found = audit.faults(dsn)
        with closing(connect(dsn)) as session:
            known = {
                Path(url.removeprefix("file://"))
                for (url,) in rows(session, "SELECT url FROM remote_segments WHERE state = 'copied'")
            }
            there_are = {path for path in self.place(dsn).rglob("*") if path.is_file()}
            found += [f"{path} is left over" for path in there_are - known]
            found += [f"{path} is not there" for path in known - there_are]
            for topic, wanted in self.wanted.items():
                there = _records(dsn, session, topic)
                for partition, records in wanted.items():
                    found += compare(f"{topic}-{partition}", records, there.get(partition, []))
        return found


def compare(place: str, wanted: Sequence[Record], there: Sequence[Record]) -> list[str]:
    """In words, how records differ from those that should be there."""
    if list(wanted) == list(there):
        return []
    expected, found = {each.offset for each in wanted}, [each.offset for each in there]
    return [
        f"{place}: lost {sorted(expected - set(found))}, left {sorted(set(found) - expected)}, "
        f"twice {sorted({each for each in found if found.count(each) > 1})}, "
        f"in order {found == sorted(found)}"
    ]


def connect(dsn: str, **options: str) -> Session:
    """A session that commits each statement and finds the log without its schema's name."""
    settings = " ".join(f"-c {name}={text}" for name, text in {"search_path": "logstore", **options}.items())
    return psycopg.connect(dsn, autocommit=True, options=settings)


@contextmanager
def told(server: Server, *, size: int = 1) -> Iterator[Story]:
    """Tell the story, let the jobs finish it once undisturbed, and check that by the rules."""
    dsn = server.create()
    name = urlsplit(dsn).path[1:]
    with closing(connect(dsn)) as session, Clock(dsn) as clock:
        _tell(session, clock, size)
    with tempfile.TemporaryDirectory(prefix="logstore-files-") as files:
        story = Story(server, name, Path(files))
        try:
            with story.copy() as copy:
                with closing(connect(copy)) as session:
                    before = {topic: visible(session, topic) for topic in TOPICS}
                jobs.settle(copy, JOBS)
                with closing(connect(copy)) as session:
                    story.wanted = {topic: _every_partition(copy, session, topic) for topic in TOPICS}
                    start = value(session, "SELECT local_start FROM partitions WHERE topic = 'far'")
                    assert start > 0, "files have taken over"
                found = story.faults(copy)
                assert not found, found
                _check(before, story.wanted)
            yield story
        finally:
            server.drop(dsn)


def _records(dsn: str, session: Session, topic: str) -> dict[int, list[Record]]:
    """What is in the log, in PostgreSQL and in files."""
    if topic != "far":
        return visible(session, topic)
    found: dict[int, list[Record]] = {}
    for each in logstore.read(topic, dsn=dsn):
        found.setdefault(each.partition, []).append(Record(each.offset, each.timestamp, each.key, each.value))
    return found


def _every_partition(dsn: str, session: Session, topic: str) -> dict[int, list[Record]]:
    there = _records(dsn, session, topic)
    count = value(session, "SELECT partitions FROM topic WHERE name = %s", topic)
    return {partition: there.get(partition, []) for partition in range(count)}


def _tell(session: Session, clock: Clock, size: int) -> None:
    now = clock.now_ms

    def create(name: str, partitions: int, **configs: Any) -> int:
        named = {key.replace("_", "."): str(text) for key, text in configs.items()}
        named["file.delete.delay.ms"] = "0"
        made: int = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, json.dumps(named))
        return made

    def fill(topic: int, partition: int, count: int, *, age: int = 0, keyed: bool = False) -> None:
        for number in range(count * size):
            keys = [b"k%d" % ((number * 3 + place) % KEYS) for place in range(4)] if keyed else None
            values = [
                None if keyed and (number + place) % 5 == 0 else b"%d:%d:" % (number, place) + b"v" * 60
                for place in range(4)
            ]
            append(session, topic, values, partition, keys=keys, at=now - age)

    aged = create("aged", 3, segment_bytes=2000, segment_ms=HOUR_MS, retention_ms=2 * HOUR_MS)
    # The cold partition's one live batch is among the hot one's expired ones.
    fill(aged, 0, 3, age=DAY_MS)
    append(session, aged, [b"cold"], 1, at=now)
    fill(aged, 0, 15, age=DAY_MS)
    fill(aged, 2, 2, age=DAY_MS)
    fill(aged, 0, 6)
    sized = create("sized", 1, segment_bytes=1500, retention_bytes=4000)
    fill(sized, 0, 25)
    deleted = create("deleted", 2, segment_bytes=1500)
    fill(deleted, 0, 12)
    fill(deleted, 1, 12)
    session.execute("SELECT delete_records('deleted', 0, -1), delete_records('deleted', 1, 33)")
    keyed = create(
        "keyed", 2, segment_bytes=1200, segment_ms=HOUR_MS, cleanup_policy="compact",
        min_cleanable_dirty_ratio=0, delete_retention_ms=0,
    )  # fmt: skip
    fill(keyed, 0, 14, keyed=True)
    fill(keyed, 1, 6, keyed=True)
    # One key is to be forgotten.
    session.execute("SELECT erase_key('keyed', 'k3')")
    both = create(
        "both", 1, segment_bytes=1200, segment_ms=HOUR_MS, cleanup_policy="compact,delete",
        min_cleanable_dirty_ratio=0, retention_ms=2 * HOUR_MS,
    )  # fmt: skip
    fill(both, 0, 8, age=DAY_MS, keyed=True)
    fill(both, 0, 8, keyed=True)
    create("quiet", 2)
    fill(value(session, "SELECT topic_id FROM topic WHERE name = 'quiet'"), 0, 3)
    # Most of what is left of it is in files only.
    far = create(
        "far", 1, segment_bytes=1200, segment_ms=HOUR_MS, local_retention_ms=0, retention_ms=2 * HOUR_MS
    )
    fill(far, 0, 8, age=DAY_MS)
    fill(far, 0, 12)
    gone = create("gone", 1, segment_bytes=1500)
    fill(gone, 0, 5)
    session.execute("SELECT delete_topic('gone')")
    clock.advance(HOUR_MS + MINUTE_MS)


def _check(before: dict[str, dict[int, list[Record]]], after: dict[str, dict[int, list[Record]]]) -> None:
    """What must be there is, and there was work to do."""
    for topic in TOPICS:
        for partition, records in after[topic].items():
            assert set(records) <= set(before[topic].get(partition, [])), f"{topic} has new records"
            assert records == sorted(records, key=lambda each: each.offset)
    assert 48 <= len(after["far"][0]) < len(before["far"][0])
    assert after["far"][0] == before["far"][0][-len(after["far"][0]) :]
    assert before["quiet"] == {key: each for key, each in after["quiet"].items() if each}
    assert [record.value for record in after["aged"][1]] == [b"cold"]
    newest = max(record.timestamp for record in before["aged"][0])
    live = [record for record in before["aged"][0] if record.timestamp == newest]
    assert live == [record for record in after["aged"][0] if record.timestamp == newest]
    assert len(after["aged"][0]) < len(before["aged"][0])
    assert after["aged"][2] == []
    assert 0 < len(after["sized"][0]) < len(before["sized"][0])
    assert after["sized"][0] == before["sized"][0][-len(after["sized"][0]) :]
    assert {key: each for key, each in after["deleted"].items() if each} == before["deleted"]
    for topic in ("keyed", "both"):
        for partition, records in before[topic].items():
            newest_of = {record.key: record for record in records}
            oldest = after[topic][partition][0].offset
            for record in newest_of.values():
                if topic == "keyed" and record.key == b"k3":
                    assert all(each.key != b"k3" for each in after[topic][partition])
                elif record.value is not None and (topic == "keyed" or record.offset >= oldest):
                    assert record in after[topic][partition], f"{topic} lost the last value of {record.key!r}"
            assert len(after[topic][partition]) < len(records)


def goes_on(dsn: str, *, lock_timeout_ms: int) -> list[str]:
    """In words, who cannot append to or read from what partition at this moment.  Leaves nothing behind."""
    found: list[str] = []
    with closing(connect(dsn, lock_timeout=str(lock_timeout_ms))) as session:
        topics = rows(session, "SELECT topic_id, name FROM topic ORDER BY 1")
        for topic_id, name in topics:
            try:
                for partition, place in places(session, topic_id).items():
                    # In one of them so much that it would go on to another segment.
                    size = 3000 if (name, partition) == ("aged", 0) else 3
                    with session.transaction(force_rollback=True):
                        append(session, topic_id, [b"x" * size], partition, keys=[b"k"], acks=None)
                    fetched(session, topic_id, partition, place.log_start, place.end)
                rows(session, "SELECT count(*) FROM records WHERE topic = %s", name)
            except psycopg.Error as error:
                found.append(f"{name}: {error}")
    return found
