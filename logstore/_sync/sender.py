# Generated from logstore/_async/sender.py by tools/unasync.py; edit that file.
"""The half of a producer that runs in the background: one task, which alone uses the one connection.

It sends what the accumulator gives, in one request after the other, settles the futures, tries again what may
be tried again, looks topics up, connects again when the connection is lost, and wakes consumers that wait.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from random import random, randrange
from time import monotonic
from weakref import ref

from logstore._core.accumulator import Accumulator
from logstore._core.backoff import Backoff
from logstore._core.batch import Batch
from logstore._core.calls import AppendResult
from logstore._core.partitioner import as_partitioner
from logstore._core.queues import Limits
from logstore._core.tally import Tally
from logstore._sync.concurrency import Condition, Event, Lock, RightOfWay, Task, spawn
from logstore._sync.driver import Connection
from logstore._sync.futures import SendFuture
from logstore._sync.session import Session
from logstore.config import ProducerConfig
from logstore.errors import (
    ClientClosedError,
    LogstoreError,
    NotLeaderError,
    RecordTooLargeError,
    RequestTimedOutError,
    RetriableError,
    UnknownTopicOrPartitionError,
)

__all__ = ["Sender"]

_log = logging.getLogger("logstore.producer")

WAKE_EVERY_S = 0.005
"""Consumers of a topic are woken at most this often."""
IDLE_S = 5.0
"""How often a sender that has nothing to do looks whether its producer still exists."""
CLOSE_S = 2.0
"""How long closing waits for a server that does not answer."""

_UNAWAITED = (AppendResult(-1, -1, -1),)


class _Lookup:
    """Somebody waits to know whether a topic exists."""

    __slots__ = ("error", "event", "waiting")

    def __init__(self) -> None:
        self.event = Event()
        self.error: LogstoreError | None = None
        self.waiting = 0


class Sender:
    """Sends for one producer.  ``lock`` guards the accumulator and everything here that others touch."""

    def __init__(self, session: Session, config: ProducerConfig, owner: object) -> None:
        self.lock = Lock()
        self.work = Condition(self.lock)
        """There may be something to send."""
        self.progress = Condition(self.lock)
        """There may be room in the buffer, or the producer is being closed."""
        self.tally = Tally()
        backoff = Backoff(config.retry_backoff_ms / 1000, config.retry_backoff_max_ms / 1000, random)
        self.accumulator: Accumulator[SendFuture] = Accumulator(
            Limits(
                batch_size=config.batch_size,
                buffer_memory=config.buffer_memory,
                max_request_size=config.max_request_size,
                linger_s=config.linger_ms / 1000,
                delivery_timeout_s=config.delivery_timeout_ms / 1000,
                retries=config.retries,
            ),
            partitioner=as_partitioner(config.partitioner),
            choose=randrange,
            backoff=backoff,
            promise=SendFuture,
            lock=self.lock,
        )
        self.task: Task | None = None
        self._session = session
        self._config = config
        self._owner = ref(owner)
        self._backoff = backoff
        self._timeout_s = config.request_timeout_ms / 1000
        self._connection: Connection | None = None
        self._connect_at = 0.0
        self._connect_failures = 0
        self._lookups: dict[str, _Lookup] = {}
        self._woken: dict[int, float] = {}
        self._to_wake: dict[int, float] = {}
        self._look_for_stale_at = 0.0
        self._finished: list[Batch] = []
        self._way = RightOfWay()
        self._closing = False
        self._aborted = False

    # ---- for the producer

    def start(self) -> None:
        """Connect and begin to send.  Raises what keeps it from connecting."""
        self._connected()
        self.task = spawn(self._run, name="logstore-producer")

    def look_up(self, topic: str, timeout_s: float) -> None:
        """Ask the server about ``topic``; return when the accumulator knows what it said.

        Raises UnknownTopicOrPartitionError when there is no such topic, RequestTimedOutError when there is no
        answer in time.
        """
        with self.lock:
            lookup = self._lookups.setdefault(topic, _Lookup())
            lookup.waiting += 1
            self.work.notify_all()
        try:
            answered = lookup.event.wait(timeout_s)
        finally:
            with self.lock:
                lookup.waiting -= 1
                if not lookup.waiting and self._lookups.get(topic) is lookup:
                    del self._lookups[topic]
        if lookup.error is not None and (answered or not isinstance(lookup.error, RetriableError)):
            raise lookup.error
        if not answered:
            cause = "" if lookup.error is None else f"  The last error: {lookup.error.message}"
            raise RequestTimedOutError(
                f"Nothing was learned about topic {topic!r} within {self._config.max_block_ms} ms.{cause}"
            ) from lookup.error

    def stand_aside(self) -> None:
        """For callers that send much: let the sender send."""
        self._way.give()

    def close(self, timeout_s: float | None) -> None:
        """Send what is left, for at most ``timeout_s`` seconds; what is not acknowledged by then fails."""
        with self.lock:
            self._closing = True
            self.accumulator.urgent += 1
            self.work.notify_all()
            self.progress.notify_all()
        try:
            if self.task is not None and not self.task.is_current:
                self.task.join(timeout_s)
        finally:
            # Also when Ctrl-C, or the cancellation of the caller, ends the wait.
            if self.task is None or not self.task.is_current:
                self.abort(ClientClosedError("The producer was closed before the record was acknowledged."))
        if self.task is not None and not self.task.is_current:
            self.task.join(CLOSE_S)

    def abort(self, error: LogstoreError) -> None:
        """Fail everything that is not done, and drop the connection."""
        with self.lock:
            self._closing = self._aborted = True
            failed = self.accumulator.abandon(error)
            self._publish(failed)
            for lookup in self._lookups.values():
                lookup.error = error
                lookup.event.set()
            self.work.notify_all()
            self.progress.notify_all()
            connection = self._connection
        if failed:
            _log.warning("%d records were not delivered: %s", sum(map(len, failed)), error.message)
        # Their records are not released: the sender may be reading them.
        self._call_back(failed)
        if connection is not None:
            connection.abort()

    def forked(self, error: LogstoreError) -> None:
        """In the child of a fork: everything is the parent's, the connection too.  Nothing may be locked."""
        self.lock = Lock()
        self.task = self._connection = None
        for batch in self.accumulator.incomplete():
            batch.fail(error)

    # ---- the task

    def _run(self) -> None:
        error: LogstoreError = ClientClosedError("The producer is closed.")
        try:
            while self._turn():
                pass
            if self._connection is not None and not self._aborted:
                self._connection.close()
        except Exception as unexpected:
            _log.exception("The producer's sender failed.")
            error = LogstoreError(f"The producer's sender failed: {unexpected!r}.")
        finally:
            self.abort(error)
            if self._connection is not None:
                self._connection.close()
            self._session.close()

    def _turn(self) -> bool:
        """Do what is due, or wait until something is; False when there will be nothing more."""
        with self.lock:
            now = monotonic()
            accumulator = self.accumulator
            expired = accumulator.expire(now)
            self._publish(expired)
            topics = self._to_look_up(now)
            wakes = [topic for topic, due in self._to_wake.items() if due <= now or self._closing]
            batches = accumulator.drain(now) if now >= self._connect_at else []
            if not (expired or topics or wakes or batches):
                if self._aborted or (self._closing and accumulator.idle):
                    return False
                if self._owner() is None:
                    self._closing = True
                    accumulator.urgent += 1
                    return True
                if not self._finished:
                    self.work.wait(self._pause(now))
                    return not self._aborted
        if not batches:
            self._release()
        self._finish(expired)
        if wakes:
            self._wake(wakes)
        if topics:
            self._look_up(topics)
        if batches:
            self._deliver(batches)
        return not self._aborted

    def _pause(self, now: float) -> float:
        due = [IDLE_S]
        due += [at - now for at in self._to_wake.values()]
        wait = self.accumulator.wait_s(now)
        if wait is not None:
            due.append(wait)
        if self._lookups:
            due.append(0.0)
        return max(0.0, min(due), min(self._connect_at - now, IDLE_S))

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        if connection is not None:
            connection.close()
            self._connection = None
        try:
            connection, info = self._session.open()
            if info.is_in_recovery:
                where = connection.dsn_for_display
                connection.close()
                raise NotLeaderError(f"{where} is a follower: it takes no records.")
        except LogstoreError:
            self._connect_failures += 1
            self._connect_at = monotonic() + self._backoff.delay(self._connect_failures)
            raise
        with self.lock:
            self._connection = connection
            aborted = self._aborted
        if aborted:
            connection.abort()
        self._connect_failures = 0
        self.tally.connections += 1
        return connection

    # ---- records

    def _deliver(self, batches: Sequence[Batch]) -> None:
        unawaited = self._config.acks == 0
        started = monotonic()
        try:
            rows = [batch.encode() for batch in batches]
            if unawaited:
                with self.lock:
                    for batch in batches:
                        self.accumulator.settle(batch, _UNAWAITED)
                    self._publish(batches)
            connection = self._connected()
            call = self._session.calls.append([row for each in rows for row in each], self._config.acks)
            self._way.claim()
            try:
                results = connection.run(call, timeout_s=self._timeout_s, meanwhile=self._get_ahead)
            finally:
                self._way.leave()
        except LogstoreError as error:
            self._failed(batches, error)
        else:
            now = monotonic()
            with self.lock:
                if not unawaited:
                    at = 0
                    for batch, each in zip(batches, rows, strict=True):
                        self.accumulator.settle(batch, results[at : at + len(each)])
                        at += len(each)
                    self._publish(batches)
                for batch in batches:
                    topic_id = batch.queue.topic.topic_id
                    self._to_wake.setdefault(topic_id, self._woken.get(topic_id, 0.0) + WAKE_EVERY_S)
                self.tally.request(batches, now - started)
        if unawaited:
            self._finish(batches)
        else:
            self._finish([batch for batch in batches if batch.done])

    def _failed(self, batches: Sequence[Batch], error: LogstoreError) -> None:
        if self._config.acks == 0:
            self.tally.errors += sum(map(len, batches))
            _log.warning("%d unawaited records were lost: %s", sum(map(len, batches)), error.message)
            return
        if isinstance(error, NotLeaderError) and self._connection is not None:
            self._connection.abort()
        if not error.retriable and len(batches) > 1:
            # One of them is to blame, and only that one may fail.
            for batch in batches:
                self._deliver([batch])
            return
        again = error.retriable
        at_once = False
        if isinstance(error, UnknownTopicOrPartitionError | RecordTooLargeError):
            # The topic is not what it was: perhaps it was made again, or its limit was lowered.
            again = self._look_up([batches[0].queue.topic.name])
            batch = batches[0]
            queue = batch.queue
            if isinstance(error, RecordTooLargeError):
                again, at_once = batch.pieces < len(batch), True
                batch.pieces *= 2
            elif (
                queue not in queue.topic.queues
                or self.accumulator.topics.get(queue.topic.name) is not queue.topic
            ):
                again = False
        with self.lock:
            now = monotonic()
            for batch in batches:
                if again and self.accumulator.retry(batch, error, now, at_once=at_once):
                    self.tally.retries += len(batch)
                elif not batch.done:
                    self.accumulator.fail(batch, error)
            self._publish([batch for batch in batches if batch.done])

    def _publish(self, batches: Sequence[Batch]) -> None:
        """Under the lock: tell those who wait for these batches, which are done."""
        for batch in batches:
            if batch.event is not None:
                batch.event.set()
            if batch.error is not None:
                self.tally.errors += len(batch)
        if batches:
            self.progress.notify_all()

    def _finish(self, batches: Sequence[Batch]) -> None:
        """Outside of the lock: what is left to do with batches that are done."""
        self._call_back(batches)
        self._finished += batches

    def _call_back(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            with self.lock:
                callbacks, batch.callbacks = batch.callbacks, None
            for callback in callbacks or ():
                callback()

    def _get_ahead(self) -> None:
        """What is left of the last request, and what can be done for the next, while the server works."""
        self._way.leave()
        self._release()
        with self.lock:
            upcoming = self.accumulator.upcoming()
        for batch in upcoming:
            batch.prepare()

    def _release(self) -> None:
        """Freeing a batch takes as long as it is large: not while the server has nothing to do."""
        finished, self._finished = self._finished, []
        for batch in finished:
            batch.release()

    # ---- topics and consumers

    def _to_look_up(self, now: float) -> list[str]:
        if now < self._connect_at:
            return []
        names = set(self._lookups)
        if now >= self._look_for_stale_at:
            self._look_for_stale_at = now + 1.0
            names.update(self.accumulator.stale(now - self._config.metadata_max_age_ms / 1000))
        return sorted(names)

    def _look_up(self, names: Sequence[str]) -> bool:
        """Ask the server about topics; whether it answered."""
        try:
            connection = self._connected()
            described = connection.run(self._session.calls.metadata(names), timeout_s=self._timeout_s)
        except LogstoreError as error:
            with self.lock:
                for name in names:
                    if lookup := self._lookups.get(name):
                        lookup.error = error
                        if not error.retriable:
                            lookup.event.set()
                            del self._lookups[name]
                self.accumulator.postpone(names, monotonic())
            return False
        with self.lock:
            orphans = self.accumulator.update(described, monotonic())
            found = {metadata.topic for metadata in described}
            for name in names:
                lookup = self._lookups.pop(name, None)
                if name not in found:
                    orphans += self.accumulator.forget(name)
                if lookup is not None:
                    if name not in found:
                        lookup.error = UnknownTopicOrPartitionError(
                            f"There is no topic {name!r}.", details={"topic": name}
                        )
                    else:
                        lookup.error = None
                    lookup.event.set()
            self._publish(orphans)
        self._finish(orphans)
        return True

    def _wake(self, topic_ids: Sequence[int]) -> None:
        now = monotonic()
        for topic_id in topic_ids:
            del self._to_wake[topic_id]
            self._woken[topic_id] = now
        # A consumer that is not woken polls: a failure here costs it time and nothing else.
        with suppress(LogstoreError):
            if self._connection is not None and not self._connection.closed:
                self._connection.run(self._session.calls.wake(topic_ids), timeout_s=self._timeout_s)
