"""Numbered batches: whatever is lost, repeated or late, each record is in the log once and in order."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from logstore._core.accumulator import Accumulator
from logstore._core.backoff import Backoff
from logstore._core.batch import Batch
from logstore._core.calls import AppendBatch, AppendResult, TopicMetadata
from logstore._core.partitioner import crc32_partition
from logstore._core.queues import Limits
from logstore._core.row_batch import RowBatch
from logstore._core.sequences import LAST_EPOCH, Number, Numbering
from logstore._sync.sender import GRACE_S, Sender
from logstore._sync.session import Session
from logstore.config import ProducerConfig
from logstore.errors import (
    DeliveryTimeoutError,
    DuplicateSequenceError,
    InvalidTimestampError,
    LogstoreError,
    OutOfOrderSequenceError,
    ProducerFencedError,
    RetriableError,
    UnknownOutcomeError,
)
from tests.support.lengths import examples

MASK = 2**31 - 1
REMEMBERED = 5


class Place:
    batch: RowBatch
    place: int


def accumulator(*, numbered: bool = True, retries: int = 1000) -> Accumulator[Place]:
    ids = itertools.count(100)
    made: Accumulator[Place] = Accumulator(
        Limits(
            batch_size=200,
            buffer_memory=100_000,
            max_request_size=600,
            linger_s=0.0,
            delivery_timeout_s=30.0,
            retries=retries,
        ),
        partitioner=crc32_partition,
        choose=lambda number: number - 1,
        backoff=Backoff(1.0, 4.0, lambda: 0.5),
        promise=Place,
        lock=threading.Lock(),
        new_producer_id=(lambda: next(ids)) if numbered else None,
    )
    made.update([described()], 0.0)
    return made


def described(partitions: int = 2, topic_id: int = 1) -> TopicMetadata:
    return TopicMetadata("t", topic_id, partitions, 0, 1_000_000, {})


@dataclass
class Partition:
    """The server's side, by the rules of append()."""

    log: list[bytes | None] = field(default_factory=list)
    known: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    """By producer id, oldest first: epoch, base sequence, records, base offset."""

    def append(self, row: AppendBatch) -> AppendResult:
        assert row.values is not None and row.producer_id is not None
        assert row.producer_epoch is not None and row.base_sequence is not None
        mine = self.known.setdefault(row.producer_id, [])
        epoch, first = row.producer_epoch, row.base_sequence
        if mine:
            newest, base, count, _ = mine[-1]
            expected = (base + count) & MASK if epoch == newest else 0
            if epoch < newest:
                raise ProducerFencedError
            if first != expected:
                if epoch == newest and (found := self.find(mine, epoch, first, row.record_count)) is not None:
                    return AppendResult(found, -1, 0)
                if epoch == newest and ((expected - first) & MASK) < 2**30:
                    raise DuplicateSequenceError
                raise OutOfOrderSequenceError
        mine.append((epoch, first, row.record_count, len(self.log)))
        self.log += row.values.items
        return AppendResult(len(self.log) - row.record_count, -1, 0)

    def find(self, mine: list[tuple[int, int, int, int]], epoch: int, first: int, count: int) -> int | None:
        ends = []
        for wanted in (first, (first + count - 1) & MASK):
            for other, base, size, offset in mine[-REMEMBERED:]:
                if other == epoch and ((wanted - base) & MASK) < size:
                    ends.append(offset + ((wanted - base) & MASK))
        return ends[0] if len(ends) == 2 and ends[1] - ends[0] == count - 1 else None


class Wire(RuleBasedStateMachine):
    """A producer, a server, and a network that loses, repeats and delays."""

    def __init__(self) -> None:
        super().__init__()
        self.accumulator = accumulator()
        self.now = 0.0
        self.partitions: dict[tuple[int, int], Partition] = defaultdict(Partition)
        self.topic_id = 1
        self.sent: dict[int, list[bytes]] = defaultdict(list)
        self.batches: dict[Batch, list[bytes]] = {}
        self.late: list[list[AppendBatch]] = []
        """What the server has not done yet, and nobody waits for."""
        self.number = 0

    @initialize(retries=st.sampled_from([0, 1, 1000]))
    def begin(self, retries: int) -> None:
        self.accumulator = accumulator(retries=retries)

    @property
    def under_way(self) -> list[Batch]:
        return [batch for batch in self.batches if not batch.done and batch.queue.in_flight is batch]

    @rule(partition=st.integers(0, 1), many=st.integers(1, 4))
    def send(self, partition: int, many: int) -> None:
        for _ in range(many):
            self.number += 1
            value = b"%06d" % self.number
            place = self.accumulator.add("t", partition, None, value, None, 5, 0.0)
            assert place is not None
            self.sent[partition].append(value)
            self.batches.setdefault(place.batch, []).append(value)

    @rule(seconds=st.sampled_from([0.0, 2.0]))
    def drain(self, seconds: float) -> None:
        self.now += seconds
        self.accumulator.drain(self.now)

    def run(self, rows: list[AppendBatch]) -> list[AppendResult]:
        """One transaction: all of it or nothing."""
        return [self.partitions[row.topic_id, row.partition].append(row) for row in rows]

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.under_way))
        self.accumulator.settle(batch, self.run(batch.encode()))

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data(), done=st.sampled_from(["before", "never", "later"]))
    def lose(self, data: st.DataObject, done: str) -> None:
        """The connection is lost: the server has done it, will never, or does it some time."""
        batch = data.draw(st.sampled_from(self.under_way))
        rows = batch.encode()
        if done == "later":
            self.late.append(rows)
        elif done == "before":
            self.do_silently(rows)
        self.accumulator.retry(batch, UnknownOutcomeError("lost"), self.now)

    @precondition(lambda self: bool(self.late))
    @rule(data=st.data())
    def catch_up(self, data: st.DataObject) -> None:
        """The server gets around to something that nobody waits for any more."""
        self.do_silently(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    def do_silently(self, rows: list[AppendBatch]) -> None:
        with contextlib.suppress(LogstoreError):
            self.run(rows)

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data(), error=st.sampled_from([RetriableError("busy"), InvalidTimestampError("late")]))
    def refuse(self, data: st.DataObject, error: LogstoreError) -> None:
        batch = data.draw(st.sampled_from(self.under_way))
        if error.retriable:
            self.accumulator.retry(batch, error, self.now)
        else:
            self.accumulator.fail(batch, error)

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """The limit was lowered: it goes in more pieces from now on."""
        batch = data.draw(st.sampled_from(self.under_way))
        batch.pieces = min(batch.pieces * 2, len(batch))
        self.accumulator.retry(batch, RetriableError("cut"), self.now, at_once=True)

    @rule()
    def expire(self) -> None:
        self.now += 15
        self.accumulator.expire(self.now)

    @precondition(lambda self: not self.under_way)
    @rule(again=st.booleans())
    def lose_sight_of_the_topic(self, again: bool) -> None:
        """It is not to be seen for a moment; perhaps it was made again."""
        self.accumulator.forget("t")
        self.topic_id += again
        self.accumulator.update([described(topic_id=self.topic_id)], self.now)

    def teardown(self) -> None:
        while self.late:
            self.do_silently(self.late.pop(0))
        for _ in range(1000):
            if self.accumulator.idle:
                break
            self.now += 5
            self.accumulator.drain(self.now)
            for batch in self.under_way:
                self.accumulator.settle(batch, self.run(batch.encode()))
            self.accumulator.expire(self.now)
        assert self.accumulator.idle
        for partition in (0, 1):
            logs = [log.log for (_, number), log in self.partitions.items() if number == partition]
            there = {value for log in logs for value in log}
            for log in logs:
                assert len(log) == len(set(log)), "a record is there twice"
                assert log == [value for value in self.sent[partition] if value in set(log)], "out of order"
            for batch, values in self.batches.items():
                if batch.queue.partition != partition:
                    continue
                assert batch.done
                if batch.error is None:
                    offset = batch.base_offset
                    assert any(log[offset : offset + len(values)] == values for log in logs)
                elif not isinstance(batch.error, UnknownOutcomeError):
                    assert there.isdisjoint(values) or self.topic_was_lost(batch), "it did not fail"

    def topic_was_lost(self, batch: Batch) -> bool:
        return "There is no topic" in str(batch.error)


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)


def only(made: Accumulator[Place], now: float = 0.0) -> Batch:
    (batch,) = made.drain(now)
    return batch


def send(made: Accumulator[Place], count: int = 1, partition: int = 0) -> None:
    for _ in range(count):
        assert made.add("t", partition, None, b"v", None, 5, 0.0) is not None


def number(batch: Batch) -> Number:
    assert batch.number is not None
    return batch.number


def test_batches_are_numbered_one_after_the_other_partition_by_partition() -> None:
    made = accumulator()
    for _ in range(2):
        send(made, 3, 0)
        send(made, 2, 1)
        for batch in made.drain(0.0):
            made.settle(batch, [AppendResult(0, -1, 0)])
    send(made, 1, 0)
    send(made, 1, 1)
    assert [number(batch) for batch in made.drain(0.0)] == [Number(100, 0, 6), Number(100, 0, 4)]


def test_a_batch_keeps_its_number() -> None:
    made = accumulator()
    send(made, 3)
    batch = only(made)
    before = batch.encode()
    assert before[0][10:13] == (100, 0, 0)
    assert before[0].values is not None
    made.retry(batch, UnknownOutcomeError("lost"), 0.0)
    send(made, 2)
    assert only(made, 1.0) is batch
    (again,) = batch.encode()
    assert again[10:13] == (100, 0, 0)
    assert again.values is not None
    assert again.values.items == before[0].values.items
    made.settle(batch, [AppendResult(0, -1, 0)])
    assert number(only(made, 1.0)) == Number(100, 0, 3)


def test_pieces_and_what_was_encoded_ahead_are_numbered_too() -> None:
    made = accumulator()
    send(made, 3)
    first = only(made)
    send(made, 5)
    made.topics["t"].queues[0].open = None
    (following,) = made.upcoming([first])
    following.prepare()
    made.settle(first, [AppendResult(0, -1, 0)])
    assert only(made) is following
    assert [row[10:13] for row in following.encode()] == [(100, 0, 3)]
    following.pieces = 2
    assert [row[10:13] for row in following.encode()] == [(100, 0, 3), (100, 0, 6)]


def test_a_number_that_was_not_used_is_given_to_the_next() -> None:
    made = accumulator()
    send(made, 3)
    made.fail(only(made), InvalidTimestampError("too old"))
    send(made, 2)
    batch = only(made)
    assert number(batch) == Number(100, 0, 0)
    made.retry(batch, RetriableError("busy"), 0.0)
    assert made.expire(100.0) == [batch]
    assert isinstance(batch.error, DeliveryTimeoutError)
    send(made)
    assert number(only(made, 100.0)) == Number(100, 0, 0)


@pytest.mark.parametrize("refused", [False, True])
def test_after_a_batch_that_is_lost_from_sight_the_next_epoch_begins(refused: bool) -> None:
    made = accumulator()
    send(made, 3)
    batch = only(made)
    made.retry(batch, UnknownOutcomeError("the cable was cut"), 0.0)
    if refused:
        assert only(made, 5.0) is batch
        made.fail(batch, InvalidTimestampError("too old"))
    else:
        assert made.expire(100.0) == [batch]
    assert isinstance(batch.error, UnknownOutcomeError), "nobody knows"
    assert ("too old" if refused else "within 30000 ms") in str(batch.error)
    send(made, 2)
    assert number(only(made, 200.0)) == Number(100, 1, 0)


def test_after_a_gap_the_next_epoch_begins() -> None:
    made = accumulator()
    send(made)
    made.settle(only(made), [AppendResult(0, -1, 0)])
    send(made)
    batch = only(made)
    made.fail(batch, OutOfOrderSequenceError("the log lost something"))
    assert isinstance(batch.error, OutOfOrderSequenceError)
    send(made)
    assert number(only(made)) == Number(100, 1, 0)


def test_without_numbers_a_batch_that_may_be_there_is_not_sent_again() -> None:
    made = accumulator(numbered=False)
    send(made)
    batch = only(made)
    assert batch.encode()[0][10:13] == (None, None, None)
    assert made.retry(batch, RetriableError("refused"), 0.0), "that is known not to be there"
    assert only(made, 1.0) is batch
    error = UnknownOutcomeError("lost")
    assert not made.retry(batch, error, 1.0)
    assert batch.error is error


def test_a_topic_that_comes_back_repeats_no_number() -> None:
    made = accumulator()
    send(made, 3)
    made.settle(only(made), [AppendResult(0, -1, 0)])
    made.forget("t")
    made.update([described()], 0.0)
    send(made)
    assert number(only(made)) == Number(100, 1, 0)


def test_numbers_begin_again_and_epochs_end_in_another_producer() -> None:
    ids = itertools.count(7)
    numbering = Numbering(lambda: next(ids), 5, LAST_EPOCH - 1)
    numbering.give_back(Number(5, LAST_EPOCH - 1, 2**31 - 2))
    assert numbering.take(4) == Number(5, LAST_EPOCH - 1, 2**31 - 2)
    assert numbering.following == Number(5, LAST_EPOCH - 1, 2)
    numbering.begin_epoch()
    assert numbering.following == Number(5, LAST_EPOCH, 0)
    numbering.begin_epoch()
    assert numbering.following == Number(7, 0, 0)


def test_when_the_first_of_all_batches_has_to_be_done() -> None:
    made = accumulator()
    assert made.due_by([]) == float("inf")
    send(made, 1, 0)
    made.wait_s(3.0)
    assert made.due_by([]) == 33.0
    batch = only(made, 4.0)
    send(made, 1, 0)
    send(made, 1, 1)
    made.wait_s(5.0)
    assert made.due_by([batch]) == 33.0
    assert made.due_by([]) == 35.0, "what is under way elsewhere is not waited for here"
    made.settle(batch, [AppendResult(0, -1, 0)])
    assert made.due_by([]) == 35.0


def test_a_request_is_given_no_more_time_than_its_records_have() -> None:
    config = ProducerConfig(request_timeout_ms=30_000, schema="logstore")
    session = Session("host=nowhere", "logstore", timeout_s=30.0, application_name="test")
    sender = Sender(session, config, session)
    assert sender.patience_s(float("inf")) == 30.0
    assert 1.0 < sender.patience_s(monotonic() + 5.0) <= 5.0
    assert sender.patience_s(monotonic() - 5.0) == GRACE_S
