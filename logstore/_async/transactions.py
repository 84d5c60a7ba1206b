"""The transactions of a producer: records wait in the producer, and one database transaction writes them.

A commit whose connection is lost while it is under way is neither reported as success nor as failure: the
next attempt waits until the server has finished with the first one, looks for what it would have written,
and writes only if that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import random
from time import monotonic
from typing import Any

from logstore._async.concurrency import sleep
from logstore._async.driver import Connection
from logstore._async.sender import Sender
from logstore._async.session import Session
from logstore._core.backoff import Backoff
from logstore._core.batch import Batch
from logstore._core.calls import AppendBatch, AppendResult
from logstore._core.group_calls import Commit
from logstore._core.throttle import refused_for_ms
from logstore._core.transaction import HeldRecords, Phase, Sequences, TransactionState, requests
from logstore._core.transaction_calls import (
    OffsetStamps,
    Part,
    ProducerIdentity,
    TransactionCalls,
    together,
)
from logstore.config import ProducerConfig
from logstore.errors import (
    LogstoreError,
    NotLeaderError,
    ProducerFencedError,
    RecordTooLargeError,
    ThrottlingQuotaExceededError,
    TransactionAbortedError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)
from logstore.records import ConsumerGroupMetadata, TopicPartition

__all__ = ["Transactions"]

ALL = -1
"""acks of transactions."""
QUOTA_LOOK_S = 0.5
"""How often a commit that waits for the quota looks whether it still has to."""


@dataclass(slots=True)
class _Trace:
    """What an attempt to commit has written, if it was committed."""

    batches: dict[Batch, list[AppendResult]] = field(default_factory=dict)
    rows: list[AppendBatch] = field(default_factory=list)
    last_offset: int = -1
    """Of the last row."""
    stamps: OffsetStamps | None = None


class Transactions:
    """The transactions of one producer.  One at a time; ``sender.lock`` guards what threads share."""

    def __init__(self, session: Session, config: ProducerConfig, sender: Sender) -> None:
        assert config.transactional_id is not None
        assert isinstance(sender.accumulator, HeldRecords)
        self._session = session
        self._sender = sender
        self._lock = sender.lock
        self._held: HeldRecords[Any] = sender.accumulator
        self._calls = TransactionCalls(config.schema)
        self._id = config.transactional_id
        self._client_id = config.client_id
        self._timeout_ms = config.transaction_timeout_ms
        self._request_timeout_s = config.request_timeout_ms / 1000
        self._delivery_timeout_s = config.delivery_timeout_ms / 1000
        self._max_block_s = config.max_block_ms / 1000
        self._retries = config.retries
        self._backoff = Backoff(config.retry_backoff_ms / 1000, config.retry_backoff_max_ms / 1000, random)
        self.state = TransactionState(config.transactional_id, config.transaction_timeout_ms / 1000)
        self._identity = ProducerIdentity(-1, -1)
        self._sequences = Sequences()
        self._offsets: dict[str, tuple[ConsumerGroupMetadata, dict[TopicPartition, Commit]]] = {}
        self._trace: _Trace | None = None
        self._connection: Connection | None = None
        self._closed = False

    # ---- for the producer

    async def init(self) -> None:
        """Take the transactional id; whoever had it is fenced, after what it is just committing."""
        with self._lock:
            self.state.check_init()
        deadline = monotonic() + self._max_block_s
        failures = 0
        while True:
            try:
                connection = await self._connect()
                self._identity = await connection.run(
                    self._calls.hold_transactional_id(self._id, self._timeout_ms, self._client_id),
                    timeout_s=self._request_timeout_s,
                )
                break
            except LogstoreError as error:
                failures += 1
                await self._pause_or_raise(error, failures, deadline)
        with self._lock:
            self.state.initialised()

    async def begin(self, *, init: bool = False) -> None:
        """A transaction begins; ``init``: take the transactional id first if need be."""
        if init and self.state.phase is Phase.OUTSIDE:
            await self.init()
        with self._lock:
            self.state.begin(monotonic())
            self._offsets.clear()
            self._held.open()

    def check_open(self, what: str) -> None:
        """Raises unless a transaction is open.  The lock must be held."""
        self.state.check_open(monotonic(), what)

    def no_room(self) -> LogstoreError:
        """Why a record finds no room in the buffer."""
        return self._held.no_room()

    def send_offsets(self, metadata: ConsumerGroupMetadata, commits: Mapping[TopicPartition, Commit]) -> None:
        """Commit these offsets with the transaction."""
        with self._lock:
            self.check_open("send_offsets_to_transaction()")
            before = self._offsets.get(metadata.group_id)
            self._offsets[metadata.group_id] = (metadata, {**(before[1] if before else {}), **commits})

    async def commit(self) -> None:
        """Write everything, in one database transaction."""
        with self._lock:
            if not self.state.commit(monotonic()):
                self._held.take_all()
        began = monotonic()
        try:
            written = await self._deliver()
        except LogstoreError as error:
            self._not_committed(error)
            raise
        except BaseException:
            with self._lock:
                self.state.doubted()
            raise
        self._committed(written, monotonic() - began)

    async def abort(self) -> None:
        """Forget everything; nothing of it was written."""
        with self._lock:
            self.state.check_abort()
            self.state.aborted()
            failed = self._give_up(TransactionAbortedError())
        self._finish(failed)

    async def end(self, error: BaseException | None) -> None:
        """Leave a ``with`` block, into which the program or a commit has raised ``error``, if anything."""
        if error is None:
            try:
                await self.commit()
            finally:
                self._forget_failed()
        else:
            self._forget_failed()

    async def close(self) -> None:
        """The producer is being closed: what is open is aborted."""
        with self._lock:
            self._closed = True
            failed: list[Batch] = []
            if self.state.phase in (Phase.OPEN, Phase.FAILED):
                failed = self._give_up(TransactionAbortedError("The producer was closed before the commit."))
            elif self.state.phase is Phase.IN_DOUBT:
                failed = self._give_up(
                    UnknownOutcomeError(
                        "The producer was closed before it was known what came of the commit."
                    )
                )
            committing = self.state.phase is Phase.COMMITTING
            connection = self._connection
        self._finish(failed)
        if connection is not None and not committing:
            await connection.close()

    # ---- the end of a transaction

    def _forget_failed(self) -> None:
        """Abort what was not committed; what is in doubt stays so."""
        with self._lock:
            failed: list[Batch] = []
            if self.state.phase in (Phase.OPEN, Phase.FAILED):
                self.state.aborted()
                failed = self._give_up(TransactionAbortedError())
        self._finish(failed)

    def _committed(self, written: _Trace, seconds: float) -> None:
        with self._lock:
            self._trace = None
            self._sequences.keep(written.rows)
            self.state.committed()
            done = self._held.written(written.batches)
            self._sender.appended(done)
            self._sender.tally.request(done, seconds)
            self._sender.throttled(max((batch.throttle_ms for batch in done), default=0), monotonic())
            self._sender.publish(done)
            self._sender.work.notify_all()
        self._finish(done)

    def _not_committed(self, error: LogstoreError) -> None:
        with self._lock:
            if self._trace is not None and not isinstance(error, ProducerFencedError):
                self.state.doubted()
                return
            self._trace = None
            if isinstance(error, ProducerFencedError):
                self.state.fenced()
            else:
                self.state.failed()
            failed = self._give_up(error)
        self._finish(failed)

    def _give_up(self, error: LogstoreError) -> list[Batch]:
        failed = self._held.give_up(error)
        self._sender.publish(failed)
        return failed

    def _finish(self, batches: Sequence[Batch]) -> None:
        """Outside of the lock: what is left to do with batches that are done."""
        self._sender.call_back(batches)
        for batch in batches:
            batch.release()

    # ---- writing

    async def _deliver(self) -> _Trace:
        """Everything is in the log when this returns; it raises when it is not, or when that is not known."""
        deadline = monotonic() + self._delivery_timeout_s
        failures = 0
        while True:
            if self._trace is None:
                await self._keep_to_quota(deadline)
            try:
                if self._trace is not None:
                    if await self._is_there(self._trace):
                        return self._trace
                    self._trace = None
                return await self._write()
            except ThrottlingQuotaExceededError as error:
                with self._lock:
                    self._sender.throttled(refused_for_ms(error.details), monotonic())
            except (RecordTooLargeError, UnknownTopicOrPartitionError) as error:
                if self._trace is not None or not await self._look_again(error):
                    raise
            except LogstoreError as error:
                failures += 1
                await self._pause_or_raise(error, failures, deadline)

    async def _keep_to_quota(self, deadline: float) -> None:
        """Wait as long as the server has said; a lane asks meanwhile whether that has changed.

        Raises ThrottlingQuotaExceededError when it is longer than delivery may take, or the producer is
        closed.
        """
        while (left := self._sender.throttle.left(monotonic())) > 0:
            if self._closed or monotonic() + QUOTA_LOOK_S >= deadline:
                raise ThrottlingQuotaExceededError(
                    f"The producer's quota is used up for another {left:.1f} s.",
                    details={"throttle_time_ms": round(left * 1000)},
                )
            await sleep(min(left, QUOTA_LOOK_S))

    async def _pause_or_raise(self, error: LogstoreError, failures: int, deadline: float) -> None:
        delay = self._backoff.delay(failures)
        if not error.retriable or self._closed or failures > self._retries or monotonic() + delay >= deadline:
            raise error
        await sleep(delay)

    async def _write(self) -> _Trace:
        trace = _Trace()
        rows: list[tuple[AppendBatch, int]] = []
        for batch in self._held.held:
            encoded = batch.encode()
            trace.batches[batch] = []
            rows += [(row, batch.size // len(encoded)) for row in encoded]
        owners = [batch for batch in self._held.held for _ in range(min(batch.pieces, len(batch)))]
        trace.rows = self._sequences.number([row for row, _ in rows], self._identity)
        sized = [(row, size) for row, (_, size) in zip(trace.rows, rows, strict=True)]
        statements = requests(sized, self._held.limits.request_bytes) or [[]]
        connection = await self._connect()
        results: list[AppendResult] = []
        try:
            async with connection.transaction(timeout_s=self._request_timeout_s):
                for statement in statements:
                    parts = []
                    if statement is statements[0]:
                        parts.append(Part(self._calls.enter_transaction(self._id, self._identity)))
                    if statement:
                        parts.append(Part(self._calls.append(statement, ALL), len(statement)))
                    at = len(parts)
                    if statement is statements[-1]:
                        parts += self._offset_parts()
                    answers = await connection.run(together(parts), timeout_s=self._request_timeout_s)
                    if statement:
                        results += answers[at - 1]
                    trace.stamps = answers[-1] if len(answers) > at else None
                for owner, result in zip(owners, results, strict=True):
                    trace.batches[owner].append(result)
                if results:
                    trace.last_offset = results[-1].base_offset + trace.rows[-1].record_count - 1
                self._trace = trace  # from now on nobody may know what comes of it
        except LogstoreError as error:
            if not isinstance(error, UnknownOutcomeError):
                self._trace = None
            raise
        return trace

    def _offset_parts(self) -> list[Part]:
        parts = []
        for _, (metadata, commits) in sorted(self._offsets.items()):
            member_id = None if metadata.claims is None else metadata.member_id
            parts.append(
                Part(
                    self._calls.send_offsets(
                        metadata.group_id, member_id, metadata.group_instance_id, list(commits.values())
                    )
                )
            )
        return parts

    async def _is_there(self, trace: _Trace) -> bool:
        """Whether the transaction in doubt was committed.  Waits until the server is done with it."""
        connection = await self._connect()
        fenced: ProducerFencedError | None = None
        try:
            await connection.run(
                self._calls.await_transaction(self._id, self._identity), timeout_s=self._request_timeout_s
            )
        except ProducerFencedError as error:
            fenced = error  # but what it wrote before that is there
        there: bool | None = False
        if trace.rows:
            row = trace.rows[-1]
            assert row.base_sequence is not None
            there = await connection.run(
                self._calls.holds_batch(
                    row.topic_id, row.partition, trace.last_offset, self._identity, row.base_sequence
                ),
                timeout_s=self._request_timeout_s,
            )
        elif trace.stamps is not None:
            there = await connection.run(
                self._calls.await_offsets(trace.stamps), timeout_s=self._request_timeout_s
            )
            if there is None:
                self._trace = None
                raise _covered()
        if fenced is not None and not there:
            raise fenced
        return bool(there)

    async def _look_again(self, error: LogstoreError) -> bool:
        """A topic is not what it was: whether to try again."""
        batches = self._held.held
        if isinstance(error, RecordTooLargeError):
            # Its limit was lowered.
            wanted = error.details.get("topic_id"), error.details.get("partition")
            cut = [
                batch for batch in batches if (batch.queue.topic.topic_id, batch.queue.partition) == wanted
            ]
            able = any(batch.pieces < len(batch) for batch in cut)
            for batch in cut:
                batch.pieces = min(2 * batch.pieces, len(batch))
            return able
        # Perhaps it was deleted and made again.
        before = {batch.queue.topic.name: batch.queue.topic.topic_id for batch in batches}
        if not before:
            return False
        connection = await self._connect()
        described = await connection.run(
            self._calls.metadata(sorted(before)), timeout_s=self._request_timeout_s
        )
        now = {each.topic: each for each in described}
        with self._lock:
            self._held.update(described, monotonic())
        there = all(
            batch.queue.topic.name in now and batch.queue.partition < now[batch.queue.topic.name].partitions
            for batch in batches
        )
        batches.sort(key=lambda batch: (batch.queue.topic.topic_id, batch.queue.partition))
        return there and any(now[name].topic_id != topic_id for name, topic_id in before.items())

    async def _connect(self) -> Connection:
        """The connection, opened again if it was lost."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        connection, info = await self._session.open()
        why = connection.access.refusal(in_recovery=info.is_in_recovery)
        if why:
            where = connection.dsn_for_display
            await connection.close()
            raise NotLeaderError(f"{where} {why}: it takes no records.")
        self._connection = connection
        return connection


def _covered() -> UnknownOutcomeError:
    return UnknownOutcomeError(
        "The connection was lost while the offsets were committed, and others have committed them since.",
        advice="The group goes on at what was committed last; do not send these offsets again.",
    )
