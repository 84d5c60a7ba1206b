"""Actors that write: single records, and transactions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from logstore import Consumer, Producer
from logstore._core.arrays import ByteaArray
from logstore._core.calls import AppendBatch, Calls, FetchRow
from logstore._sync.driver import Connection
from logstore.errors import LogstoreError, TransactionAbortedError, UnknownOutcomeError
from tests.history.plan import NOT_WRITTEN, PATIENT, Plan, Stop, patiently
from tests.history.readers import Watch, open_consumer, polled
from tests.history.record import FAIL, INFO, OK, Op, Poll, Recorder, Send, Step
from tests.support.colours import Asyncio, Threads

__all__ = ["committer", "processor", "sender", "transactor"]

POLL_MS = 100


def sender(plan: Plan, name: str, stop: Stop) -> None:
    """Sends records one by one, many under way at a time; a few that are refused among them."""
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    options = {**PATIENT, "acks": plan.acks, **plan.producer}
    colour = chance.choice([Threads, Asyncio])()
    acks = {"all": -1, -1: -1}.get(plan.acks, plan.acks)
    under_way: deque[tuple[Op, Any]] = deque()
    producer = patiently(lambda: _started(colour.producer(plan.dsn, **options)), stop)
    if producer is None:
        colour.close()
        return
    said = {"acks": acks, "idempotent": bool(getattr(producer.config, "enable_idempotence", False))}
    try:
        for number in range(plan.records):
            if stop.is_set():
                break
            place = chance.randrange(plan.partitions)
            value = f"{name}:{number}"
            refused = chance.random() < 0.01
            op = recorder.begin("send", [Send(f"{plan.topic}-{place}", value)], **said)
            try:
                # Too far in the future for the topic: the server refuses the batch.
                stamp = time.time_ns() // 1_000_000 + 86_400_000 if refused else None
                future = producer.send(plan.topic, value.encode(), partition=place, timestamp_ms=stamp)
                under_way.append((op, future))
            except LogstoreError as error:
                recorder.end(op, FAIL if isinstance(error, NOT_WRITTEN) else INFO)
            lives = True
            while under_way and (len(under_way) > plan.window or under_way[0][1].done()):
                lives = _settle(recorder, *under_way.popleft()) and lives
            if not lives:
                break  # what this one was told to write may be lost: it is not to go on
            stop.wait(chance.expovariate(1 / plan.pause_s) if plan.pause_s else 0)
        producer.flush()
    except LogstoreError:
        pass  # what is not known is not known
    finally:
        with suppress(LogstoreError):
            producer.close(10)
        for op, future in under_way:
            _settle(recorder, op, future)
        colour.close()
        recorder.close()


def _started(producer: Any) -> Any:
    producer.start()
    return producer


def _settle(recorder: Recorder, op: Op, future: Any) -> bool:
    """Write down what became of a record; whether its producer can go on."""
    try:
        where = future.get(240)
    except LogstoreError as error:
        recorder.end(op, FAIL if isinstance(error, NOT_WRITTEN) else INFO)
        return not error.fatal
    (send,) = op.sends
    # A duplicate of long ago is known to be there, but not where.
    op.steps = [send._replace(offset=where.offset if where.offset >= 0 else None)]
    recorder.end(op, OK)
    return True


def committer(plan: Plan, name: str, stop: Stop) -> None:
    """Transactions on the bare functions: read some, append to several partitions, commit or roll back."""
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    calls = Calls()
    positions = dict.fromkeys(range(plan.partitions), 0)
    connection: Connection | None = None
    for number in range(plan.records):
        if stop.is_set():
            break
        op = recorder.begin("txn", idempotent=False, acks=-1)
        outcome: Any = FAIL
        moved: dict[int, int] = {}
        try:
            if connection is None or connection.closed:
                connection = Connection.open(plan.dsn, application_name="chaos", timeout_s=3)
            (topic,) = connection.run(calls.metadata([plan.topic]), timeout_s=10)
            with connection.transaction(timeout_s=10):
                place = chance.randrange(plan.partitions)
                rows = connection.run(
                    calls.fetch([topic.topic_id], [place], [positions[place]], 1 << 20, 4096), timeout_s=10
                )
                records = tuple(_records(f"{plan.topic}-{place}", rows, positions[place]))
                steps: list[Step] = [Poll(records)]
                moved = {place: records[-1][1] + 1} if records else {}
                places = sorted(chance.sample(range(plan.partitions), min(3, plan.partitions)))
                sends = [Send(f"{plan.topic}-{each}", f"{name}:{number}.{each}") for each in places]
                op.steps = [*steps, *sends]
                recorder.end(op, INFO)  # what it wants to write, whatever becomes of it
                batches = [
                    AppendBatch(
                        topic.topic_id, each, 1, time.time_ns() // 1_000_000, None, None,
                        ByteaArray([send.value.encode()]),
                    )
                    for each, send in zip(places, sends, strict=True)
                ]  # fmt: skip
                results = connection.run(calls.append(batches, -1), timeout_s=10)
                if chance.random() < 0.2:
                    raise TransactionAbortedError("enough of it")
                outcome = INFO
            op.steps = [
                *steps,
                *(
                    send._replace(offset=result.base_offset)
                    for send, result in zip(sends, results, strict=True)
                ),
            ]
            outcome = OK
        except UnknownOutcomeError:
            outcome = INFO
        except LogstoreError:
            stop.wait(0.05)
        recorder.end(op, outcome)
        if outcome == OK:
            positions |= moved
    if connection is not None:
        connection.close()
    recorder.close()


def _records(name: str, rows: Iterable[FetchRow], position: int) -> Iterable[tuple[str, int, str]]:
    for row in rows:
        for at, value in enumerate(row.values or () if row.base_offset is not None else ()):
            offset = (row.base_offset or 0) + at
            if offset >= position and value is not None:
                yield name, offset, value.decode()


def transactor(plan: Plan, name: str, stop: Stop) -> None:
    """Transactions of a producer with a transactional id that another may take over at any time."""
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    identity = f"id{chance.randrange(2)}"
    producer: Producer | None = None
    said: dict[str, Any] = {}
    for number in range(plan.records):
        if stop.is_set():
            break
        if producer is None:
            try:
                producer = Producer(plan.dsn, **{**PATIENT, **plan.producer, "transactional_id": identity})
                with recorder.operation("init", producer=identity) as init:
                    producer.init_transactions()
                    held = producer._transactions._identity  # type: ignore[union-attr]
                    init.said["epoch"] = held.epoch
                said = {"producer": identity, "epoch": held.epoch, "idempotent": True, "acks": -1}
            except LogstoreError:
                _close(producer)
                producer = None
                stop.wait(0.1)
                continue
        places = chance.sample(range(plan.partitions), chance.randint(1, plan.partitions))
        sends = [Send(f"{plan.topic}-{each}", f"{name}:{number}.{each}") for each in places]
        op = recorder.begin("txn", sends, **said)
        outcome: Any = FAIL
        try:
            with producer.transaction():
                futures = [
                    producer.send(plan.topic, send.value.encode(), partition=place)
                    for place, send in zip(places, sends, strict=True)
                ]
                if chance.random() < 0.2:
                    raise TransactionAbortedError("enough of it")
            where = [future.get(0).offset for future in futures]
            op.steps = [send._replace(offset=at) for send, at in zip(sends, where, strict=True)]
            outcome = OK
        except UnknownOutcomeError:
            outcome = INFO
        except LogstoreError as error:
            if error.fatal:
                _close(producer)
                producer = None
                stop.wait(0.2)
        recorder.end(op, outcome)
        stop.wait(chance.expovariate(20))
    _close(producer)
    recorder.close()


def _close(producer: Producer | None) -> None:
    if producer is not None:
        with suppress(LogstoreError):
            producer.close(5)


def processor(plan: Plan, name: str, stop: Stop) -> None:
    """Reads as a member of a group and produces, exactly once; now and then it changes its mind."""
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    watch = Watch(recorder, "processors")

    def join() -> Consumer:
        consumer = open_consumer(
            plan, group_id="processors", delivery="exactly_once", session_timeout_ms=1500,
            heartbeat_interval_ms=200, max_poll_records=50,
        )  # fmt: skip
        watch.consumer = consumer
        consumer.subscribe([plan.topic], listener=watch)
        return consumer

    consumer = patiently(join, stop)
    if consumer is None:
        return
    for number in range(plan.records):
        if stop.is_set():
            break
        op: Op | None = None
        outcome: Any = FAIL
        try:
            with consumer.transaction(timeout_ms=POLL_MS) as tx:
                if not tx.records:
                    continue
                op = recorder.begin("txn", [polled(tx.records)], group="processors", idempotent=True)
                place = chance.randrange(plan.partitions)
                send = Send(f"{plan.topic}-{place}", f"{name}:{number}")
                # One for many: its own records are its input again.
                future = tx.send(plan.topic, send.value.encode(), partition=place)
                op.steps.append(send)
                recorder.end(op, INFO)
                if chance.random() < 0.2:
                    raise TransactionAbortedError("enough of it")
            op.steps[-1] = send._replace(offset=future.get(0).offset)
            outcome = OK
        except UnknownOutcomeError:
            outcome = INFO
        except LogstoreError:
            stop.wait(0.05)
        if op is not None:
            recorder.end(op, outcome)
    with suppress(LogstoreError):
        consumer.close()
    recorder.close()
