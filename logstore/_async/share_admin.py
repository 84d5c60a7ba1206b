"""The methods of an admin client that concern share groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from logstore._core.call import Call
from logstore._core.share_calls import ShareCalls
from logstore.errors import UnknownTopicOrPartitionError
from logstore.records import TopicPartition
from logstore.share import ShareConfig, SharePartition

__all__ = ["ShareAdmin"]

T = TypeVar("T")


class ShareAdmin:
    """Describes, configures, resets and deletes share groups."""

    _share_calls: ShareCalls

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def describe_share_group(self, group: str) -> list[SharePartition]:
        """Where a share group is, partition by partition.  Raises GroupNotFoundError."""
        rows = await self._run(self._share_calls.share_partitions(group))
        if not rows:
            await self.describe_share_configs(group)  # raises when there is no such group
        return rows

    async def list_share_groups(self) -> list[SharePartition]:
        """Where all share groups are, by group, topic and partition."""
        return await self._run(self._share_calls.share_partitions())

    async def describe_share_configs(self, group: str) -> dict[str, ShareConfig]:
        """The configs of a share group by name.  Raises GroupNotFoundError."""
        rows = await self._run(self._share_calls.describe_share_configs(group))
        return {row.name: row for row in rows}

    async def alter_share_configs(self, group: str, configs: Mapping[str, object]) -> None:
        """Set configs of a share group, such as ``{"share.delivery.count.limit": 10}``; None sets one back.

        A group that does not exist is made.  Members notice at once.  Raises InvalidConfigError,
        UnknownTopicOrPartitionError (the dead-letter topic does not exist), InvalidGroupError (it is a
        consumer group), GroupNotEmptyError (``share.key.ordered`` with records in flight).
        """
        wanted = {name: _text(value) for name, value in configs.items() if value is not None}
        unset = [name for name, value in configs.items() if value is None]
        await self._run(self._share_calls.alter_share_group(group, wanted, unset))

    async def alter_share_group_offsets(
        self, group: str, offsets: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        """Begin again at these offsets, whatever was finished; the offsets as they are now.

        An offset outside of the log is moved to the nearest one there is.  What waited to be delivered again
        is forgotten.  Raises GroupNotEmptyError while members have records in flight, and
        UnknownTopicOrPartitionError.
        """
        tps = [TopicPartition(*tp) for tp in offsets]
        pairs = await self._pairs(tps)
        moved = await self._run(
            self._share_calls.reset_share_offsets(group, pairs, [offsets[tp] for tp in tps])
        )
        return dict(zip(tps, moved, strict=True))

    async def delete_share_group_offsets(self, group: str, partitions: Iterable[TopicPartition]) -> int:
        """Forget where a share group is in these partitions; how many it knew.

        It begins there again as its config ``share.auto.offset.reset`` says.  Raises GroupNotEmptyError,
        GroupNotFoundError and UnknownTopicOrPartitionError.
        """
        pairs = await self._pairs([TopicPartition(*tp) for tp in partitions])
        return await self._run(self._share_calls.delete_share_offsets(group, pairs))

    async def delete_share_group(self, group: str) -> None:
        """Forget all there is of a share group.  Raises GroupNotEmptyError and GroupNotFoundError."""
        await self._run(self._share_calls.delete_share_group(group))

    async def _pairs(self, tps: list[TopicPartition]) -> list[tuple[int, int]]:
        calls = self._share_calls
        found = await self._run(calls.metadata(sorted({tp.topic for tp in tps})))
        ids = {each.topic: each.topic_id for each in found}
        for tp in tps:
            if tp.topic not in ids:
                raise UnknownTopicOrPartitionError(f"There is no topic {tp.topic!r}.", details=tp._asdict())
        return [(ids[tp.topic], tp.partition) for tp in tps]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
