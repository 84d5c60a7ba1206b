"""The methods of an admin client that concern consumer groups."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

from logstore._core.call import Call
from logstore._core.calls import EARLIEST, LATEST
from logstore._core.group_calls import GroupCalls, MemberRow
from logstore._core.offsets import offsets_to_commit
from logstore.errors import GroupNotFoundError, InvalidArgumentError, UnknownTopicOrPartitionError
from logstore.groups import (
    GroupDescription,
    GroupListing,
    MemberDescription,
    OffsetReset,
    PartitionExtent,
    PartitionLag,
    PlannedOffset,
)
from logstore.records import OffsetAndMetadata, OffsetAndTimestamp, TopicPartition
from logstore.topics import TopicDescription

__all__ = ["GroupAdmin"]

T = TypeVar("T")


class GroupAdmin:
    """Lists, describes, resets and deletes groups."""

    _group_calls: GroupCalls

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def describe_topics(self, topics: Iterable[str] | None = None) -> list[TopicDescription]:
        raise NotImplementedError

    async def list_offsets(
        self, specs: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        raise NotImplementedError

    async def list_groups(
        self, *, states: Iterable[str] | None = None, kinds: Iterable[str] | None = None
    ) -> list[GroupListing]:
        """All groups, sorted by name; only those in ``states`` and of ``kinds``, if these are given."""
        wanted_states = None if states is None else {state.lower() for state in states}
        wanted_kinds = None if kinds is None else {kind.lower() for kind in kinds}
        return [
            GroupListing(*row)
            for row in await self._run(self._group_calls.groups())
            if (wanted_states is None or row.state.lower() in wanted_states)
            and (wanted_kinds is None or row.kind in wanted_kinds)
        ]

    async def describe_groups(self, groups: Iterable[str]) -> list[GroupDescription]:
        """Each group with its members, in the order asked for.  Raises GroupNotFoundError."""
        return [
            await self.describe_group(group) for group in ([groups] if isinstance(groups, str) else groups)
        ]

    async def describe_group(self, group: str) -> GroupDescription:
        """A group with its members.  Raises GroupNotFoundError."""
        rows = await self._run(self._group_calls.groups(group))
        if not rows:
            raise GroupNotFoundError(f"There is no group {group!r}.", details={"group": group})
        members = await self._run(self._group_calls.group_members(group))
        row = rows[0]
        return GroupDescription(
            row.group,
            row.kind,
            row.state,
            row.assignor,
            row.group_epoch,
            row.assigned_epoch,
            tuple(_member(member) for member in members),
        )

    async def list_group_offsets(
        self, group: str, partitions: Iterable[TopicPartition] | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """The offsets that a group has committed, of some partitions or of all; none where there is none."""
        rows = await self._run(self._group_calls.committed_offsets(group))
        wanted = None if partitions is None else {TopicPartition(*tp) for tp in partitions}
        found = {
            TopicPartition(row.topic, row.partition): OffsetAndMetadata(
                row.offset, row.metadata, row.leader_epoch
            )
            for row in rows
        }
        return {tp: each for tp, each in found.items() if wanted is None or tp in wanted}

    async def group_lag(self, group: str) -> list[PartitionLag]:
        """How far a group has come, partition by partition.  Raises GroupNotFoundError."""
        rows = await self._run(self._group_calls.lag_of(group))
        if not rows:
            await self.describe_group(group)
        return [
            PartitionLag(
                topic=row.topic,
                partition=row.partition,
                committed_offset=row.committed_offset,
                log_start=row.log_start,
                end_offset=row.end_offset,
                lag=row.lag,
                seconds_behind=row.seconds_behind,
                metadata=row.metadata,
                member_id=row.member_id,
                instance_id=row.instance_id,
                client_id=row.client_id,
                claim_epoch=row.claim_epoch,
                topic_id=row.topic_id,
            )
            for row in rows
        ]

    async def plan_offset_reset(
        self,
        group: str,
        reset: OffsetReset,
        partitions: Iterable[TopicPartition] | None = None,
        *,
        topics: Iterable[str] | None = None,
    ) -> list[PlannedOffset]:
        """What :meth:`reset_group_offsets` would do, without doing it.

        ``partitions``, or all partitions of ``topics``; by default those that the group has committed offsets
        for (with ``OffsetReset.to_offsets``, those it names).
        """
        if not isinstance(reset, OffsetReset):
            raise InvalidArgumentError(
                f"reset is an OffsetReset, as OffsetReset.to_earliest() is, not {reset!r}."
            )
        committed = await self.list_group_offsets(group)
        wanted = await self._wanted(reset, partitions, topics, committed)
        starts = await self.list_offsets(dict.fromkeys(wanted, EARLIEST))
        ends = await self.list_offsets(dict.fromkeys(wanted, LATEST))
        spec = reset.spec(round(time.time() * 1000))
        times = {} if spec is None else await self.list_offsets(dict.fromkeys(wanted, spec))
        extents = []
        for tp in wanted:
            start, end, found = starts[tp], ends[tp], times.get(tp)
            if start is None or end is None:
                raise _missing(tp)
            current = committed[tp].offset if tp in committed else None
            at = None if found is None else found.offset
            extents.append(PartitionExtent(tp, start.offset, end.offset, current, at))
        return reset.plan(extents)

    async def reset_group_offsets(
        self,
        group: str,
        reset: OffsetReset,
        partitions: Iterable[TopicPartition] | None = None,
        *,
        topics: Iterable[str] | None = None,
    ) -> list[PlannedOffset]:
        """Put a group's offsets elsewhere: all or none; what was done.

        The group is made if there is none.  Raises GroupNotEmptyError while it has members.
        """
        planned = await self.plan_offset_reset(group, reset, partitions, topics=topics)
        await self.alter_group_offsets(group, {each.topic_partition: each.target for each in planned})
        return planned

    async def alter_group_offsets(
        self, group: str, offsets: Mapping[TopicPartition, int | OffsetAndMetadata]
    ) -> dict[TopicPartition, int]:
        """Set committed offsets: all or none; what they are now, moved to the nearest offset in the log.

        The group is made if there is none.  Raises GroupNotEmptyError while it has members.
        """
        wanted = offsets_to_commit(offsets)
        if not wanted:
            return {}
        pairs = await self._pairs(wanted)
        call = self._group_calls.reset_offsets(group, pairs, [each.offset for each in wanted.values()])
        placed = await self._run(call)
        return dict(zip(wanted, placed, strict=True))

    async def delete_group_offsets(self, group: str, partitions: Iterable[TopicPartition]) -> int:
        """Forget committed offsets; how many there were.

        Raises GroupNotEmptyError while a member subscribes to one of the topics, GroupNotFoundError.
        """
        pairs = await self._pairs([TopicPartition(*tp) for tp in partitions])
        return await self._run(self._group_calls.delete_group_offsets(group, pairs))

    async def delete_groups(self, groups: Iterable[str]) -> None:
        """Delete groups with all they have committed, one after the other.

        Raises GroupNotEmptyError for one that has members, GroupNotFoundError.
        """
        for group in [groups] if isinstance(groups, str) else groups:
            await self._run(self._group_calls.delete_group(group))

    async def remove_group_member(self, group: str, member: str) -> None:
        """Throw out the member with this member id or instance id; its partitions are free at once.

        A program that still runs joins again by itself.  Raises UnknownMemberError, GroupNotFoundError.
        """
        await self._run(self._group_calls.remove_member(group, member))
        rows = await self._run(self._group_calls.group_id_of(group))
        if rows is not None:
            await self._run(self._group_calls.wake_group(rows, "targets"))

    async def _wanted(
        self,
        reset: OffsetReset,
        partitions: Iterable[TopicPartition] | None,
        topics: Iterable[str] | None,
        committed: Mapping[TopicPartition, OffsetAndMetadata],
    ) -> list[TopicPartition]:
        if partitions is not None:
            return [TopicPartition(*tp) for tp in partitions]
        if topics is not None:
            described = await self.describe_topics(topics)
            return [
                TopicPartition(each.topic, number) for each in described for number in range(each.partitions)
            ]
        return sorted(reset.offsets if reset.offsets is not None else committed)

    async def _pairs(self, partitions: Iterable[TopicPartition]) -> list[tuple[int, int]]:
        wanted = list(partitions)
        described = {
            each.topic: each for each in await self.describe_topics(sorted({tp.topic for tp in wanted}))
        }
        for tp in wanted:
            if not 0 <= tp.partition < described[tp.topic].partitions:
                raise _missing(tp)
        return [(described[tp.topic].topic_id, tp.partition) for tp in wanted]


def _member(row: MemberRow) -> MemberDescription:
    owned = {
        TopicPartition(each["topic"], each["partition"]): each["claim_epoch"]
        for each in json.loads(row.assignment)
    }
    return MemberDescription(
        row.member_id,
        row.instance_id,
        row.client_id,
        row.host,
        row.subscription,
        row.by_pattern,
        owned,
        row.to_come,
        row.to_go,
        row.session_timeout_ms,
        row.max_poll_interval_ms,
        row.joined_at,
        row.lease_until,
    )


def _missing(tp: TopicPartition) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(
        f"Topic {tp.topic!r} has no partition {tp.partition}.", details=tp._asdict()
    )
