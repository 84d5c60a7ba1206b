"""Actors that read: partitions by hand, partitions given by a group, watermarks; and the end of it all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final

import psycopg

from logstore import Consumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from logstore._core.call import Call
from logstore._sync.driver import Connection
from logstore.errors import CommitFailedError, LogstoreError, RequestTimedOutError
from tests.history.plan import Plan, Stop, patiently
from tests.history.record import FAIL, INFO, OK, Poll, Recorder

__all__ = ["Watch", "finish", "marks", "open_consumer", "polled", "reader", "subscriber", "wanderer"]

POLL_MS: Final = 100


def open_consumer(plan: Plan, **options: Any) -> Consumer:
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


def polled(records: Mapping[TopicPartition, Sequence[ConsumerRecord]] | Sequence[ConsumerRecord]) -> Poll:
    """What a poll brought, or a transaction."""
    found = records if isinstance(records, Sequence) else [each for part in records.values() for each in part]
    return Poll(tuple((f"{each.topic}-{each.partition}", each.offset, each.value.decode()) for each in found))


def reader(plan: Plan, name: str, stop: Stop) -> None:
    """Reads every partition from its start and never goes anywhere else: skips are seen by it first."""
    _read(plan, name, stop, wandering=False)


def wanderer(plan: Plan, name: str, stop: Stop) -> None:
    """Reads some partitions from somewhere, then others."""
    _read(plan, name, stop, wandering=True)


def _read(plan: Plan, name: str, stop: Stop, *, wandering: bool) -> None:
    chance, recorder = plan.chance(name), Recorder(plan.path, name)
    consumer = patiently(lambda: open_consumer(plan), stop)
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
    found = consumer.poll(timeout_ms=POLL_MS)
    if found:
        recorder.note("poll", [polled(found)], **said)
        for tp, records in found.items():
            reached[tp] = max(reached.get(tp, 0), records[-1].offset + 1)
    return found


class Watch(ConsumerRebalanceListener):
    """Writes down what a member was given."""

    def __init__(self, recorder: Recorder, group: str) -> None:
        self.recorder = recorder
        self.group = group
        self.consumer: Any = None

    def epochs(self) -> dict[str, int]:
        held = self.consumer._group._membership.held
        return {f"{tp.topic}-{tp.partition}": claim.epoch for tp, claim in held.items()}

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        names = {f"{tp.topic}-{tp.partition}" for tp in assigned}
        epochs = {name: epoch for name, epoch in self.epochs().items() if name in names}
        self.recorder.note("claim", group=self.group, epochs=epochs)
        self.recorder.note("subscribe")

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self.recorder.note("subscribe")


def subscriber(plan: Plan, name: str, stop: Stop) -> None:
    """A member of a group that commits what it has read."""
    recorder = Recorder(plan.path, name)
    listener = Watch(recorder, plan.group)

    def join() -> Consumer:
        consumer = open_consumer(
            plan, group_id=plan.group, enable_auto_commit=False, session_timeout_ms=1500,
            heartbeat_interval_ms=200,
        )  # fmt: skip
        listener.consumer = consumer
        consumer.subscribe([plan.topic], listener=listener)
        return consumer

    consumer = patiently(join, stop)
    if consumer is None:
        return
    reached: dict[TopicPartition, int] = {}
    while not stop.is_set():
        with suppress(LogstoreError):
            found = _poll(recorder, consumer, reached, group=plan.group)
            if not found:
                continue
            epochs = listener.epochs()
            offsets = {f"{tp.topic}-{tp.partition}": records[-1].offset + 1 for tp, records in found.items()}
            epochs = {each: epochs[each] for each in offsets if each in epochs}
            if epochs.keys() != offsets.keys():
                continue  # some of it is somebody else's already
            op = recorder.begin("commit", group=plan.group, offsets=offsets, epochs=epochs)
            try:
                consumer.commit({tp: records[-1].offset + 1 for tp, records in found.items()})
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
        with suppress(LogstoreError):
            connection = Connection.open(plan.dsn, timeout_s=3, application_name="chaos")
            with closing(connection):
                while not stop.wait(0.05):
                    with recorder.operation("marks", node="leader") as op:
                        op.said["marks"] = connection.run(_marks(plan), timeout_s=3)
        stop.wait(0.05)
    recorder.close()


def _marks(plan: Plan) -> Call[dict[str, dict[str, int]]]:
    return Call(
        "SELECT partition, log_start, high_watermark, log_end_offset, leader_epoch FROM logstore.partitions"
        " WHERE topic = $1::text",
        (plan.topic,),
        lambda rows: {
            f"{plan.topic}-{partition}": {"log_start": start, "hw": high, "end": end, "epoch": epoch}
            for partition, start, high, end, epoch in rows
        },
        "marks",
    )


def finish(plan: Plan, name: str = "last") -> None:
    """Read everything there is, and write down the log as it lies there."""
    recorder = Recorder(plan.path, name)
    with closing(Connection.open(plan.dsn)) as looking:
        ends = {each: found["end"] for each, found in looking.run(_marks(plan)).items()}
    with psycopg.connect(plan.dsn) as connection:
        batches = connection.execute(
            "SELECT partition, base_offset, record_count, leader_epoch, producer_id, producer_epoch"
            " FROM logstore.batches b JOIN logstore.topic t USING (topic_id) WHERE t.name = %s"
            " ORDER BY partition, last_offset",
            [plan.topic],
        ).fetchall()
    consumer = open_consumer(plan)
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
