"""What a transactional producer may do when, and what waits for the commit."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from logstore._core.arrays import ByteaArray
from logstore._core.backoff import Backoff
from logstore._core.calls import AppendBatch, AppendResult, Calls, TopicMetadata
from logstore._core.partitioner import crc32_partition
from logstore._core.queues import Limits
from logstore._core.transaction import HeldRecords, Phase, Sequences, TransactionState, requests
from logstore._core.transaction_calls import Part, ProducerIdentity, TransactionCalls, together
from logstore.errors import (
    BufferExhaustedError,
    IllegalStateError,
    LogstoreError,
    ProducerFencedError,
    TransactionAbortedError,
    TransactionTimedOutError,
)

ME = ProducerIdentity(7, 1)


def state(phase: Phase) -> TransactionState:
    made = TransactionState("t", 10.0)
    if phase is Phase.OUTSIDE:
        return made
    made.initialised()
    if phase is Phase.READY:
        return made
    made.begin(0.0)
    if phase is Phase.OPEN:
        return made
    if phase is Phase.FENCED:
        made.fenced()
        return made
    made.commit(1.0)
    if phase is Phase.IN_DOUBT:
        made.doubted()
    elif phase is Phase.FAILED:
        made.failed()
    return made


ALLOWED = {
    "check_init": {Phase.OUTSIDE},
    "begin": {Phase.READY},
    "check_open": {Phase.OPEN},
    "commit": {Phase.OPEN, Phase.IN_DOUBT},
    "check_abort": {Phase.OPEN, Phase.FAILED},
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("step", ALLOWED)
def test_each_step_is_allowed_in_its_phases_only(step: str, phase: Phase) -> None:
    made = state(phase)
    given: dict[str, list[Any]] = {"begin": [2.0], "commit": [2.0], "check_open": [2.0, "a record"]}
    arguments = given.get(step, [])
    if phase in ALLOWED[step]:
        getattr(made, step)(*arguments)
        return
    with pytest.raises(ProducerFencedError if phase is Phase.FENCED else IllegalStateError) as caught:
        getattr(made, step)(*arguments)
    assert caught.value.advice
    assert made.phase is phase


def test_a_transaction_has_its_time() -> None:
    made = state(Phase.OPEN)
    made.check_open(9.9, "a record")
    for late in (lambda: made.check_open(10.0, "a record"), lambda: made.commit(10.0)):
        with pytest.raises(TransactionTimedOutError, match="10000"):
            late()
    made.check_abort()
    made.aborted()
    made.begin(20.0)
    made.check_open(29.9, "a record")


def test_a_commit_in_doubt_may_take_longer() -> None:
    assert state(Phase.OPEN).commit(1.0) is False
    assert state(Phase.IN_DOUBT).commit(1000.0) is True


# -- records -------------------------------------------------------------------------------------------------


class Future:
    batch: Any
    place: int


def held(buffer_memory: int = 1 << 20) -> HeldRecords[Any]:
    made: HeldRecords[Any] = HeldRecords(
        Limits(
            batch_size=1 << 14, buffer_memory=buffer_memory, max_request_size=1 << 14, linger_s=0.0,
            delivery_timeout_s=1.0, retries=0,
        ),
        partitioner=crc32_partition, choose=lambda count: 0, backoff=Backoff(0.0, 0.0, random.random),
        promise=Future, lock=threading.Lock(),
    )  # fmt: skip
    made.update([TopicMetadata("b", 1, 2, 0, 1 << 20, {}), TopicMetadata("a", 2, 2, 0, 1 << 20, {})], 0.0)
    made.open()
    return made


def add(records: HeldRecords[Any], topic: str, partition: int, value: bytes = b"v") -> Any:
    return records.add(topic, partition, None, value, None, 0, 0.0)


def test_records_are_given_to_nobody_before_the_commit() -> None:
    records = held()
    future = add(records, "a", 0)
    assert records.drain(1e9) == records.incomplete() == records.expire(1e9) == records.upcoming([]) == []
    assert not records.due(1e9)
    assert records.wait_s(1e9) is None
    assert records.idle
    assert future.batch.held


def test_all_are_taken_in_the_order_of_locks_and_none_comes_after() -> None:
    records = held()
    for topic, partition in (("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 1)):
        for _ in range(3):
            add(records, topic, partition, bytes(10_000))
    taken = records.take_all()
    order = [(batch.queue.topic.topic_id, batch.queue.partition) for batch in taken]
    assert order == sorted(order)
    assert [batch for batch in taken if batch.held] == []
    assert add(records, "a", 0) is None
    records.written({batch: [AppendResult(5, -1, 0)] for batch in taken})
    assert all(batch.done and batch.error is None for batch in taken)
    assert records.used == 0
    records.open()
    assert add(records, "a", 0) is not None


def test_what_is_given_up_fails_wherever_it_is() -> None:
    for taken in (True, False):
        records = held()
        future = add(records, "a", 0)
        if taken:
            records.take_all()
        error = TransactionAbortedError()
        assert records.give_up(error) == [future.batch]
        assert future.batch.error is error
        assert (records.used, records.held, add(records, "a", 0)) == (0, [], None)


def test_a_topic_that_goes_takes_no_record_out_of_the_transaction() -> None:
    records = held()
    futures = [add(records, "a", 0), add(records, "a", 1), add(records, "b", 0)]
    assert records.forget("b") == []
    assert records.update([TopicMetadata("a", 3, 1, 0, 1 << 20, {})], 1.0) == []
    assert set(records.take_all()) == {future.batch for future in futures}


def test_a_full_buffer_says_so() -> None:
    records = held(buffer_memory=1024)
    while add(records, "a", 0, bytes(200)) is not None:
        pass
    assert isinstance(records.no_room(), BufferExhaustedError)


# -- statements ----------------------------------------------------------------------------------------------


def row(topic_id: int, partition: int, count: int) -> AppendBatch:
    return AppendBatch(topic_id, partition, count, 0, None, None, ByteaArray([b"x"] * count))


def test_sequences_go_on_after_what_was_kept() -> None:
    sequences = Sequences()
    rows = [row(1, 0, 3), row(1, 0, 2), row(1, 1, 4)]
    for _ in range(2):  # an attempt that fails uses none up
        numbered = sequences.number(rows, ME)
        assert [each.base_sequence for each in numbered] == [0, 3, 0]
        assert {(each.producer_id, each.producer_epoch) for each in numbered} == {ME}
    sequences.keep(numbered)
    assert [each.base_sequence for each in sequences.number(rows, ME)] == [5, 8, 4]
    sequences.keep([row(1, 0, 10)._replace(base_sequence=2**31 - 4)])
    assert [each.base_sequence for each in sequences.number(rows, ME)] == [6, 9, 4]


def test_rows_are_shared_out_among_statements() -> None:
    rows = [(row(1, number, 1), 10) for number in range(150)]
    assert [len(each) for each in requests(rows, 10_000)] == [64, 64, 22]
    assert [len(each) for each in requests(rows[:5], 20)] == [2, 2, 1]
    assert [len(each) for each in requests(rows[:2], 1)] == [1, 1]
    assert requests([], 10) == []


def test_several_calls_are_one_statement() -> None:
    calls = TransactionCalls("s")
    call = together(
        [
            Part(calls.enter_transaction("t", ME)),
            Part(calls.append([row(1, 0, 1), row(1, 1, 1)], -1), 2),
            Part(calls.holds_batch(1, 0, 9, ME, 3)),
        ]
    )
    assert call.sql.startswith(
        'SELECT "s"."enter_transaction"($1::text, $2::int8, $3::int2), "s"."append"($4::int4'
    )
    assert '"s"."holds_batch"($34::int4, $35::int4, $36::int8' in call.sql
    assert call.sql.count("$") == len(call.args) == 39
    assert call.writes
    answer = call.decode([["", [5, -1, 0], [6, -1, 0], True]])
    assert answer == [None, [AppendResult(5, -1, 0), AppendResult(6, -1, 0)], True]
    assert not together([Part(Calls("s").schema_version())]).writes


def test_errors_of_transactions_survive_pickling() -> None:
    import pickle

    error: LogstoreError = pickle.loads(pickle.dumps(ProducerFencedError("x", details={"a": 1})))
    assert (type(error), error.message, error.details) == (ProducerFencedError, "x", {"a": 1})
