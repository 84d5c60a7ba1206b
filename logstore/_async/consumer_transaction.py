"""Exactly once: records read, rows written, records produced and offsets move in one commit, or not at all.

The order inside is the same for every transaction, so that none waits for another one that waits for it: the
program's statements, the appends by ascending partition, the group's offsets, COMMIT.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar
from uuid import uuid4

from logstore._async.concurrency import sleep
from logstore._async.futures import SendFuture
from logstore._core.call import Call
from logstore._core.calls import AppendResult
from logstore._core.group_calls import Commit
from logstore._core.transaction_calls import OffsetStamps, Part, TransactionCalls, together
from logstore.errors import (
    CommitFailedError,
    IllegalStateError,
    LogstoreError,
    TransactionAbortedError,
    UnknownOutcomeError,
)
from logstore.records import (
    ConsumerGroupMetadata,
    ConsumerRecord,
    Header,
    OffsetAndMetadata,
    TopicPartition,
)

if TYPE_CHECKING:
    from logstore._async.processing import Processing

__all__ = ["ConsumerTransaction", "Link"]

T = TypeVar("T")

_FAILED_STATEMENT = "25P02"
QUOTA_LOOK_S = 0.25
"""How often a transaction that waits for the quota looks whether it still has to."""


class Link(Protocol):
    """The connection that a transaction happens on, and the transaction's two ends."""

    @property
    def raw(self) -> Any:
        """What the program works with."""

    @property
    def lost(self) -> bool:
        """The connection cannot be used any more."""

    async def begin(self, mark: Call[Any]) -> None: ...

    async def flush(self) -> None:
        """Do now what the program has left for the commit."""

    async def run(self, call: Call[T]) -> T: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...

    def drop(self) -> None: ...


class ConsumerTransaction:
    """What ``async with consumer.transaction() as tx:`` gives.

    It commits when the block ends, and when the block raises it rolls back, and the records come again.
    """

    def __init__(self, consumer: Processing, timeout_ms: float, max_records: int | None) -> None:
        self._consumer = consumer
        self._timeout_ms = timeout_ms
        self._max_records = max_records
        self._calls = TransactionCalls(consumer._config.schema)
        self._mark = str(uuid4())
        self._link: Link | None = None
        self._open = False
        self._first: dict[TopicPartition, int] = {}
        self._offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        self._commits: list[Commit] = []
        self._metadata: ConsumerGroupMetadata | None = None
        self._results: list[AppendResult] = []
        self._stamps: OffsetStamps | None = None
        self._topic_ids: list[int] = []
        self._committing = False
        self.records: list[ConsumerRecord] = []
        """The next records: what ``poll`` would have returned, in one list; empty if none came in time."""

    @property
    def connection(self) -> Any:
        """The connection that the transaction happens on: psycopg's (asyncpg's for an AsyncConsumer).

        Execute what you like on it, with savepoints if need be; leave COMMIT and ROLLBACK to the block.
        """
        if not self._open or self._link is None:
            raise _not_open()
        return self._link.raw

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        headers: Iterable[Header] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> SendFuture:
        """Produce a record, in the same commit; its future is done with the commit.

        As a producer's ``send``, with its defaults and without serializers.  Raises what that raises.
        """
        if not self._open:
            raise _not_open()
        return await self._consumer._outgoing.add(topic, value, key, headers, partition, timestamp_ms)

    # -- the block -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._begin(even_without_records=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._commit()
        else:
            await self._roll_back(TransactionAbortedError())

    async def _begin(self, *, even_without_records: bool) -> bool:
        """Read, and begin; whether it did."""
        consumer = self._consumer
        await consumer._settle_doubt()
        group = await consumer._in_transactions()
        await self._keep_to_quota()
        group.reading = True
        try:
            polled = await consumer._poll(self._timeout_ms, self._max_records, ())
        finally:
            group.reading = False
        self.records = [record for records in polled.values() for record in records]
        if not polled and not even_without_records:
            return False
        group.turn = "A transaction is open."
        try:
            self._metadata = group.metadata
            self._first = {tp: records[0].offset for tp, records in polled.items()}
            self._offsets = {
                tp: OffsetAndMetadata(records[-1].offset + 1, leader_epoch=records[-1].leader_epoch)
                for tp, records in polled.items()
            }
            ids = {} if self._metadata.claims is not None else await group.topic_ids(polled)
            self._commits = [self._commit_of(tp, ids) for tp in polled]
            self._link = await self._make_link()
            await self._link.begin(
                self._calls.mark_transaction(self._mark, consumer._config.max_poll_interval_ms)
            )
        except BaseException:
            if self._link is not None:
                self._link.drop()
            self._go_back()
            raise
        consumer._outgoing.open()
        self._open = True
        return True

    async def _keep_to_quota(self) -> None:
        """Wait as long as the server has said, when a transaction before this one has produced too much."""
        consumer, outgoing = self._consumer, self._consumer._outgoing
        while (left := outgoing.throttle.left(monotonic())) > 0:
            with consumer._lock:
                consumer._check()
            await sleep(min(left, QUOTA_LOOK_S))
            if outgoing.throttle.to_ask(monotonic()):
                state = await consumer._fetcher.ask(outgoing.quota_calls.quota_state("produce"))
                outgoing.throttle.asked(state, monotonic())

    async def _make_link(self) -> Link:
        return await self._consumer._link()

    def _commit_of(self, tp: TopicPartition, ids: dict[str, int]) -> Commit:
        assert self._metadata is not None
        wanted = self._offsets[tp]
        if self._metadata.claims is None:
            topic_id, epoch = ids[tp.topic], None
        elif tp in self._metadata.claims:
            topic_id, epoch = self._metadata.claims[tp]
        else:
            raise CommitFailedError(
                f"Partition {tp.partition} of topic {tp.topic!r} is not this member's (any more).",
                details={"topic": tp.topic, "partition": tp.partition, "reason": "not_owner"},
            )
        return Commit(topic_id, tp.partition, epoch, wanted.offset, wanted.leader_epoch, wanted.metadata)

    async def _commit(self) -> None:
        link = self._link
        assert link is not None
        self._open = False
        try:
            await self._write(link)
            self._committing = True
            await link.commit()
        except UnknownOutcomeError as error:
            link.drop()
            if self._stamps is None or not self._committing:
                await self._not_committed(link, error)
                raise
            await self._find_out(error)
            return
        except LogstoreError as error:
            await self._not_committed(link, error)
            if error.details.get("sqlstate") == _FAILED_STATEMENT:
                raise TransactionAbortedError(
                    "A statement of the transaction has failed, so nothing of it could be committed.",
                    advice="Let its error through, or put a savepoint around what may fail.",
                ) from error
            raise
        except Exception:  # what the program has left for the end, such as a flush
            await self._not_committed(link, TransactionAbortedError())
            raise
        except BaseException:
            # Ctrl-C or a cancellation: who knows how far it has come.
            link.drop()
            if self._committing and self._stamps is not None:
                self._keep_doubt()
            else:
                self._abandon(TransactionAbortedError())
            raise
        self._done()

    async def _write(self, link: Link) -> None:
        """Everything of ours, as the last statements of the transaction."""
        assert self._metadata is not None
        consumer = self._consumer
        await link.flush()
        statements = consumer._outgoing.take()
        self._topic_ids = sorted({row.topic_id for rows in statements for row in rows})
        parts = [Part(self._calls.check_mark(self._mark))]
        for rows in statements:
            appended = await link.run(together([*parts, Part(self._calls.append(rows, -1), len(rows))]))
            self._results += appended[-1]
            parts = []
        if self._commits:
            member_id = None if self._metadata.claims is None else self._metadata.member_id
            parts.append(
                Part(
                    self._calls.send_offsets(
                        self._metadata.group_id, member_id, self._metadata.group_instance_id, self._commits
                    )
                )
            )
        if parts:
            answers = await link.run(together(parts))
            if self._commits:
                self._stamps = answers[-1]

    async def _find_out(self, error: UnknownOutcomeError) -> None:
        """The connection was lost during the commit: ask what came of it.  Raises unless it was committed."""
        try:
            there = await self.settle()
        except LogstoreError as unanswered:
            self._keep_doubt()
            raise error from unanswered
        except BaseException:
            self._keep_doubt()
            raise
        if there is None:
            raise UnknownOutcomeError(
                "The connection was lost during the commit, and the partitions have gone on since.",
                advice="The group goes on at what was committed last; do not repeat it.",
                details=error.details,
            ) from error
        if not there:
            raise TransactionAbortedError(
                "The connection was lost during the commit, and the transaction was rolled back.",
                advice="Its records come again.",
                details=error.details,
            ) from error

    async def settle(self) -> bool | None:
        """Learn whether a commit in doubt happened, and go on from there; None: it cannot be told any more,
        because others have committed these offsets since.
        """
        assert self._stamps is not None
        there = await self._consumer._fetcher.ask(self._calls.await_offsets(self._stamps))
        if there:
            self._done()
        elif there is None:
            self._turn_over()
            self._consumer._outgoing.give_up(UnknownOutcomeError())
        else:
            self._abandon(TransactionAbortedError())
        return there

    def _keep_doubt(self) -> None:
        """The next transaction asks first; until then nothing is read."""
        group = self._consumer._group
        assert group is not None
        self._consumer._doubt = self
        group.turn = "It is not known yet whether the last transaction was committed."

    def _done(self) -> None:
        consumer = self._consumer
        group = consumer._group
        assert group is not None
        group.remember(self._offsets)
        consumer._outgoing.written(self._results)
        if self._topic_ids:
            # A consumer that is not woken polls.
            consumer._fetcher.post(self._calls.wake(self._topic_ids))
        self._turn_over()

    async def _roll_back(self, error: LogstoreError) -> None:
        link = self._link
        assert link is not None
        self._open = False
        try:
            await link.rollback()
        finally:
            self._abandon(error)

    async def _not_committed(self, link: Link, error: LogstoreError) -> None:
        try:
            await link.rollback()
        finally:
            self._abandon(error)

    def _abandon(self, error: LogstoreError) -> None:
        self._go_back()
        self._consumer._outgoing.give_up(error)

    def _go_back(self) -> None:
        """The records come again."""
        consumer = self._consumer
        with consumer._lock:
            assigned = consumer._subscription.assignment
            for tp, offset in self._first.items():
                if tp in assigned:
                    consumer._subscription.go_back(tp, offset)
            consumer._fetcher.disturb()
        self._turn_over()

    def _turn_over(self) -> None:
        self._open = False
        group = self._consumer._group
        assert group is not None
        group.turn = None


def _not_open() -> IllegalStateError:
    return IllegalStateError(
        "The transaction is not open.", advice="Use it inside `with consumer.transaction() as tx:`."
    )
