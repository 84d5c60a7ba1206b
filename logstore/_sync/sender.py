# Generated from logstore/_async/sender.py by tools/unasync.py; edit that file.
"""The half of a producer that runs in the background: what its lanes share.

Lanes are the connections that requests take.  The first opens with the producer; another does when there is
so much to send that the server could work on two requests at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from random import random, randrange
from secrets import randbits
from time import monotonic
from weakref import ref

from logstore._core.accumulator import Accumulator
from logstore._core.backoff import Backoff
from logstore._core.batch import Batch
from logstore._core.calls import TopicMetadata
from logstore._core.partitioner import as_partitioner
from logstore._core.queues import Limits
from logstore._core.quota_calls import QuotaCalls
from logstore._core.tally import Tally
from logstore._core.throttle import Throttle
from logstore._core.transaction import HeldRecords
from logstore._sync.concurrency import Condition, Event, Lock
from logstore._sync.futures import SendFuture
from logstore._sync.lane import Lane
from logstore._sync.session import Session
from logstore.config import ProducerConfig
from logstore.errors import (
    ClientClosedError,
    LogstoreError,
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
GRACE_S = 1.0
"""How long a request is given whose records have no time left."""


class _Lookup:
    """Somebody waits to know whether a topic exists."""

    __slots__ = ("error", "event", "waiting")

    def __init__(self) -> None:
        self.event = Event()
        self.error: LogstoreError | None = None
        self.waiting = 0


class Sender:
    """Sends for one producer.  ``lock`` guards the accumulator and everything here that several touch.

    The methods for the lanes are called with the lock held, unless they say otherwise.
    """

    def __init__(self, session: Session, config: ProducerConfig, owner: object) -> None:
        self.lock = Lock()
        self.work = Condition(self.lock)
        """There may be something to send."""
        self.progress = Condition(self.lock)
        """There may be room in the buffer, or the producer is being closed."""
        self.tally = Tally()
        self.throttle = Throttle()
        """Set by what the server says of the quota; nothing is appended before it is over."""
        self.quota_calls = QuotaCalls(config.schema)
        self.session = session
        self.config = config
        self.timeout_s = config.request_timeout_ms / 1000
        self.backoff = Backoff(config.retry_backoff_ms / 1000, config.retry_backoff_max_ms / 1000, random)
        self.share = config.max_in_flight_requests_per_connection
        # A transaction numbers what it writes itself.
        numbered = config.enable_idempotence and config.transactional_id is None
        kind = Accumulator if config.transactional_id is None else HeldRecords
        self.accumulator: Accumulator[SendFuture] = kind(
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
            backoff=self.backoff,
            promise=SendFuture,
            lock=self.lock,
            new_producer_id=partial(randbits, 63) if numbered else None,
        )
        self.telling: dict[Batch, Event] = {}
        """Batches that are done, whose callbacks have not all returned, with the event that they have."""
        self.closing = False
        self.aborted = False
        self._lanes = [Lane(self)]
        self._owner = ref(owner)
        self._lookups: dict[str, _Lookup] = {}
        self._looking_up: set[str] = set()
        self._look_for_stale_at = 0.0
        self._woken: dict[int, float] = {}
        self._to_wake: dict[int, float] = {}

    # ---- for the producer

    def start(self) -> None:
        """Connect and begin to send.  Raises what keeps it from connecting."""
        self._lanes[0].connect()
        self._lanes[0].begin()

    @property
    def is_current(self) -> bool:
        """The caller is called back by this sender."""
        return any(lane.task is not None and lane.task.is_current for lane in self._lanes)

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
                f"Nothing was learned about topic {topic!r} within {self.config.max_block_ms} ms.{cause}"
            ) from lookup.error

    def close(self, timeout_s: float | None) -> None:
        """Send what is left, for at most ``timeout_s`` seconds; what is not acknowledged by then fails."""
        until = None if timeout_s is None else monotonic() + timeout_s
        with self.lock:
            self.closing = True
            self.accumulator.urgent += 1
            self.work.notify_all()
            self.progress.notify_all()
        if self.is_current:
            return
        try:
            self._ended(until)
        finally:
            # Also when Ctrl-C, or the cancellation of the caller, ends the wait.
            self.abort(ClientClosedError("The producer was closed before the record was acknowledged."))
        self._ended(monotonic() + CLOSE_S)
        self.session.close()

    def _ended(self, until: float | None) -> None:
        for lane in self._lanes:
            if lane.task is not None:
                lane.task.join(None if until is None else max(0.0, until - monotonic()))

    def left_by(self, lane: Lane) -> bool:
        """Without the lock: ``lane`` has nothing left to do; whether it is the last one.

        Others may be sending still: what is unawaited counts as done before it is on its way.
        """
        with self.lock:
            lane.ended = True
            return all(each.ended for each in self._lanes)

    def abort(self, error: LogstoreError) -> None:
        """Fail everything that is not done, and drop the connections."""
        with self.lock:
            self.closing = self.aborted = True
            failed = self.accumulator.abandon(error)
            self.publish(failed)
            for lookup in self._lookups.values():
                lookup.error = error
                lookup.event.set()
            self.work.notify_all()
            self.progress.notify_all()
            connections = [lane.connection for lane in self._lanes if lane.connection is not None]
        if failed:
            _log.warning("%d records were not delivered: %s", sum(map(len, failed)), error.message)
        # Their records are not released: a lane may be reading them.
        self.call_back(failed)
        for connection in connections:
            connection.abort()

    def forked(self, error: LogstoreError) -> None:
        """In the child of a fork: everything is the parent's, connections too.  Nothing may be locked."""
        self.lock = Lock()
        self._lanes = []
        for batch in self.accumulator.incomplete():
            batch.fail(error)

    # ---- for the lanes

    def patience_s(self, due_by: float) -> float:
        """Without the lock: how long a request may take, when batches have to be done by then."""
        return min(self.timeout_s, max(due_by - monotonic(), GRACE_S))

    def another_lane(self, now: float) -> Lane | None:
        """A new lane, to be begun, if there is more to send than those that there are can take."""
        if not self.accumulator.due(now):
            return None
        self.work.notify_all()
        if len(self._lanes) >= self.share or self.closing:
            return None
        lane = Lane(self)
        self._lanes.append(lane)
        return lane

    def throttled(self, throttle_ms: int, now: float) -> None:
        """An answer said how long to wait, by the quota; 0: not at all."""
        if self.throttle.told(throttle_ms, now):
            _log.warning(
                "Client %r has used up its producer quota; it sends nothing more for %d ms.",
                self.config.client_id,
                throttle_ms,
            )
        self.accumulator.hindrance = "The producer's quota is used up." if throttle_ms > 0 else ""
        if throttle_ms > 0:
            # A transaction was told: a lane that has nothing to send is to ask when that is over.
            self.work.notify_all()

    def finished(self) -> bool:
        """There is nothing left to do, nor will there be."""
        if self.aborted or (self.closing and self.accumulator.idle):
            return True
        if self._owner() is None and not self.closing:
            self.closing = True
            self.accumulator.urgent += 1
            self.work.notify_all()
        return False

    def pause(self, now: float) -> float:
        """Seconds until there may be something to do."""
        due = [IDLE_S]
        due += [at - now for at in self._to_wake.values()]
        wait = self.accumulator.wait_s(now)
        if self.throttle.left(now) > 0:
            due.append(self.throttle.pause(now))
        if wait is not None:
            # While nothing may be sent, time-outs are looked for once a second.
            due.append(max(wait, min(self.throttle.pause(now), 1.0)))
        if self._lookups.keys() - self._looking_up:
            due.append(0.0)
        return max(0.0, min(due))

    def publish(self, batches: Sequence[Batch]) -> None:
        """Tell those who wait for these batches, which are done."""
        for batch in batches:
            if batch.event is not None:
                batch.event.set()
            if batch.callbacks:
                self.telling.setdefault(batch, Event())
            if batch.error is not None:
                self.tally.errors += len(batch)
        if batches:
            self.progress.notify_all()

    def call_back(self, batches: Sequence[Batch]) -> None:
        """Without the lock: call those who want to be told of these batches, which are done."""
        for batch in batches:
            with self.lock:
                callbacks, batch.callbacks = batch.callbacks, None
            try:
                for callback in callbacks or ():
                    callback()
            finally:
                with self.lock:
                    told = self.telling.pop(batch, None)
                if told is not None:
                    told.set()

    def topics_to_look_up(self, now: float) -> list[str]:
        """Topics that somebody wants to know about, or that were last described long ago; each is given
        once.
        """
        names = set(self._lookups)
        if now >= self._look_for_stale_at:
            self._look_for_stale_at = now + 1.0
            names.update(self.accumulator.stale(now - self.config.metadata_max_age_ms / 1000))
        names -= self._looking_up
        self._looking_up |= names
        return sorted(names)

    def not_described(self, names: Sequence[str], error: LogstoreError) -> None:
        """The server could not be asked about topics."""
        self._looking_up.difference_update(names)
        for name in names:
            if lookup := self._lookups.get(name):
                lookup.error = error
                if not error.retriable:
                    lookup.event.set()
                    del self._lookups[name]
        self.accumulator.postpone(names, monotonic())

    def described(self, names: Sequence[str], topics: Sequence[TopicMetadata]) -> list[Batch]:
        """What the server says of topics; the result are batches that have nowhere to go any more."""
        self._looking_up.difference_update(names)
        orphans = self.accumulator.update(topics, monotonic())
        found = {metadata.topic for metadata in topics}
        for name in names:
            if name not in found:
                orphans += self.accumulator.forget(name)
            if lookup := self._lookups.pop(name, None):
                lookup.error = None if name in found else _missing(name)
                lookup.event.set()
        self.publish(orphans)
        return orphans

    def appended(self, batches: Sequence[Batch]) -> None:
        """There is something new for consumers."""
        for batch in batches:
            topic_id = batch.queue.topic.topic_id
            self._to_wake.setdefault(topic_id, self._woken.get(topic_id, 0.0) + WAKE_EVERY_S)

    def topics_to_wake(self, now: float) -> list[int]:
        """Topics whose consumers are to be woken now; each is given once."""
        due = [topic_id for topic_id, at in self._to_wake.items() if at <= now or self.closing]
        for topic_id in due:
            del self._to_wake[topic_id]
            self._woken[topic_id] = now
        return due


def _missing(name: str) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(f"There is no topic {name!r}.", details={"topic": name})
