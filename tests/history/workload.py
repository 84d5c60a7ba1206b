"""Clients at work, writing down what they do and see; what they do follows from a seed.

Each actor is a function for a thread or a process of its own; it works until ``stop`` is set (or it is
killed) and goes on whatever fails.  :func:`finish` reads everything that there is in the end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from logstore import Consumer, ConsumerRebalanceListener, ConsumerRecord, Producer, TopicPartition
from logstore._core.arrays import ByteaArray
from logstore._core.calls import AppendBatch, Calls, FetchRow
from logstore._sync.driver import Connection
from logstore.errors import (
    BufferExhaustedError,
    CommitFailedError,
    InvalidTimestampError,
    LogstoreError,
    RecordTooLargeError,
    RequestTimedOutError,
    TransactionAbortedError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from tests.history.record import FAIL, INFO, OK, Op, Poll, Recorder, Send, Step

__all__ = [
    "ACTORS",
    "Actor",
    "Crew",
    "Plan",
    "Sign",
    "Stop",
    "committer",
    "finish",
    "marks",
    "reader",
    "sender",
    "subscriber",
    "wanderer",
]

NOT_WRITTEN: Final = (
    BufferExhaustedError,
    InvalidTimestampError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)
"""Errors of a send after which the record is certainly not there."""
POLL_MS: Final = 100
GROUP: Final = "g"


@dataclass(frozen=True)
class Plan:
    """What the actors of one run have in common."""

    dsn: str
    path: Path
    topic: str = "t"
    partitions: int = 4
    seed: int = 0
    acks: Any = "all"
    records: int = 1_000_000
    """After so many a sender stops."""
    window: int = 64
    """A sender waits for its oldest record when so many are under way."""
    pause_s: float = 0.0005
    """Between sends, on average."""
    producer: Mapping[str, Any] = field(default_factory=dict)
    consumer: Mapping[str, Any] = field(default_factory=dict)

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def names(self) -> list[str]:
        return [f"{self.topic}-{number}" for number in range(self.partitions)]


class Stop(Protocol):
    """``threading.Event``, and :class:`Sign` among processes."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float, /) -> bool: ...


@dataclass(frozen=True)
class Sign:
    """An event for processes that may be killed at any moment: it has no lock that could die with one."""

    path: Path

    def set(self) -> None:
        self.path.touch()

    def is_set(self) -> bool:
        return self.path.exists()

    def wait(self, timeout: float, /) -> bool:
        time.sleep(timeout)
        return self.is_set()


Actor = Callable[[Plan, str, Stop], None]


# ---- those who write


def sender(plan: Plan, name: str, stop: Stop) -> None:
    """Sends records one by one, many under way at a time; a few that are refused among them."""
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    options: dict[str, Any] = {
        "acks": plan.acks, "linger_ms": 1, "retry_backoff_ms": 5, "retry_backoff_max_ms": 100,
        "request_timeout_ms": 3000, "delivery_timeout_ms": 60_000, "client_id": "chaos", **plan.producer,
    }  # fmt: skip
    acks = {"all": -1, -1: -1}.get(plan.acks, plan.acks)
    under_way: deque[tuple[Op, Any]] = deque()
    producer = _patiently(lambda: _started(Producer(plan.dsn, **options)), stop)
    if producer is None:
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
            while under_way and (len(under_way) > plan.window or under_way[0][1].done()):
                _settle(recorder, *under_way.popleft())
            stop.wait(chance.expovariate(1 / plan.pause_s) if plan.pause_s else 0)
        producer.flush()
    except LogstoreError:
        pass  # what is not known is not known
    finally:
        with suppress(LogstoreError):
            producer.close(10)
        for op, future in under_way:
            _settle(recorder, op, future)
        recorder.close()


def _started(producer: Producer) -> Producer:
    producer.start()
    return producer


def _settle(recorder: Recorder, op: Op, future: Any) -> None:
    try:
        where = future.get(90)
    except LogstoreError as error:
        recorder.end(op, FAIL if isinstance(error, NOT_WRITTEN) else INFO)
        return
    (send,) = op.sends
    # A duplicate of long ago is known to be there, but not where.
    op.steps = [send._replace(offset=where.offset if where.offset >= 0 else None)]
    recorder.end(op, OK)


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


# ---- those who read


def _consumer(plan: Plan, **options: Any) -> Consumer:
    consumer = Consumer(
        dsn=plan.dsn,
        **{
            "auto_offset_reset": "earliest",
            "request_timeout_ms": 3000,
            "reconnect_backoff_ms": 5,
            "reconnect_backoff_max_ms": 100,
            "client_id": "chaos",
            **options,
            **plan.consumer,
        },
    )
    try:
        consumer.start()
    except BaseException:
        consumer.close()
        raise
    return consumer


def _patiently(make: Callable[[], Any], stop: Stop) -> Any:
    """What ``make`` makes, as soon as a server answers."""
    while not stop.is_set():
        try:
            return make()
        except LogstoreError as error:
            if not error.retriable:
                raise
            stop.wait(0.05)
    return None


def _polled(polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> Poll:
    return Poll(
        tuple(
            (f"{tp.topic}-{tp.partition}", record.offset, record.value.decode())
            for tp, records in polled.items()
            for record in records
        )
    )


def reader(plan: Plan, name: str, stop: Stop) -> None:
    """Reads every partition from its start and never goes anywhere else: skips are seen by it first."""
    _read(plan, name, stop, wandering=False)


def wanderer(plan: Plan, name: str, stop: Stop) -> None:
    """Reads some partitions from somewhere, then others."""
    _read(plan, name, stop, wandering=True)


def _read(plan: Plan, name: str, stop: Stop, *, wandering: bool) -> None:
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    consumer = _patiently(lambda: _consumer(plan), stop)
    if consumer is None:
        return
    everything = [TopicPartition(plan.topic, number) for number in range(plan.partitions)]
    reached = dict.fromkeys(everything, 0)

    def assign(partitions: Sequence[TopicPartition]) -> None:
        consumer.assign(partitions)
        positions = {}
        for tp in partitions:
            at = chance.randrange(reached[tp] + 1) if wandering else 0
            consumer.seek(tp, at)
            positions[f"{tp.topic}-{tp.partition}"] = at
        recorder.note("assign", positions=positions)

    assign(everything)
    while not stop.is_set():
        if wandering and chance.random() < 0.05:
            assign(chance.sample(everything, chance.randint(1, len(everything))))
        with suppress(LogstoreError):
            _poll(recorder, consumer, reached)
    consumer.close()
    recorder.close()


def _poll(
    recorder: Recorder, consumer: Consumer, reached: dict[TopicPartition, int], **said: Any
) -> dict[TopicPartition, list[ConsumerRecord]]:
    begun = time.monotonic()
    polled = consumer.poll(timeout_ms=POLL_MS)
    if polled:
        op = recorder.note("poll", [_polled(polled)], **said)
        op.begin = begun
        for tp, records in polled.items():
            reached[tp] = max(reached.get(tp, 0), records[-1].offset + 1)
    return polled


class _Claims(ConsumerRebalanceListener):
    """Writes down what a member was given."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.consumer: Any = None

    def epochs(self) -> dict[str, int]:
        held = self.consumer._group._membership.held
        return {f"{tp.topic}-{tp.partition}": claim.epoch for tp, claim in held.items()}

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        names = {f"{tp.topic}-{tp.partition}" for tp in assigned}
        epochs = {name: epoch for name, epoch in self.epochs().items() if name in names}
        self.recorder.note("claim", group=GROUP, epochs=epochs)
        self.recorder.note("subscribe")

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self.recorder.note("subscribe")


def subscriber(plan: Plan, name: str, stop: Stop) -> None:
    """A member of a group that commits what it has read."""
    recorder = Recorder(plan.path, name)
    listener = _Claims(recorder)

    def join() -> Consumer:
        consumer = _consumer(
            plan, group_id=GROUP, enable_auto_commit=False, session_timeout_ms=1500, heartbeat_interval_ms=200
        )
        listener.consumer = consumer
        consumer.subscribe([plan.topic], listener=listener)
        return consumer

    consumer = _patiently(join, stop)
    if consumer is None:
        return
    reached: dict[TopicPartition, int] = {}
    while not stop.is_set():
        with suppress(LogstoreError):
            polled = _poll(recorder, consumer, reached, group=GROUP)
            if not polled:
                continue
            epochs = listener.epochs()
            offsets = {f"{tp.topic}-{tp.partition}": records[-1].offset + 1 for tp, records in polled.items()}
            epochs = {each: epochs[each] for each in offsets if each in epochs}
            if epochs.keys() != offsets.keys():
                continue  # some of it is somebody else's already
            op = recorder.begin("commit", group=GROUP, offsets=offsets, epochs=epochs)
            try:
                consumer.commit({tp: records[-1].offset + 1 for tp, records in polled.items()})
            except CommitFailedError:
                recorder.end(op, FAIL)
            except LogstoreError:
                recorder.end(op, INFO)
            else:
                recorder.end(op, OK)
    consumer.close()
    recorder.close()


def marks(plan: Plan, name: str, stop: Stop) -> None:
    """Looks at the watermarks again and again."""
    recorder = Recorder(plan.path, name)
    while not stop.is_set():
        with suppress(psycopg.Error), psycopg.connect(plan.dsn, autocommit=True) as connection:
            while not stop.wait(0.05):
                with recorder.operation("marks", node="leader") as op:
                    op.said["marks"] = _marks(connection, plan)
        stop.wait(0.05)
    recorder.close()


def _marks(connection: psycopg.Connection[Any], plan: Plan) -> dict[str, dict[str, int]]:
    rows = connection.execute(
        "SELECT partition, log_start, high_watermark, leader_epoch FROM logstore.partitions WHERE topic = %s",
        [plan.topic],
    )
    return {
        f"{plan.topic}-{partition}": {"log_start": start, "hw": high, "end": high, "epoch": epoch}
        for partition, start, high, epoch in rows
    }


def finish(plan: Plan, name: str = "last") -> None:
    """Read everything there is, and write down the log as it lies there."""
    recorder = Recorder(plan.path, name)
    with psycopg.connect(plan.dsn) as connection:
        ends = {each: found["end"] for each, found in _marks(connection, plan).items()}
        batches = connection.execute(
            "SELECT partition, base_offset, record_count, leader_epoch, producer_id, producer_epoch"
            " FROM logstore.batches b JOIN logstore.topic t USING (topic_id) WHERE t.name = %s"
            " ORDER BY partition, last_offset",
            [plan.topic],
        ).fetchall()
    consumer = _consumer(plan)
    everything = [TopicPartition(plan.topic, number) for number in range(plan.partitions)]
    consumer.assign(everything)
    for tp in everything:
        consumer.seek(tp, 0)
    recorder.note("assign", positions=dict.fromkeys(plan.names(), 0))
    reached = dict.fromkeys(everything, 0)
    deadline = time.monotonic() + 60
    while any(reached[tp] < ends[f"{tp.topic}-{tp.partition}"] for tp in everything):
        try:
            _poll(recorder, consumer, reached)
        except RequestTimedOutError:
            continue
        assert time.monotonic() < deadline, f"the log ends at {ends}, but only {reached} can be read"
    consumer.close()
    recorder.note("drained")
    log: dict[str, list[list[int | None]]] = {each: [] for each in plan.names()}
    for partition, *batch in batches:
        log[f"{plan.topic}-{partition}"].append(batch)
    recorder.note("log", batches=log)
    recorder.close()


ACTORS: Final[dict[str, Actor]] = {
    "sender": sender,
    "committer": committer,
    "reader": reader,
    "wanderer": wanderer,
    "subscriber": subscriber,
    "marks": marks,
}


class Crew:
    """Actors in threads of this process; an error of one is raised by :meth:`close`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stop = threading.Event()
        self.writing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._writers: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, actor: str, name: str) -> None:
        stop = self.writing if actor in ("sender", "committer") else self.stop

        def run() -> None:
            try:
                ACTORS[actor](self.plan, name, stop)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, name=name)
        (self._writers if stop is self.writing else self._threads).append(thread)
        thread.start()

    def check(self) -> None:
        """Raise what an actor has failed with, if one has."""
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Stop the writers, then the readers."""
        self.writing.set()
        for thread in self._writers:
            thread.join()
        self.stop.set()
        for thread in self._threads:
            thread.join()
        self.check()
