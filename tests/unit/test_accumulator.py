"""The accumulator: nothing is lost, repeated or overtaken, and every limit is kept."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logstore._core.accumulator import Accumulator
from logstore._core.backoff import Backoff
from logstore._core.batch import BATCH_OVERHEAD, Batch, Columns
from logstore._core.bulk import pieces
from logstore._core.calls import AppendResult, TopicMetadata
from logstore._core.partitioner import crc32_partition
from logstore._core.queues import Limits
from logstore._core.row_batch import RowBatch
from logstore.errors import (
    DeliveryTimeoutError,
    LogstoreError,
    RecordTooLargeError,
    RetriableError,
    UnknownTopicOrPartitionError,
)
from tests.support.lengths import examples

MAX_BATCH = 2000


class Place:
    batch: RowBatch
    place: int


def limits(**changes: float) -> Limits:
    given = {
        "batch_size": 600,
        "buffer_memory": 20_000,
        "max_request_size": MAX_BATCH,
        "linger_s": 1.0,
        "delivery_timeout_s": 60.0,
        "retries": 5,
        "request_bytes": 5000,
    }
    return Limits(**{**given, **changes})  # type: ignore[arg-type]


def accumulator(**changes: float) -> Accumulator[Place]:
    made: Accumulator[Place] = Accumulator(
        limits(**changes),
        partitioner=crc32_partition,
        choose=lambda number: number - 1,
        backoff=Backoff(1.0, 4.0, lambda: 0.5),
        promise=Place,
        lock=threading.Lock(),
    )
    made.update([described()], 0.0)
    return made


def described(
    name: str = "t", partitions: int = 3, topic_id: int = 1, largest: int = 1_000_000
) -> TopicMetadata:
    return TopicMetadata(name, topic_id, partitions, 0, largest, {})


def contents(batch: Batch) -> list[bytes | None]:
    return list(batch.columns().values)


class Log(RuleBasedStateMachine):
    """A producer and a server, told to do anything in any order."""

    @initialize(linger=st.sampled_from([0.0, 1.0]), retries=st.sampled_from([0, 2, 1000]))
    def begin(self, linger: float, retries: int) -> None:
        self.accumulator = accumulator(linger_s=linger, retries=retries)
        self.now = 0.0
        self.sent: dict[int, list[bytes]] = defaultdict(list)
        self.log: dict[int, list[bytes]] = defaultdict(list)
        self.failed: set[bytes] = set()
        self.places: dict[bytes, Place] = {}
        self.under_way: dict[Batch, list[bytes]] = {}
        self.number = 0

    def record(self, size: int) -> bytes:
        self.number += 1
        return b"%06d" % self.number + b"x" * size

    @rule(partition=st.integers(0, 2), size=st.integers(0, 700), many=st.integers(1, 6))
    def send(self, partition: int, size: int, many: int) -> None:
        for _ in range(many):
            value = self.record(size)
            place = self.accumulator.add("t", partition, None, value, None, 5, 0.0)
            if place is None:
                assert self.accumulator.used + BATCH_OVERHEAD + 24 + len(value) > 20_000
                return
            self.places[value] = place
            self.sent[partition].append(value)

    @rule(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=12), partition=st.integers(0, 2))
    def send_many(self, sizes: Sequence[int], partition: int) -> None:
        values = [self.record(size) for size in sizes]
        columns = Columns([None] * len(values), values, [5] * len(values), None)
        topic = self.accumulator.topics["t"]
        cut = pieces(columns, partition, topic.count, crc32_partition, topic.max_record)
        if self.accumulator.add_pieces(topic, cut) is not None:
            self.sent[partition] += values

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(share=st.integers(1, 2))
    def drain(self, share: int) -> None:
        wait = self.accumulator.wait_s(self.now)
        drained = self.accumulator.drain(self.now, share)
        assert [batch.queue.partition for batch in drained] == sorted({b.queue.partition for b in drained})
        if drained:
            assert wait == 0
        for batch in drained:
            assert not any(other.queue is batch.queue for other in self.under_way), "two at a time"
            assert batch.size <= MAX_BATCH
            (row,) = batch.encode()
            assert row.values is not None
            values = [value for value in row.values.items if value is not None]
            assert BATCH_OVERHEAD + sum(24 + len(value) for value in values) == batch.size
            self.under_way[batch] = values
        if len(drained) > 1:
            assert sum(batch.size for batch in drained) <= self.accumulator.limits.request_bytes

    @precondition(lambda self: self.under_way)
    @rule(choice=st.randoms(use_true_random=False))
    def answer(self, choice: object) -> None:
        batch = sorted(self.under_way, key=lambda each: each.queue.partition)[0]
        values = self.under_way.pop(batch)
        log = self.log[batch.queue.partition]
        self.accumulator.settle(batch, [AppendResult(len(log), -1, 0)])
        log += values
        batch.release()

    @precondition(lambda self: self.under_way)
    @rule(at_once=st.booleans())
    def lose(self, at_once: bool) -> None:
        batch, values = self.under_way.popitem()
        if not self.accumulator.retry(batch, RetriableError("lost"), self.now, at_once=at_once):
            self.note_failure(batch, values)

    @precondition(lambda self: self.under_way)
    @rule()
    def refuse(self) -> None:
        batch, values = self.under_way.popitem()
        self.accumulator.fail(batch, LogstoreError("refused"))
        self.note_failure(batch, values)

    @rule(seconds=st.sampled_from([0.0, 40.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        for batch in self.accumulator.expire(self.now):
            self.note_failure(batch, [value for value in contents(batch) if value is not None])
            assert isinstance(batch.error, DeliveryTimeoutError)

    @rule()
    def flush(self) -> None:
        waiting = self.accumulator.incomplete()
        assert set(self.under_way) <= set(waiting)
        self.accumulator.urgent += 1
        try:
            self.now += 10
            self.drain(1)
        finally:
            self.accumulator.urgent -= 1

    @rule(partitions=st.integers(3, 5), topic_id=st.integers(1, 2))
    def describe_again(self, partitions: int, topic_id: int) -> None:
        partitions = max(partitions, self.accumulator.topics["t"].count)
        assert self.accumulator.update([described("t", partitions, topic_id)], self.now) == []

    def note_failure(self, batch: Batch, values: list[bytes]) -> None:
        assert batch.done and batch.error is not None
        self.failed.update(values)
        batch.release()

    @invariant()
    def the_log_is_in_order(self) -> None:
        for partition, log in getattr(self, "log", {}).items():
            there = set(log)
            assert log == [value for value in self.sent[partition] if value in there]
            assert len(there) == len(log)
            assert self.failed.isdisjoint(log)

    @invariant()
    def the_buffer_is_accounted_for(self) -> None:
        if hasattr(self, "accumulator"):
            waiting = self.accumulator.incomplete()
            assert self.accumulator.used == sum(batch.reserved for batch in waiting) <= 20_000
            done = sum(map(len, self.log.values())) + len(self.failed)
            assert sum(map(len, waiting)) == sum(map(len, self.sent.values())) - done

    def teardown(self) -> None:
        if not hasattr(self, "accumulator"):
            return
        self.accumulator.urgent += 1
        while not self.accumulator.idle:
            self.now += 5
            self.expire(0.0)
            self.drain(1)
            while self.under_way:
                self.answer(None)
        for partition, sent in self.sent.items():
            assert self.log[partition] == [value for value in sent if value not in self.failed]
        for value, place in self.places.items():
            if value in self.failed:
                assert place.batch.error is not None
            else:
                offset = place.batch.metadata(place.place).offset
                assert self.log[place.batch.queue.partition][offset] == value


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=examples(120), stateful_step_count=50, deadline=None)


def test_record_lingers_and_then_goes() -> None:
    made = accumulator(linger_s=1.0)
    made.add("t", 0, None, b"v", None, 5, 0.0)
    assert made.drain(10.0) == []
    assert made.wait_s(10.0) == 1.0
    assert made.wait_s(10.75) == 0.25
    assert len(made.drain(11.0)) == 1


def test_full_batch_does_not_linger() -> None:
    made = accumulator(linger_s=1.0)
    made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    assert made.wait_s(10.0) == 0
    assert len(made.drain(10.0)) == 1


def test_batch_grows_while_the_one_before_is_under_way() -> None:
    made = accumulator(linger_s=0.0)
    made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    (first,) = made.drain(0.0)
    for _ in range(2):
        made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    assert made.drain(0.0) == []
    assert made.wait_s(0.0) is None
    made.settle(first, [AppendResult(0, -1, 0)])
    (second,) = made.drain(0.0)
    assert len(second) == 2


def test_what_may_go_goes_with_what_must() -> None:
    made = accumulator(linger_s=1.0)
    made.add("t", 0, None, b"v", None, 5, 0.0)
    made.add("t", 1, None, b"v" * 600, None, 5, 0.0)
    assert [batch.queue.partition for batch in made.drain(0.0)] == [0, 1]


def test_large_request_leaves_partitions_for_the_next_and_they_come_first_then() -> None:
    made = accumulator(request_bytes=1200)
    for partition in (0, 1, 2):
        for _ in range(6):
            made.add("t", partition, None, b"v" * 600, None, 5, 0.0)
    first = made.drain(0.0)
    assert [batch.queue.partition for batch in first] == [0]
    made.settle(first[0], [AppendResult(0, -1, 0)])
    assert [batch.queue.partition for batch in made.drain(0.0)] == [1]


def test_request_takes_as_many_batches_as_one_statement_may() -> None:
    made = accumulator(request_batches=2)
    for partition in range(3):
        made.add("t", partition, None, b"v" * 600, None, 5, 0.0)
    assert [[batch.queue.partition for batch in made.drain(0.0)] for _ in range(3)] == [[0, 1], [2], []]


def test_retried_batch_waits_longer_each_time_and_then_fails_with_the_error() -> None:
    made = accumulator(retries=2)
    made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    (batch,) = made.drain(0.0)
    error = RetriableError("down")
    assert made.retry(batch, error, 0.0)
    assert made.drain(0.99) == []
    assert made.drain(1.0) == [batch]
    assert made.retry(batch, error, 1.0)
    assert made.wait_s(1.0) == 2.0
    assert made.drain(3.0) == [batch]
    assert not made.retry(batch, error, 3.0)
    assert batch.error is error
    assert made.idle


def test_retry_that_would_come_too_late_is_the_end() -> None:
    made = accumulator(delivery_timeout_s=5.0)
    made.add("t", 0, b"k", b"v" * 600, None, 5, 0.0)
    (batch,) = made.drain(0.0)
    assert not made.retry(batch, RetriableError("the disk is full"), 4.5)
    assert isinstance(batch.error, DeliveryTimeoutError)
    assert "the disk is full" in str(batch.error)
    assert "5000 ms" in str(batch.error)


def test_batch_that_waited_too_long_fails_and_those_behind_it_in_their_time() -> None:
    made = accumulator(delivery_timeout_s=5.0)
    made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    (first,) = made.drain(0.0)
    made.add("t", 0, None, b"v" * 1600, None, 5, 0.0)
    made.wait_s(1.0)
    made.add("t", 0, None, b"v" * 1600, None, 5, 0.0)
    made.settle(first, [AppendResult(0, -1, 0)])
    made.wait_s(3.0)
    assert made.expire(5.9) == []
    assert [batch.created for batch in made.expire(6.0)] == [1.0]
    assert [batch.created for batch in made.expire(8.0)] == [3.0]
    assert made.idle


@pytest.mark.parametrize(
    ("changes", "largest", "named"),
    [
        ({}, 1_000_000, "max_request_size, which is 2000"),
        ({"buffer_memory": 1500}, 1_000_000, "buffer_memory, which is 1500"),
        ({}, 700, "max.message.bytes of topic 't', which is 700"),
    ],
)
def test_record_that_is_too_large_is_refused_with_the_limit_named(
    changes: dict[str, float], largest: int, named: str
) -> None:
    made = accumulator(**changes)
    made.update([described(largest=largest)], 0.0)
    fits = made.topics["t"].max_record - 24
    with pytest.raises(RecordTooLargeError, match=named):
        made.add("t", 0, None, b"v" * (fits + 1), None, 5, 0.0)
    with pytest.raises(RecordTooLargeError, match=named):
        made.add("t", 0, b"k", b"v" * (fits - 20), [("h", b"123")], 5, 0.0)
    assert made.idle
    assert made.add("t", 0, None, b"v" * fits, None, 5, 0.0) is not None


def test_unknown_topic_and_partition_are_left_to_the_caller() -> None:
    made = accumulator()
    assert made.add("other", None, None, b"v", None, 5, 0.0) is None
    assert made.add("t", 3, None, b"v", None, 5, 0.0) is None
    assert made.known("t", 3) is None


def test_topic_made_again_with_fewer_partitions_fails_the_records_of_those_that_are_gone() -> None:
    made = accumulator()
    for partition in (0, 2):
        made.add("t", partition, None, b"v", None, 5, 0.0)
    (orphan,) = made.update([described(partitions=2, topic_id=9)], 1.0)
    assert isinstance(orphan.error, UnknownTopicOrPartitionError)
    (left,) = made.drain(10.0) or made.drain(11.0)
    assert left.encode()[0].topic_id == 9


def test_forgotten_topic_fails_its_records_and_no_others() -> None:
    made = accumulator()
    made.update([described("u", topic_id=2)], 0.0)
    made.add("t", 0, None, b"v", None, 5, 0.0)
    made.add("u", 0, None, b"v", None, 5, 0.0)
    (orphan,) = made.forget("t")
    assert orphan.error is not None
    assert made.forget("t") == []
    assert [batch.queue.topic.name for batch in made.incomplete()] == ["u"]


def test_keyless_records_stay_with_a_partition_for_a_batch_and_then_move_on() -> None:
    made = accumulator()
    partitions = []
    for _ in range(12):
        place = made.add("t", None, None, b"v" * 176, None, 5, 0.0)
        assert place is not None
        partitions.append(place.batch.queue.partition)
    assert partitions == [2] * 3 + [1] * 3 + [2] * 3 + [1] * 3


def test_batch_too_large_for_the_server_goes_in_pieces_of_one_request() -> None:
    made = accumulator()
    for number in range(5):
        made.add("t", 0, b"k%d" % number, b"v", [("h", b"%d" % number)], number, 0.0)
    (batch,) = made.drain(0.0) or made.drain(1.0)
    batch.pieces = 2
    first, second = batch.encode()
    assert (first.record_count, second.record_count) == (3, 2)
    assert first.max_timestamp == 2
    assert second.header_values is not None
    assert second.header_values.items == [b"3", b"4"]
    made.settle(batch, [AppendResult(10, -1, 0), AppendResult(13, -1, 0)])
    assert isinstance(batch, RowBatch)
    assert [batch.metadata(index).offset for index in range(5)] == [10, 11, 12, 13, 14]


def test_abandoned_batches_ignore_what_the_server_says_later() -> None:
    made = accumulator()
    made.add("t", 0, None, b"v" * 600, None, 5, 0.0)
    (batch,) = made.drain(0.0)
    made.add("t", 0, None, b"w", None, 5, 0.0)
    error = LogstoreError("closed")
    assert len(made.abandon(error)) == 2
    made.settle(batch, [AppendResult(0, -1, 0)])
    assert not made.retry(batch, RetriableError("late"), 0.0)
    assert batch.error is error
    assert made.idle
    assert made.used == 0


def test_who_gets_ahead_keeps_to_what_follows_his_own() -> None:
    """What follows another lane's batches may be sent, and its records forgotten, at any moment."""
    made = accumulator(request_bytes=1700)
    for partition in (0, 1):
        for _ in range(3):
            made.add("t", partition, None, b"v" * 1600, None, 5, 0.0)
    (mine,), (other,) = made.drain(0.0), made.drain(0.0)
    (next_one,) = made.upcoming([mine])
    assert next_one.queue is mine.queue
    made.settle(other, [AppendResult(0, -1, 0)])
    for batch in made.drain(0.0):
        assert batch.queue is other.queue
        made.settle(batch, [AppendResult(1, -1, 0)])
        batch.release()
    next_one.prepare()
    assert [row.record_count for row in next_one.encode()] == [1]


def test_interrupted_openings_of_a_batch_do_no_harm() -> None:
    """Ctrl-C may leave a queue that is listed without a batch, and a batch without a record."""
    made = accumulator()
    queue = made.topics["t"].queues[1]
    made._active[queue] = None
    assert made.drain(0.0) == []
    assert made.idle
    made._open(queue, RowBatch(queue, threading.Lock()))
    assert made.wait_s(0.0) is None
    assert made.drain(5.0) == []
    assert made.used == 0
