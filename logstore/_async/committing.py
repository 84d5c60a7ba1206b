"""The methods of a consumer that concern its group."""

from __future__ import annotations

from collections.abc import Iterable

from logstore._async.group import CommitCallback, Group
from logstore._core.offsets import Committable, offsets_to_commit
from logstore._core.topic_name import check_partition
from logstore.errors import IllegalStateError
from logstore.records import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

__all__ = ["Committing"]


class Committing:
    """What a consumer with a ``group_id`` can do; without one these methods raise IllegalStateError."""

    _group: Group | None

    def _usable(self) -> None:
        raise NotImplementedError

    async def _ready(self) -> None:
        raise NotImplementedError

    async def commit(self, offsets: Committable | None = None) -> None:
        """Commit offsets to the group, and wait until they are on disk.

        ``offsets``: for each partition the offset of the next record to be read, as an integer or an
        OffsetAndMetadata; or one record, which with all before it in its partition is done with; None: the
        positions, that is everything that was handed out.  All are committed or none.

        Raises CommitFailedError (somebody else has the partition now), OffsetOutOfRangeError (beyond the
        end), OffsetMetadataTooLargeError, FencedInstanceIdError.
        """
        group = await self._in_group()
        await group.commit(None if offsets is None else offsets_to_commit(offsets))

    async def commit_async(
        self, offsets: Committable | None = None, callback: CommitCallback | None = None
    ) -> None:
        """:meth:`commit` without waiting.

        ``callback(offsets, error)`` is called inside a later ``poll`` or ``close``; ``error`` is None when it
        went well.
        """
        group = await self._in_group()
        await group.post_commit(None if offsets is None else offsets_to_commit(offsets), callback)

    async def committed(self, partition: TopicPartition) -> int | None:
        """The offset that the group has committed for ``partition``; None: none."""
        found = (await self.committed_offsets([partition]))[check_partition(partition)]
        return None if found is None else found.offset

    async def committed_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """What the group has committed for each partition, with the metadata; None where there is nothing."""
        group = await self._in_group()
        return await group.committed([check_partition(tp) for tp in partitions])

    async def enforce_rebalance(self) -> None:
        """Have the group's assignment computed again.  Partitions move only if that is more even."""
        group = await self._in_group()
        await group.rebalance()

    def group_metadata(self) -> ConsumerGroupMetadata:
        """What identifies this member of its group."""
        self._usable()
        if self._group is None:
            raise _no_group()
        return self._group.metadata

    async def _in_group(self) -> Group:
        await self._ready()
        if self._group is None:
            raise _no_group()
        return self._group


def _no_group() -> IllegalStateError:
    return IllegalStateError(
        "The consumer has no group: there is nothing to commit to.", advice="Give it a group_id."
    )
