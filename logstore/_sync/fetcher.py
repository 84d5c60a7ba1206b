# Generated from logstore/_async/fetcher.py by tools/unasync.py; edit that file.
"""The half of a consumer that runs in the background: one task, which alone uses the one connection.

It looks positions up, fetches ahead, waits for records, connects again when the connection is lost, and
asks the server what the user's side wants to know.  Both sides meet in the subscription, under one lock.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import random
from typing import Any, Generic, TypeVar

from logstore._core.backoff import Backoff
from logstore._core.call import Call
from logstore._core.calls import EARLIEST, ListedOffset, TopicMetadata
from logstore._core.fetch_tally import FetchTally
from logstore._core.pace import LONGEST_S, Way
from logstore._core.quota_calls import QuotaCalls
from logstore._core.subscription import Subscription
from logstore._core.throttle import Throttle, refused_for_ms
from logstore._sync.concurrency import Condition, Lock, Task, spawn
from logstore._sync.driver import Connection
from logstore._sync.session import Session
from logstore._sync.tiered import FileReads, resolved
from logstore._sync.waiting import Waiting
from logstore.consumer_config import ConsumerConfig
from logstore.errors import (
    ClientClosedError,
    LogstoreError,
    RequestTimedOutError,
    RetriableError,
    ThrottlingQuotaExceededError,
    UnknownTopicOrPartitionError,
)
from logstore.records import TopicPartition

__all__ = ["Fetcher", "Question"]

T = TypeVar("T")

_log = logging.getLogger("logstore.consumer")

IDLE_S = 5.0
"""How often a fetcher that has nothing to do looks whether its consumer still exists."""
CLOSE_S = 2.0
"""How long closing waits for a server that does not answer."""


class Question(Generic[T]):
    """Something that the user's side wants to know from the server."""

    __slots__ = ("answer", "call", "done", "error", "then")

    def __init__(self, call: Call[T], then: Callable[[], object] | None) -> None:
        self.call = call
        self.then = then
        """Called, on the fetcher's side, when there is an answer or an error."""
        self.done = False
        self.answer: T | None = None
        self.error: LogstoreError | None = None


class Fetcher:
    """Fetches for one consumer.  ``lock`` guards ``subscription`` and everything here that is not the task's
    own.
    """

    def __init__(
        self, config: ConsumerConfig, session: Session, subscription: Subscription, lock: Lock
    ) -> None:
        self._config = config
        self._session = session
        self._calls = session.calls
        self._subscription = subscription
        self._lock = lock
        self._timeout_s = config.request_timeout_ms / 1000
        self.changed = Condition(lock)
        """Something changed that the user's side may wait for."""
        self._work = Condition(lock)
        self._questions: deque[Question[Any]] = deque()
        self._topics: tuple[str, ...] | None = None
        self._attention = False
        self.caught_up = False
        """The last look brought nothing, and nothing has been changed since."""
        self._sleeping = False
        self.parked = False
        """Nothing is to be done until the user's side changes something."""
        self.closing = False
        self.online = False
        """There is a connection."""
        self.error: LogstoreError | None = None
        """What stopped fetching, to be raised to the user."""
        self._told = False
        self._failure: LogstoreError | None = None
        self._metadata_due = 0.0
        self._task: Task | None = None
        self._files = FileReads(self, subscription, lock, session.calls.schema)
        # The task's own:
        self._connection: Connection | None = None
        self._waiting: Waiting | None = None
        self._follower = False
        self._looked_at_staging = False
        self.tally = FetchTally()
        self.throttle = Throttle()
        """Set by what the server says of the quota; nothing is fetched before it is over."""
        self._quota_calls = QuotaCalls(config.schema)
        self._backoff = Backoff(
            config.reconnect_backoff_ms / 1000, config.reconnect_backoff_max_ms / 1000, random
        )

    # -- the user's side -----------------------------------------------------------------------------------

    def start(self, topics: tuple[str, ...] | None) -> None:
        """Connect, look the topics up (None: they are assigned one by one) and begin to fetch."""
        self._topics = topics
        self._connect()
        if topics:
            self._refresh_metadata()
        self._task = spawn(self._run, name="logstore-consumer")

    def follow(self, topics: tuple[str, ...] | None) -> None:
        """Read all partitions of ``topics``; None: what is assigned one by one.  The lock must be held."""
        self._topics = topics
        self._metadata_due = 0.0
        self._subscription.needs_metadata = True
        self.disturb()

    def disturb(self) -> None:
        """Make the task look at what has changed, whatever it waits for.  The lock must be held."""
        self._attention = True
        self.caught_up = False
        self._work.notify_all()
        if self._sleeping and self._connection is not None:
            self._connection.interrupt()

    def ask(self, call: Call[T], timeout_s: float | None = None) -> T:
        """What the server answers to ``call``, which only reads: if need be another connection asks again.

        Raises RequestTimedOutError after ``timeout_s`` seconds, by default ``request_timeout_ms``.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        question = self.post(call)
        with self._lock:
            self._resume()
            try:
                while not question.done:
                    self.check()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self.timed_out(call.name)
                    self.changed.wait(left)
            finally:
                if not question.done and question in self._questions:
                    self._questions.remove(question)
        if question.error is not None:
            raise question.error
        return question.answer  # type: ignore[return-value]

    def list_offsets(
        self, topic_ids: Sequence[int], partitions: Sequence[int], specs: Sequence[int]
    ) -> list[ListedOffset]:
        """What :meth:`Calls.list_offsets` answers, looked up in files where need be."""
        rows = self.ask(self._calls.list_offsets(topic_ids, partitions, specs))
        return [
            resolved(self.ask, self._calls.schema, topic_ids[row.idx - 1], partitions[row.idx - 1], row)
            for row in rows
        ]

    def post(self, call: Call[T], then: Callable[[], object] | None = None) -> Question[T]:
        """Ask without waiting: the answer will be in what this returns, once it is ``done``.

        ``then`` is called at that time, on the fetcher's side.
        """
        question = Question(call, then)
        with self._lock:
            self._questions.append(question)
            self.disturb()
        return question

    def timed_out(self, what: str) -> LogstoreError:
        """Why there is no answer to ``what`` in time."""
        if not self.online and self._failure is not None:
            return self._failure
        return RequestTimedOutError(f"The server did not answer {what!r} in time.")

    def check(self) -> None:
        """Raises when the consumer is closed or cannot go on.  The lock must be held."""
        if self.closing:
            raise ClientClosedError("The consumer is closed.")
        if self.error is not None:
            self._told = True
            raise self.error

    def try_again(self) -> None:
        """The user is back after an error: what it stopped is tried once more.  The lock must be held."""
        self._resume()
        if self._subscription.try_again():
            self.disturb()

    def _resume(self) -> None:
        if self._told:
            self._told, self.error = False, None
            self.disturb()

    def stop(self) -> None:
        """End the task and its connection; waits no longer than a moment for the server."""
        with self._lock:
            self.closing = True
            self.changed.notify_all()
            self.disturb()
        self._files.stop()
        task = self._task
        if task is None:
            self._disconnect()
        elif not task.is_current and not task.join(CLOSE_S):
            connection = self._connection
            if connection is not None:
                connection.abort()
            task.cancel()
            task.join(CLOSE_S)

    def abandon(self) -> None:
        """The consumer is gone without being closed.  Takes no lock: a garbage collector may call it."""
        self.closing = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    # -- the task ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        try:
            while not self.closing:
                try:
                    if self._connection is None:
                        self._connect()
                    self._turn()
                    failures = 0
                except RetriableError as error:
                    failures += 1
                    self._disconnect()
                    _log.warning("Reading stopped, trying again: %s", error)
                    self._failure = error
                    self._rest(self._backoff.delay(failures))
                except LogstoreError as error:
                    self._report(error)
        finally:
            with self._lock:
                self.closing = True
                self.changed.notify_all()
            self._disconnect()

    def _connect(self) -> None:
        connection, info = self._session.open()
        self._connection = connection
        self._follower = info.is_in_recovery
        self._waiting = Waiting(
            connection,
            self._calls,
            self._config.wakeup,
            follower=info.is_in_recovery,
            timeout_s=self._timeout_s,
        )
        with self._lock:
            self._metadata_due = 0.0  # it may be another server than before
            self.online = True

    def _disconnect(self) -> None:
        with self._lock:
            self.online = False
            connection, self._connection = self._connection, None
            self.changed.notify_all()
        if connection is not None:
            if self._waiting is not None:
                self._waiting.outbox.leave()
            connection.close()

    def _turn(self) -> None:
        """One round: whatever is to be done now, or waiting for something to do."""
        with self._lock:
            self._attention = False
            self.parked = False
            question = self._questions[0] if self._questions else None
            metadata = self._metadata_is_due()
        if question is not None:
            self._answer(question)
        elif metadata:
            self._refresh_metadata()
        elif not self._looked_at_staging:
            # What was committed before is to be there when the ends of the partitions are looked up.
            assert self._waiting is not None
            self._looked_at_staging = True
            self._waiting.outbox.look()
        elif not self._look_positions_up():
            self._fetch()

    def _answer(self, question: Question[Any]) -> None:
        assert self._connection is not None
        try:
            question.answer = self._connection.run(question.call, timeout_s=self._timeout_s)
        except RetriableError:
            raise  # the question stays, for the next connection
        except LogstoreError as error:
            question.error = error
        with self._lock:
            question.done = True
            if question in self._questions:
                self._questions.remove(question)
            self.changed.notify_all()
        if question.then is not None:
            question.then()

    def _metadata_is_due(self) -> bool:
        subscription = self._subscription
        stale = subscription.needs_metadata or time.monotonic() >= self._metadata_due
        return stale and bool(self._topics or subscription.topics())

    def _refresh_metadata(self) -> None:
        assert self._connection is not None
        with self._lock:
            topics = self._topics
            names = sorted(self._subscription.topics().union(topics or ()))
        found = self._connection.run(self._calls.metadata(names), timeout_s=self._timeout_s)
        with self._lock:
            if topics == self._topics:
                self._learn(topics, found)
            self._metadata_due = time.monotonic() + self._config.metadata_max_age_ms / 1000
            self.changed.notify_all()

    def _learn(self, topics: tuple[str, ...] | None, found: list[TopicMetadata]) -> None:
        subscription = self._subscription
        if topics is not None:
            before = subscription.assignment
            there = [
                TopicPartition(each.topic, number) for each in found for number in range(each.partitions)
            ]
            # A topic that is gone keeps its partitions, so that the next poll says so.
            names = {each.topic for each in found}
            gone = [tp for tp in before if tp.topic in topics and tp.topic not in names]
            wanted = [tp for tp in there if tp.topic in topics]
            # A partition added to a topic that is read already begins at its start: nothing of it was seen.
            begun = {tp.topic for tp in before}
            subscription.assign(
                [*gone, *(tp for tp in wanted if tp in before or tp.topic in begun)], EARLIEST
            )
            subscription.assign([*gone, *wanted])
            missing = [name for name in topics if name not in names and name not in begun]
            if missing:
                raise UnknownTopicOrPartitionError(
                    f"There is no topic {missing[0]!r}.", details={"topic": missing[0]}
                )
        subscription.learn({each.topic: (each.topic_id, each.partitions) for each in found})

    def _look_positions_up(self) -> bool:
        assert self._connection is not None
        with self._lock:
            request = self._subscription.pending_resets(round(time.time() * 1000))
            if request is None:
                return False
        call = self._calls.list_offsets(request.topic_ids, request.partitions, request.specs)
        try:
            rows = self._connection.run(call, timeout_s=self._timeout_s)
            rows = [
                resolved(
                    self._connection.run,
                    self._calls.schema,
                    request.topic_ids[row.idx - 1],
                    request.partitions[row.idx - 1],
                    row,
                )
                for row in rows
            ]
        except UnknownTopicOrPartitionError:
            with self._lock:
                self._subscription.needs_metadata = True
            return True
        with self._lock:
            self._subscription.offsets_listed(request, rows)
            self.changed.notify_all()
        return True

    def _fetch(self) -> None:
        assert self._connection is not None
        assert self._waiting is not None
        if self.throttle.left(time.monotonic()) > 0:
            self._keep_to_quota()
            return
        with self._lock:
            self._subscription.has_room = False
            request = self._subscription.next_fetch()
            if self._subscription.reads_files:
                self._files.wake()
            self._tell()  # of errors that were found on the way here, such as a missing reset policy
        if request is None:
            self._park()
            return
        config = self._config
        call = self._calls.fetch(
            request.topic_ids,
            request.partitions,
            request.offsets,
            config.fetch_max_bytes,
            config.max_partition_fetch_bytes,
        )
        began = time.monotonic()
        try:
            rows = self._connection.run(call, timeout_s=self._timeout_s)
        except ThrottlingQuotaExceededError as error:
            self._throttled(refused_for_ms(error.details))
            return
        self._throttled(rows.throttle_ms)
        now = time.monotonic()
        with self._lock:
            self.tally.fetched(rows, now - began)
            found = self._subscription.fetched(request, rows, follower=self._follower)
            behind = self._subscription.behind(request)
            self._tell()
            files = self._subscription.reads_files
            self._is_caught_up(not found and not files)
            if files:
                self._files.wake()
        drained, self._waiting.brought = self._waiting.brought, False
        if found:
            if not drained:
                self._waiting.pace.found(now)
            if behind:
                if self._waiting.outbox.seated and self._waiting.drain_is_due():
                    self._waiting.outbox.look()
                return
        # Whoever has appended since that look wakes us, if we had announced ourselves before it.
        pause = self._waiting.pace.pause(now, now - began)
        if pause.way is Way.PAUSE:
            self._waiting.not_waiting()
            self._pause_and_drain(pause.seconds, request.topic_ids)
        elif not self._waiting.announced(request.topic_ids):
            self._sleep_and_drain(pause.seconds, request.topic_ids)

    def _throttled(self, throttle_ms: int) -> None:
        """An answer said how long to wait, by the quota; 0: not at all."""
        with self._lock:
            news = self.throttle.told(throttle_ms, time.monotonic())
        if news:
            _log.warning(
                "Client %r has used up its consumer quota; it fetches nothing more for %d ms.",
                self._config.client_id,
                throttle_ms,
            )

    def charge(self, size: int) -> None:
        """``size`` bytes have come another way: they count against the quota as well."""

        question = Question(self._quota_calls.charge_quota("fetch", size), None)
        question.then = lambda: self._throttled(question.answer or 0)
        with self._lock:
            self._questions.append(question)
            self.disturb()

    def _keep_to_quota(self) -> None:
        """Fetch nothing, for a while; questions are answered, and who drains goes on draining."""
        assert self._connection is not None
        assert self._waiting is not None
        self._waiting.not_waiting()
        now = time.monotonic()
        if self.throttle.to_ask(now):
            left_ms: int | None = None
            call = self._quota_calls.quota_state("fetch")
            try:
                left_ms = self._connection.run(call, timeout_s=self._timeout_s)
            finally:
                self.throttle.asked(left_ms, time.monotonic())
        elif self._waiting.outbox.seated:
            self._sleep(self.throttle.pause(now))
        else:
            self._pause(self.throttle.pause(now))

    def _sleep_and_drain(self, seconds: float, topic_ids: Sequence[int]) -> None:
        assert self._waiting is not None
        outbox = self._waiting.outbox
        if outbox.due_in(time.monotonic()) <= 0 and self._drained(topic_ids):
            return
        # Fetching and draining take turns, so that both together are less than one query a second.
        if self._sleep(seconds) and (outbox.due_in(time.monotonic()) > 0 or not self._drained(topic_ids)):
            self._sleep(seconds)

    def _pause_and_drain(self, seconds: float, topic_ids: Sequence[int]) -> None:
        assert self._waiting is not None
        if self._waiting.drain_is_due() and self._drained(topic_ids):
            return
        if self._pause(seconds) and seconds >= LONGEST_S and not self._drained(topic_ids):
            self._pause(seconds)

    def _drained(self, topic_ids: Sequence[int]) -> bool:
        """Drain what transactions have staged; whether some of it was for us."""
        assert self._waiting is not None
        return self._waiting.drained(set(map(str, topic_ids)))

    def file_was_read(self) -> None:
        """A file has brought records, an error, or nothing.  The lock must be held."""
        self._tell()
        if not self._subscription.reads_files:
            self.disturb()

    def _is_caught_up(self, now: bool) -> None:
        if now != self.caught_up:
            self.caught_up = now
            self.changed.notify_all()

    def _tell(self) -> None:
        """Wake the user's side if there is something for it.  The lock must be held."""
        if self._subscription.has_news:
            self._subscription.has_news = False
            self.changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Wait, whatever the user's side wants."""
        until = time.monotonic() + seconds
        with self._lock:
            while not self.closing and (left := until - time.monotonic()) > 0:
                self._work.wait(left)

    def _pause(self, seconds: float) -> bool:
        """Wait for the user's side; whether it did not come."""
        with self._lock:
            return not self._disturbed() and not self._work.wait(seconds)

    def _sleep(self, seconds: float) -> bool:
        """Wait to be woken by the server, or by the user's side; whether neither did."""
        assert self._connection is not None
        assert self._waiting is not None
        with self._lock:
            if self._disturbed():
                return False
            self._sleeping = True
        try:
            return self._waiting.attend(seconds, self._disturbed)
        finally:
            with self._lock:
                self._sleeping = False

    def _disturbed(self) -> bool:
        return self._attention or self.closing

    def _park(self) -> None:
        assert self._waiting is not None
        self._waiting.not_waiting()
        with self._lock:
            if self._attention or self.closing or self._subscription.has_room:
                return
            self.parked = True
            self._is_caught_up(not self._subscription.reads_files)
            due = self._metadata_due - time.monotonic() if self._subscription.topics() else IDLE_S
            if not self._waiting.outbox.seated:
                self._work.wait(min(IDLE_S, due))
                return
        # Whoever drains goes on draining.
        self._sleep(min(IDLE_S, due))

    def _report(self, error: LogstoreError) -> None:
        if self._waiting is not None:
            self._waiting.outbox.leave()
        with self._lock:
            self.error = error
            for question in self._questions:
                question.error, question.done = error, True
            self._questions.clear()
            self.changed.notify_all()
            while self.error is not None and not self.closing:
                self.parked = True
                self._work.wait(IDLE_S)
