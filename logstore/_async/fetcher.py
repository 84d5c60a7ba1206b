"""The half of a consumer that runs in the background: one task, which alone uses the one connection.

It looks positions up, fetches ahead, waits for records, connects again when the connection is lost, and
asks the server what the user's side wants to know.  Both sides meet in the subscription, under one lock.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from random import random
from typing import Any, TypeVar

from logstore._async.bearings import Bearings
from logstore._async.concurrency import Condition, Lock, Task, spawn
from logstore._async.driver import Connection
from logstore._async.questions import Asking, Question
from logstore._async.replica_reads import ReplicaReads
from logstore._async.session import Session
from logstore._async.tiered import FileReads
from logstore._async.waiting import Waiting
from logstore._core.backoff import Backoff
from logstore._core.call import Call
from logstore._core.calls import Fetched, Sealed
from logstore._core.fetch_tally import FetchTally
from logstore._core.pace import Pace, Way
from logstore._core.quota_calls import QuotaCalls
from logstore._core.subscription import FetchRequest, Subscription
from logstore._core.throttle import Throttle, refused_for_ms
from logstore.consumer_config import ConsumerConfig
from logstore.errors import (
    LogstoreError,
    RetriableError,
    ThrottlingQuotaExceededError,
)

__all__ = ["Fetcher", "Question"]

T = TypeVar("T")

_log = logging.getLogger("logstore.consumer")

IDLE_S = 5.0
"""How often a fetcher that has nothing to do looks whether its consumer still exists."""
CLOSE_S = 2.0
"""How long closing waits for a server that does not answer."""


class Fetcher(Asking, Bearings):
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
        self.replicated = False
        """It is to a leader of whose log only what followers have may be read."""
        self.error: LogstoreError | None = None
        """What stopped fetching, to be raised to the user."""
        self._told = False
        self._failure: LogstoreError | None = None
        self._metadata_due = 0.0
        self._task: Task | None = None
        self._files = FileReads(self, subscription, lock, session.calls.schema)
        self.replica: ReplicaReads | None = None
        """Who reads from followers, if that is wanted."""
        if config.read_from != "leader":
            self.replica = ReplicaReads(self, config, session, subscription, lock)
        # The task's own:
        self._connection: Connection | None = None
        self._waiting: Waiting | None = None
        self._follower = False
        self._leader: tuple[int, int] | None = None
        self._sealing: Question[Sealed] | None = None
        self._looked_at_staging = False
        self.tally = FetchTally()
        self.throttle = Throttle()
        """Set by what the server says of the quota; nothing is fetched before it is over."""
        self._quota_calls = QuotaCalls(config.schema)
        self._backoff = Backoff(
            config.reconnect_backoff_ms / 1000, config.reconnect_backoff_max_ms / 1000, random
        )

    # -- the user's side -----------------------------------------------------------------------------------

    async def start(self, topics: tuple[str, ...] | None) -> None:
        """Connect, look the topics up (None: they are assigned one by one) and begin to fetch."""
        self._topics = topics
        await self._connect()
        if topics:
            await self._refresh_metadata()
        self._task = spawn(self._run, name="logstore-consumer")
        if self.replica is not None:
            self.replica.start()

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
        if self.replica is not None:
            self.replica.disturb()

    async def stop(self) -> None:
        """End the task and its connection; waits no longer than a moment for the server."""
        with self._lock:
            self.closing = True
            self.changed.notify_all()
            self.disturb()
        if self.replica is not None:
            await self.replica.stop()
        await self._files.stop()
        task = self._task
        if task is None:
            await self._disconnect()
        elif not task.is_current and not await task.join(CLOSE_S):
            connection = self._connection
            if connection is not None:
                connection.abort()
            task.cancel()
            await task.join(CLOSE_S)

    def abandon(self) -> None:
        """The consumer is gone without being closed.  Takes no lock: a garbage collector may call it."""
        self.closing = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    # -- the task ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        try:
            while not self.closing:
                try:
                    if self._connection is None:
                        await self._connect()
                    await self._turn()
                    failures = 0
                except RetriableError as error:
                    failures += 1
                    await self._disconnect()
                    _log.warning("Reading stopped, trying again: %s", error)
                    self._failure = error
                    await self._rest(self._backoff.delay(failures))
                except LogstoreError as error:
                    await self._report(error)
        finally:
            with self._lock:
                self.closing = True
                self.changed.notify_all()
            await self._disconnect()

    async def _connect(self) -> None:
        connection, info = await self._session.open()
        self._connection = connection
        self._follower = info.is_in_recovery
        self._waiting = Waiting(
            connection,
            self._calls,
            self._config.wakeup,
            follower=info.is_in_recovery,
            timeout_s=self._timeout_s,
            max_wait_ms=self._config.fetch_max_wait_ms,
        )
        with self._lock:
            self._metadata_due = 0.0  # it may be another server than before
            self.online = True
            self.replicated = info.replicated and not connection.access.read_only
            leader = (info.boot, info.timeline)
            if self._leader not in (None, leader) and not self._follower:
                self._subscription.doubt_all()
            self._leader = leader

    async def _disconnect(self) -> None:
        with self._lock:
            self.online = False
            connection, self._connection = self._connection, None
            self.changed.notify_all()
        if connection is not None:
            if self._waiting is not None:
                await self._waiting.outbox.leave()
            await connection.close()

    async def _turn(self) -> None:
        """One round: whatever is to be done now, or waiting for something to do."""
        with self._lock:
            self._attention = False
            self.parked = False
            question = self._questions[0] if self._questions else None
            metadata = self._metadata_is_due()
        if question is not None:
            await self._answer(question)
        elif metadata:
            await self._refresh_metadata()
        elif not self._looked_at_staging:
            # What was committed before is to be there when the ends of the partitions are looked up.
            assert self._waiting is not None
            self._looked_at_staging = True
            await self._waiting.outbox.look()
        elif not await self._check_history() and not await self._look_positions_up():
            await self._fetch()

    async def _answer(self, question: Question[Any]) -> None:
        assert self._connection is not None
        try:
            question.answer = await self._connection.run(question.call, timeout_s=self._timeout_s)
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

    async def _fetch(self) -> None:
        assert self._connection is not None
        assert self._waiting is not None
        if self.replica is not None and self.replica.serving:
            await self._stand_by(self.replica)
            return
        if self.throttle.left(time.monotonic()) > 0:
            await self._keep_to_quota()
            return
        with self._lock:
            self._subscription.has_room = False
            request = self._subscription.next_fetch()
            self.mind_files()
        if request is None:
            await self._park()
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
            rows = await self._connection.run(call, timeout_s=self._timeout_s)
        except ThrottlingQuotaExceededError as error:
            self.throttled(refused_for_ms(error.details))
            return
        self.throttled(rows.throttle_ms)
        now = time.monotonic()
        with self._lock:
            found = self.fetched(request, rows, now - began, self._waiting.pace, follower=self._follower)
            behind = self._subscription.behind(request)
            pending = self._subscription.pending(request) and not self._follower
        drained, self._waiting.brought = self._waiting.brought, False
        if found:
            if not drained:
                self._waiting.pace.found(now)
            if behind:
                if self._waiting.outbox.seated and await self._waiting.drain_is_due():
                    await self._waiting.outbox.look()
                return
        if pending:
            await self._have_sealed(request.topic_ids)
            return
        # Whoever has appended since that look wakes us, if we had announced ourselves before it.
        pause = self._waiting.pace.pause(now, now - began)
        if pause.way is Way.PAUSE:
            await self._waiting.not_waiting()
            await self._pause_and_drain(pause.seconds, request.topic_ids)
        elif not await self._waiting.announced(request.topic_ids):
            await self._sleep_and_drain(pause.seconds, request.topic_ids)

    def fetched(
        self, request: FetchRequest, rows: Fetched, seconds: float, pace: Pace, *, follower: bool
    ) -> bool:
        """``rows`` were fetched, here or from a follower; whether they brought records.  The lock must be
        held.
        """
        self.tally.fetched(rows, seconds)
        found = self._subscription.fetched(request, rows, follower=follower)
        soon = pace.hastens and self._subscription.pending(request)
        self._is_caught_up(not found and not soon and not self._subscription.reads_files)
        self.mind_files()
        return found

    def mind_files(self) -> None:
        """Have files read if it is their turn, and tell the user's side what there is (errors that were found
        on the way, too).  The lock must be held.
        """
        if self._subscription.reads_files:
            self._files.wake()
        self._tell()

    async def _have_sealed(self, topic_ids: Sequence[int]) -> None:
        """There are records that may not be read yet: find out what is replicated by now, and look soon."""
        assert self._connection is not None
        assert self._waiting is not None
        if not self._connection.access.read_only:
            await self._connection.run(self._calls.seal(), timeout_s=self._timeout_s)
        await self._pause_and_drain(self._waiting.pace.hasten().seconds, topic_ids)

    async def _stand_by(self, replica: ReplicaReads) -> None:
        """A follower is read from: what transactions stage is drained here, and when nothing has come for a
        while, who appends tells us, and we tell the one that reads.
        """
        assert self._waiting is not None
        with self._lock:
            topic_ids = self._subscription.topic_ids()
            due = min(IDLE_S, max(0.0, self._metadata_due - time.monotonic()))
        if not topic_ids or not replica.quiet or not self._waiting.pace.woken:
            await self._waiting.not_waiting()
            await self._pause_and_drain(min(due, self._waiting.pace.longest_s), topic_ids)
            return
        seconds = min(due, self._waiting.pace.longest_s)
        until = time.monotonic() + seconds
        if not await self._waiting.announced(topic_ids):
            await self._sleep_and_drain(seconds, topic_ids)
            if time.monotonic() >= until:
                return  # nobody has woken us
        with self._lock:
            replica.wake()

    def take_over(self, questions: Iterable[Question[Any]]) -> None:
        """A follower was asked, and does not answer any more.  The lock must be held."""
        self._questions.extend(questions)

    def post_to_reader(self, call: Call[T]) -> Question[T]:
        """:meth:`post` to the server that records are read from."""
        with self._lock:
            asked = None if self.replica is None else self.replica.post(call)
            return self.post(call) if asked is None else asked

    def seal_soon(self) -> None:
        """Have the leader find out what is replicated, if nobody has asked it to already."""
        with self._lock:
            if (self._sealing is None or self._sealing.done) and not self._follower:
                self._sealing = self.post(self._calls.seal())

    @property
    def reads_from(self) -> str | None:
        """The server that records are read from."""
        with self._lock:
            if self.replica is not None and self.replica.serving:
                return self.replica.where
            return None if self._connection is None else self._connection.dsn_for_display

    def nothing_to_fetch(self) -> None:
        """Nothing is to be done until the user's side changes something.  The lock must be held."""
        self.parked = True
        self._is_caught_up(not self._subscription.reads_files)

    def throttled(self, throttle_ms: int) -> None:
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
        question.then = lambda: self.throttled(question.answer or 0)
        with self._lock:
            self._questions.append(question)
            self.disturb()

    async def _keep_to_quota(self) -> None:
        """Fetch nothing, for a while; questions are answered, and who drains goes on draining."""
        assert self._connection is not None
        assert self._waiting is not None
        await self._waiting.not_waiting()
        now = time.monotonic()
        if self.throttle.to_ask(now):
            left_ms: int | None = None
            call = self._quota_calls.quota_state("fetch")
            try:
                left_ms = await self._connection.run(call, timeout_s=self._timeout_s)
            finally:
                self.throttle.asked(left_ms, time.monotonic())
        elif self._waiting.outbox.seated:
            await self._sleep(self.throttle.pause(now))
        else:
            await self._pause(self.throttle.pause(now))

    async def _sleep_and_drain(self, seconds: float, topic_ids: Sequence[int]) -> None:
        assert self._waiting is not None
        outbox = self._waiting.outbox
        if outbox.due_in(time.monotonic()) <= 0 and await self._drained(topic_ids):
            return
        # Fetching and draining take turns, so that both together are less than one query a second.
        if await self._sleep(seconds) and (
            outbox.due_in(time.monotonic()) > 0 or not await self._drained(topic_ids)
        ):
            await self._sleep(seconds)

    async def _pause_and_drain(self, seconds: float, topic_ids: Sequence[int]) -> None:
        assert self._waiting is not None
        if await self._waiting.drain_is_due() and await self._drained(topic_ids):
            return
        longest = seconds >= self._waiting.pace.longest_s
        if await self._pause(seconds) and longest and not await self._drained(topic_ids):
            await self._pause(seconds)

    async def _drained(self, topic_ids: Sequence[int]) -> bool:
        """Drain what transactions have staged; whether some of it was for us."""
        assert self._waiting is not None
        return await self._waiting.drained(set(map(str, topic_ids)))

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

    async def _rest(self, seconds: float) -> None:
        """Wait, whatever the user's side wants."""
        until = time.monotonic() + seconds
        with self._lock:
            while not self.closing and (left := until - time.monotonic()) > 0:
                await self._work.wait(left)

    async def _pause(self, seconds: float) -> bool:
        """Wait for the user's side; whether it did not come."""
        with self._lock:
            return not self._disturbed() and not await self._work.wait(seconds)

    async def _sleep(self, seconds: float) -> bool:
        """Wait to be woken by the server, or by the user's side; whether neither did."""
        assert self._connection is not None
        assert self._waiting is not None
        with self._lock:
            if self._disturbed():
                return False
            self._sleeping = True
        try:
            return await self._waiting.attend(seconds, self._disturbed)
        finally:
            with self._lock:
                self._sleeping = False

    def _disturbed(self) -> bool:
        return self._attention or self.closing

    async def _park(self) -> None:
        assert self._waiting is not None
        await self._waiting.not_waiting()
        with self._lock:
            if self._attention or self.closing or self._subscription.has_room:
                return
            self.nothing_to_fetch()
            due = self._metadata_due - time.monotonic() if self._subscription.topics() else IDLE_S
            if not self._waiting.outbox.seated:
                await self._work.wait(min(IDLE_S, due))
                return
        # Whoever drains goes on draining.
        await self._sleep(min(IDLE_S, due))

    async def _report(self, error: LogstoreError) -> None:
        if self._waiting is not None:
            await self._waiting.outbox.leave()
        with self._lock:
            self.error = error
            for question in self._questions:
                question.error, question.done = error, True
            self._questions.clear()
            self.changed.notify_all()
            while self.error is not None and not self.closing:
                self.parked = True
                await self._work.wait(IDLE_S)
