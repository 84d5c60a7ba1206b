"""Many producers and readers of one partition: contiguous, in order, nothing skipped, nothing twice."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import logstore._async.waiting
import logstore._sync.waiting
from logstore._core.call import Call
from logstore._core.subscription import Subscription
from logstore._sync.producer import Producer
from logstore.records import ConsumerRecord, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.reading import ENOUGH_MS, read

TP = TopicPartition("t", 0)
WRITERS, BATCHES = 5, 30


def waiting_for_a_lock(watcher: Appender) -> int:
    """How many sessions of the database wait for a lock."""
    call = Call(
        "SELECT count(*) FROM pg_catalog.pg_stat_activity "
        "WHERE datname = pg_catalog.current_database() AND wait_event_type = 'Lock'",
        (),
        lambda rows: int(rows[0][0]),
        "pg_stat_activity",
    )
    return watcher.connection.run(call)


def write(database: str, name: int) -> None:
    """Batches of 1, 2, 3, … records, each of which says who wrote it and its number."""
    with Appender(database) as appender:
        number = 0
        for size in range(BATCHES):
            records: list[bytes | None] = [b"%d %d" % (name, number + n) for n in range(1 + size % 7)]
            appender.append("t", records)
            number += len(records)


def produce(database: str, name: int) -> None:
    with Producer(database, linger_ms=0) as producer:
        for number in range(4 * BATCHES):
            producer.send("t", b"%d %d" % (name, number), partition=0)


def commit_slowly(database: str, name: int) -> None:
    """Holds an append open until others wait behind it, three times over."""
    with (
        Appender(database) as slow,
        Appender(database) as behind,
        Appender(database) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        for number in range(3):
            with slow.transaction():
                offset = slow.append("t", [b"%d %d" % (name, number)], wake=False)
                # The other writers may have come to their ends.
                later = pool.submit(behind.append, "t", [b"%d %d" % (name + 1, number)])
                eventually(lambda: waiting_for_a_lock(watcher) > 0, "somebody waits")
                (marks,) = watcher.connection.run(watcher.calls.high_watermarks([slow.topic_id("t")], [0]))
                assert marks.high_watermark == offset, "nobody sees what is not committed, nor beyond it"
            later.result()


def check(records: list[ConsumerRecord], begin: int, end: int) -> None:
    assert [record.offset for record in records] == list(range(begin, end))
    seen: dict[bytes, list[int]] = defaultdict(list)
    for record in records:
        name, number = record.value.split()
        seen[name].append(int(number))
    for numbers in seen.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_every_reader_sees_one_log(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", segment_bytes="20000")
    appender.append("t", [b"first 0"])
    everything = threading.Event()
    total: list[int] = []

    def follow(make: Callable[[], Any]) -> tuple[int, list[ConsumerRecord]]:
        """Where a reader began, and what it read until it had read everything."""
        consumer = make()
        begin = consumer.position(TP)
        got: list[ConsumerRecord] = []
        while not (everything.is_set() and consumer.position(TP) >= total[0]):
            for records in consumer.poll(timeout_ms=20).values():
                got += records
        return begin, got

    def in_the_middle() -> Any:
        early = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
        middle = read(early, 40)[-1].offset // 2
        consumer = colour.consumer(dsn=database)
        consumer.assign([TP])
        consumer.seek(TP, middle)
        return consumer

    makers: list[Callable[[], Any]] = [
        lambda: colour.consumer("t", dsn=database, auto_offset_reset="earliest"),
        lambda: colour.consumer("t", dsn=database, auto_offset_reset="earliest", wakeup="poll"),
        lambda: colour.consumer("t", dsn=database),
        in_the_middle,
    ]
    with ThreadPoolExecutor(16) as pool:
        readers = [pool.submit(follow, make) for make in makers]
        writers = [pool.submit(write, database, name) for name in range(WRITERS)]
        writers.append(pool.submit(commit_slowly, database, WRITERS))
        writers += [pool.submit(produce, database, WRITERS + 2 + name) for name in range(2)]
        for writer in writers:
            writer.result()
        (marks,) = appender.connection.run(appender.calls.high_watermarks([appender.topic_id("t")], [0]))
        total.append(marks.high_watermark or 0)
        everything.set()
        results = [reader.result() for reader in readers]
    per_writer = sum(1 + size % 7 for size in range(BATCHES))
    assert total == [1 + WRITERS * per_writer + 2 * 3 + 2 * 4 * BATCHES]
    for begin, got in results:
        check(got, begin, total[0])
    assert [begin for begin, _ in results[:2]] == [0, 0]


def test_reader_does_not_pass_an_open_append(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(3))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    with Appender(database) as behind, ThreadPoolExecutor(1) as pool:
        with appender.transaction():
            appender.append("t", [b"held"], wake=False)
            later = pool.submit(behind.append, "t", [b"later"])
            with Appender(database) as watcher:
                eventually(lambda: waiting_for_a_lock(watcher) > 0, "it waits")
            assert [r.value for r in read(consumer, 3)] == values(3)
            assert consumer.poll(timeout_ms=50) == {}
            assert consumer.end_offsets([TP]) == {TP: 3}
        assert [r.value for r in read(consumer, 2)] == [b"held", b"later"]
        assert later.result() == 4


def test_rolled_back_append_was_never_there(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    try:
        with appender.transaction():
            appender.append("t", [b"never"], wake=False)
            assert consumer.poll(timeout_ms=50) == {}
            raise InterruptedError
    except InterruptedError:
        appender.append("t", [b"first"])
    assert [(r.offset, r.value) for r in read(consumer, 1)] == [(0, b"first")]


def test_hot_partition_does_not_starve_the_others(colour: Colour, database: str, appender: Appender) -> None:
    partitions = 30
    appender.create("t", partitions)
    for _ in range(40):
        appender.append("t", values(1000), 0)
    for partition in range(1, partitions):
        appender.append("t", values(10), partition)
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=100)
    cold, hot = 0, 0
    while cold < 10 * (partitions - 1):
        for tp, records in consumer.poll(timeout_ms=ENOUGH_MS).items():
            cold, hot = (cold, hot + len(records)) if tp.partition == 0 else (cold + len(records), hot)
    assert hot < 20_000, "all of the others came before half of the hot one"


def test_commit_between_the_look_and_the_announcement_is_not_slept_through(
    colour: Colour, database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer saw nobody waiting and woke nobody: the reader has to look once more after announcing."""
    appender.create("t")
    events: list[str] = []
    fetched = Subscription.fetched

    def look(self: Subscription, *arguments: Any, **options: Any) -> bool:
        found = fetched(self, *arguments, **options)
        events.append("found" if found else "nothing")
        return found

    monkeypatch.setattr(Subscription, "fetched", look)
    for module in (logstore._async.waiting, logstore._sync.waiting):
        waiting: Any = module.Waiting

        def announced(self: Any, topic_ids: Any, original: Any = waiting.announced) -> Any:
            if "announced" not in events:
                appender.append("t", [b"unseen"], wake=False)
                events.append("announced")
            return original(self, topic_ids)

        def sleep(self: Any, seconds: float, original: Any = waiting.sleep) -> Any:
            events.append("sleep")
            return original(self, seconds)

        monkeypatch.setattr(waiting, "announced", announced)
        monkeypatch.setattr(waiting, "sleep", sleep)
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    ((record,),) = consumer.poll(timeout_ms=ENOUGH_MS).values()
    assert record.value == b"unseen"
    assert events[: events.index("found")] == ["nothing", "announced"]
