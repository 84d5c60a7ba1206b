# Generated from logstore/_async/lane.py by tools/unasync.py; edit that file.
"""One of a producer's connections, and the task that alone uses it: request, answer, request, answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from logstore._core.batch import Batch
from logstore._core.calls import AppendResult
from logstore._core.throttle import refused_for_ms
from logstore._sync.concurrency import Task, spawn
from logstore._sync.driver import Connection
from logstore.errors import (
    ClientClosedError,
    DuplicateSequenceError,
    LogstoreError,
    NotLeaderError,
    RecordTooLargeError,
    ThrottlingQuotaExceededError,
    UnknownTopicOrPartitionError,
)

if TYPE_CHECKING:
    from logstore._sync.sender import Sender

__all__ = ["Lane"]

_log = logging.getLogger("logstore.producer")

MUCH = 65536
"""From so many bytes on it gains time to prepare the next request while the server works on this one."""

_PLANS = "SET plan_cache_mode = force_generic_plan"
"""Otherwise PostgreSQL plans a statement five times with its values, and copies megabytes of them for it."""

_UNAWAITED = (AppendResult(-1, -1, -1),)


class Lane:
    """Sends what the accumulator gives, settles the futures, tries again what may be tried again.

    A partition's batches go one at a time, whichever lane they take: lanes never overtake each other.
    """

    def __init__(self, sender: Sender) -> None:
        self.task: Task | None = None
        self.connection: Connection | None = None
        self.ended = False
        """It has nothing to do any more.  Guarded by the sender's lock."""
        self._sender = sender
        self._finished: list[Batch] = []
        self._due_by = float("inf")
        self._connect_at = 0.0
        self._connect_failures = 0

    def begin(self) -> None:
        """Start the task."""
        self.task = spawn(self._run, name="logstore-producer")

    def connect(self) -> Connection:
        """The connection, opened again if it was lost.  Raises what keeps it from being opened."""
        sender, connection = self._sender, self.connection
        if connection is not None and not connection.closed:
            return connection
        if connection is not None:
            connection.close()
            self.connection = None
        try:
            connection, info = sender.session.open(sender.patience_s(self._due_by))
            try:
                why = connection.access.refusal(in_recovery=info.is_in_recovery)
                if why:
                    raise NotLeaderError(f"{connection.dsn_for_display} {why}: it takes no records.")
                if not connection.pooled:
                    connection.execute(_PLANS, timeout_s=sender.patience_s(self._due_by))
            except BaseException:
                connection.close()
                raise
        except LogstoreError:
            self._connect_failures += 1
            self._connect_at = monotonic() + sender.backoff.delay(self._connect_failures)
            raise
        with sender.lock:
            self.connection = connection
            sender.tally.connections += 1
            aborted = sender.aborted
        if aborted:
            connection.abort()
        self._connect_failures = 0
        return connection

    def _run(self) -> None:
        error: LogstoreError | None = ClientClosedError("The producer is closed.")
        try:
            # Before it takes any records, which would have to wait as long.
            with suppress(LogstoreError):
                self.connect()
            while self._turn():
                pass
            if self.connection is not None and not self._sender.aborted:
                self.connection.close()
            if not self._sender.left_by(self):
                error = None
        except Exception as unexpected:
            _log.exception("The producer's sender failed.")
            error = LogstoreError(f"The producer's sender failed: {unexpected!r}.")
        finally:
            if error is not None:
                self._sender.abort(error)
            if self.connection is not None:
                self.connection.close()

    def _turn(self) -> bool:
        """Do what is due, or wait until something is; False when there will be nothing more."""
        sender = self._sender
        with sender.lock:
            now = monotonic()
            expired = sender.accumulator.expire(now)
            sender.publish(expired)
            able = now >= self._connect_at
            topics = sender.topics_to_look_up(now) if able else []
            wakes = sender.topics_to_wake(now)
            ask = able and sender.throttle.to_ask(now)
            throttled = sender.throttle.left(now) > 0
            batches = sender.accumulator.drain(now, sender.share) if able and not throttled else []
            if not (expired or topics or wakes or batches or ask):
                if sender.finished():
                    return False
                if not self._finished:
                    sender.work.wait(max(sender.pause(now), min(self._connect_at - now, 1.0)))
                    return not sender.aborted
            another = sender.another_lane(now) if batches else None
            self._due_by = sender.accumulator.due_by(batches)
        if another is not None:
            another.begin()
        if not batches:
            self._release()
        self._finish(expired)
        if wakes:
            self._wake(wakes, busy=bool(batches))
        if topics:
            self._look_up(topics)
        if ask:
            self._ask_for_quota()
        if batches:
            self._deliver(batches)
        return not sender.aborted

    # ---- records

    def _deliver(self, batches: Sequence[Batch]) -> None:
        sender = self._sender
        unawaited = sender.config.acks == 0
        started = monotonic()
        try:
            rows = [batch.encode() for batch in batches]
            if unawaited:
                with sender.lock:
                    for batch in batches:
                        sender.accumulator.settle(batch, _UNAWAITED)
                    sender.publish(batches)
            connection = self.connect()
            call = sender.session.calls.append([row for each in rows for row in each], sender.config.acks)
            much = sum(batch.size for batch in batches) > MUCH
            results = connection.run(
                call,
                timeout_s=sender.patience_s(self._due_by),
                busy=much,
                meanwhile=partial(self._get_ahead, batches) if much else None,
            )
        except LogstoreError as error:
            self._failed(batches, error)
        else:
            now = monotonic()
            with sender.lock:
                if not unawaited:
                    at = 0
                    for batch, each in zip(batches, rows, strict=True):
                        sender.accumulator.settle(batch, results[at : at + len(each)])
                        at += len(each)
                    sender.publish(batches)
                sender.appended(batches)
                sender.tally.request(batches, now - started)
                sender.throttled(max(result.throttle_ms for result in results), now)
        self._finish([batch for batch in batches if batch.done])

    def _failed(self, batches: Sequence[Batch], error: LogstoreError) -> None:
        sender = self._sender
        count = sum(map(len, batches))
        refused = isinstance(error, ThrottlingQuotaExceededError)
        if refused:
            with sender.lock:
                sender.throttled(refused_for_ms(error.details), monotonic())
        if sender.config.acks == 0:
            with sender.lock:
                sender.tally.errors += count
            _log.warning("%d unawaited records were lost: %s", count, error.message)
            return
        if isinstance(error, NotLeaderError) and self.connection is not None:
            sender.session.forsake(self.connection)
        if not error.retriable and len(batches) > 1:
            # One of them is to blame, and only that one may fail.
            for batch in batches:
                self._deliver([batch])
            return
        again, at_once = error.retriable, refused
        if isinstance(error, UnknownTopicOrPartitionError | RecordTooLargeError):
            again, at_once = self._look_again(batches[0], error)
        with sender.lock:
            now = monotonic()
            for batch in batches:
                if again and sender.accumulator.retry(
                    batch, error, now, at_once=at_once, counted=not refused
                ):
                    sender.tally.retries += len(batch)
                elif isinstance(error, DuplicateSequenceError):
                    # It is in the log, and nobody knows where any more.
                    sender.accumulator.settle(batch, _UNAWAITED)
                elif not batch.done:
                    sender.accumulator.fail(batch, error)
            sender.publish([batch for batch in batches if batch.done])

    def _look_again(self, batch: Batch, error: LogstoreError) -> tuple[bool, bool]:
        """The topic is not what it was: whether to try again, and whether at once."""
        queue, sender = batch.queue, self._sender
        answered = self._look_up([queue.topic.name])
        if isinstance(error, RecordTooLargeError):
            # Its limit was lowered.
            again = batch.pieces < len(batch)
            batch.pieces *= 2
            return again, True
        with sender.lock:
            # Perhaps it was deleted and made again.
            known = sender.accumulator.topics.get(queue.topic.name) is queue.topic
            return answered and known and queue in queue.topic.queues, False

    def _finish(self, batches: Sequence[Batch]) -> None:
        """Outside of the lock: what is left to do with batches that are done."""
        self._sender.call_back(batches)
        self._finished += batches

    def _get_ahead(self, sent: Sequence[Batch]) -> None:
        """What is left of the last request, and what can be done for the next, while the server works."""
        self._release()
        with self._sender.lock:
            upcoming = self._sender.accumulator.upcoming(sent)
        for batch in upcoming:
            batch.prepare()

    def _release(self) -> None:
        """Freeing a batch takes as long as it is large: not while the server has nothing to do."""
        finished, self._finished = self._finished, []
        for batch in finished:
            batch.release()

    # ---- quotas, topics and consumers

    def _ask_for_quota(self) -> None:
        """Who has to wait for long asks whether that has changed meanwhile."""
        sender = self._sender
        answer = None
        with suppress(LogstoreError):
            connection = self.connect()
            answer = connection.run(
                sender.quota_calls.quota_state("produce"), timeout_s=sender.patience_s(self._due_by)
            )
        with sender.lock:
            sender.throttle.asked(answer, monotonic())

    def _look_up(self, names: Sequence[str]) -> bool:
        """Ask the server about topics; whether it answered."""
        sender = self._sender
        try:
            connection = self.connect()
            call = sender.session.calls.metadata(names)
            described = connection.run(call, timeout_s=sender.patience_s(self._due_by))
        except LogstoreError as error:
            if not error.retriable and len(names) > 1:
                # One of the names is to blame: each is asked for by itself.
                answered = True
                for name in names:
                    answered = self._look_up([name]) and answered
                return answered
            with sender.lock:
                sender.not_described(names, error)
            return False
        with sender.lock:
            orphans = sender.described(names, described)
        # Their records are not released: another lane may be preparing them.
        sender.call_back(orphans)
        return True

    def _wake(self, topic_ids: Sequence[int], *, busy: bool) -> None:
        # A consumer that is not woken polls: a failure here costs it time and nothing else.
        with suppress(LogstoreError):
            if self.connection is not None and not self.connection.closed:
                call = self._sender.session.calls.wake(topic_ids)
                timeout_s = self._sender.patience_s(self._due_by)
                self.connection.run(call, timeout_s=timeout_s, busy=busy)
