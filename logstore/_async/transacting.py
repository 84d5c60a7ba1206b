"""The methods of a producer that concern transactions."""

from __future__ import annotations

from types import TracebackType

from logstore._async.transactions import Transactions
from logstore._core.group_calls import Commit
from logstore._core.offsets import Committable, offsets_to_commit
from logstore._core.queues import Topic
from logstore.errors import CommitFailedError, IllegalStateError, InvalidArgumentError
from logstore.records import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

__all__ = ["Transacting", "TransactionBlock"]


class TransactionBlock:
    """``async with producer.transaction():`` commits at its end, and aborts when it is left by an error."""

    def __init__(self, producer: Transacting) -> None:
        self._producer = producer

    async def __aenter__(self) -> None:
        await self._producer._begin(init=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (await self._producer._in_transactions()).end(error)


class Transacting:
    """What a producer with a ``transactional_id`` can do; without one these methods raise IllegalStateError.

    The records of a transaction wait in the producer until it is committed, ``buffer_memory`` bytes of them
    at most; then one database transaction writes all of them, with the offsets.  Consumers see all of it or
    nothing, and see nothing of what was aborted.
    """

    _transactions: Transactions | None

    async def start(self) -> None:
        raise NotImplementedError

    def _check_usable(self) -> None:
        raise NotImplementedError

    async def _topic(self, topic: str, partition: int | None) -> Topic:
        raise NotImplementedError

    async def init_transactions(self) -> None:
        """Take the ``transactional_id``: once, before the first transaction.

        Whoever had it is fenced: its next commit raises ProducerFencedError.  A commit of its that is under
        way ends first.  ``with producer.transaction():`` does this by itself.
        """
        await (await self._in_transactions()).init()

    async def begin_transaction(self) -> None:
        """Begin a transaction: what is sent from now on belongs to it.

        Raises IllegalStateError when one is open already (they do not nest) or before
        :meth:`init_transactions`.
        """
        await self._begin()

    async def commit_transaction(self) -> None:
        """Write the records and offsets of the transaction, all of them or none; then futures are done.

        When the connection is lost during the commit, the producer finds out what came of it, and writes
        again what was not written, for at most ``delivery_timeout_ms``.  Raises ProducerFencedError (another
        producer has the transactional id), TransactionTimedOutError, CommitFailedError (the offsets are
        another member's by now), and what keeps records from being appended: then nothing was written, and
        :meth:`abort_transaction` is next.  UnknownOutcomeError, or another retriable error: the server could
        not be asked yet; call this again.
        """
        await (await self._in_transactions()).commit()

    async def abort_transaction(self) -> None:
        """Forget the records and offsets of the transaction; their futures fail with
        TransactionAbortedError.  Nothing of them was ever in the log.
        """
        await (await self._in_transactions()).abort()

    def transaction(self) -> TransactionBlock:
        """A transaction for a ``with`` block: committed at its end, aborted when the block raises.

        Calls :meth:`init_transactions` the first time, if the program has not.
        """
        return TransactionBlock(self)

    async def send_offsets_to_transaction(
        self, offsets: Committable, group_metadata: ConsumerGroupMetadata
    ) -> None:
        """Commit a consumer's offsets with the transaction.

        ``offsets``: as for ``consumer.commit``, the offsets of the next records to be read.
        ``group_metadata``: what ``consumer.group_metadata()`` said when the records were read; it fences the
        commit against a member that has the partitions by then.  Turn ``enable_auto_commit`` off.

        Raises CommitFailedError when the metadata do not cover a partition; ``commit_transaction`` does when
        the partition has gone to another member since.
        """
        transactions = await self._in_transactions()
        if not isinstance(group_metadata, ConsumerGroupMetadata):
            raise InvalidArgumentError(
                f"group_metadata is what consumer.group_metadata() returns, not {group_metadata!r}."
            )
        wanted = offsets_to_commit(offsets)
        commits = {tp: await self._commit_of(tp, each, group_metadata) for tp, each in wanted.items()}
        transactions.send_offsets(group_metadata, commits)

    async def _commit_of(
        self, tp: TopicPartition, offset: OffsetAndMetadata, metadata: ConsumerGroupMetadata
    ) -> Commit:
        if metadata.claims is None:
            topic_id, epoch = (await self._topic(tp.topic, tp.partition)).topic_id, None
        elif tp in metadata.claims:
            topic_id, epoch = metadata.claims[tp]
        else:
            raise CommitFailedError(
                f"Partition {tp.partition} of topic {tp.topic!r} was not the member's when the group "
                "metadata were taken.",
                advice="Take consumer.group_metadata() after the poll that returned the records, not before.",
                details={"topic": tp.topic, "partition": tp.partition, "reason": "not_owner"},
            )
        return Commit(topic_id, tp.partition, epoch, offset.offset, offset.leader_epoch, offset.metadata)

    async def _begin(self, *, init: bool = False) -> None:
        await (await self._in_transactions()).begin(init=init)

    async def _in_transactions(self) -> Transactions:
        self._check_usable()
        if self._transactions is None:
            raise IllegalStateError(
                "The producer has no transactional_id: it has no transactions.",
                advice='Make it with Producer(transactional_id="…"): a name of its own, and the same after a '
                "restart.",
            )
        await self.start()
        return self._transactions
