"""What an admin client is told, and tells, about consumer groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from logstore.errors import InvalidArgumentError
from logstore.records import TopicPartition

__all__ = [
    "GroupDescription",
    "GroupListing",
    "MemberDescription",
    "OffsetReset",
    "PartitionExtent",
    "PartitionLag",
    "PlannedOffset",
]


class GroupListing(NamedTuple):
    """One group, in a line."""

    group: str
    kind: str
    """consumer or share."""
    state: str
    """Empty, Assigning (targets are being computed), Reconciling (partitions change hands) or Stable."""
    assignor: str
    members: int
    partitions: int
    """That somebody in the group reads."""
    group_epoch: int
    """Counts the changes of members, subscriptions and partitions."""
    assigned_epoch: int
    """The group epoch that the current assignment was computed for."""


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """One member of a group."""

    member_id: str
    instance_id: str | None
    """Of a static member."""
    client_id: str
    host: str
    """Where it connects from; "local" for a Unix socket."""
    subscription: str
    """Topic names as PostgreSQL writes an array, or a pattern."""
    by_pattern: bool
    assignment: dict[TopicPartition, int]
    """What it owns, and under which claim epoch."""
    to_come: int
    """Partitions that should be its own and still belong to somebody else."""
    to_go: int
    """Partitions that it has to give up."""
    session_timeout_ms: int
    max_poll_interval_ms: int
    joined_at: int
    """Milliseconds."""
    lease_until: int | None
    """When it is thrown out unless it sends a heartbeat; milliseconds; None on a follower."""


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """One group with its members."""

    group: str
    kind: str
    state: str
    assignor: str
    group_epoch: int
    assigned_epoch: int
    members: tuple[MemberDescription, ...]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group has come in one partition."""

    topic: str
    partition: int
    committed_offset: int | None
    log_start: int
    end_offset: int
    lag: int | None
    """Records left to read; None: nothing is committed."""
    seconds_behind: float | None
    """The age of the first record left to read; 0: none is left."""
    metadata: str | None
    member_id: str | None
    """Who owns it now."""
    instance_id: str | None
    client_id: str | None
    claim_epoch: int | None
    topic_id: int

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


@dataclass(frozen=True, slots=True)
class PlannedOffset:
    """Where a reset would take one partition."""

    topic: str
    partition: int
    current: int | None
    target: int

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


@dataclass(frozen=True, slots=True)
class OffsetReset:
    """Where to put the offsets of a group; make one with the class methods."""

    mode: str
    number: int = 0
    offsets: Mapping[TopicPartition, int] | None = None

    @classmethod
    def to_earliest(cls) -> OffsetReset:
        """The start of the log."""
        return cls("earliest")

    @classmethod
    def to_latest(cls) -> OffsetReset:
        """The end of the log."""
        return cls("latest")

    @classmethod
    def to_current(cls) -> OffsetReset:
        """What is committed (moved into the log, if need be); where nothing is, the end of the log."""
        return cls("current")

    @classmethod
    def to_offset(cls, offset: int) -> OffsetReset:
        return cls("offset", _integer(offset, 0))

    @classmethod
    def to_timestamp(cls, milliseconds: int) -> OffsetReset:
        """The first record at or after this time; where there is none, the end of the log."""
        return cls("timestamp", _integer(milliseconds, 0))

    @classmethod
    def by_duration(cls, milliseconds: int) -> OffsetReset:
        """The first record that is no older than this."""
        return cls("duration", _integer(milliseconds, 0))

    @classmethod
    def shift_by(cls, records: int) -> OffsetReset:
        """So many offsets on (or, below zero, back) from what is committed."""
        return cls("shift", _integer(records, -(2**63)))

    @classmethod
    def to_offsets(cls, offsets: Mapping[TopicPartition, int]) -> OffsetReset:
        """These offsets, each partition its own."""
        return cls("offsets", 0, {TopicPartition(*tp): _integer(o, 0) for tp, o in offsets.items()})

    def spec(self, now_ms: int) -> int | None:
        """What to ask ``list_offsets`` for; None: the answer does not depend on the log's records."""
        if self.mode == "timestamp":
            return self.number
        if self.mode == "duration":
            return max(0, now_ms - self.number)
        return None

    def plan(self, partitions: Iterable[PartitionExtent]) -> list[PlannedOffset]:
        """Where each partition goes; what is outside of the log is moved to its nearest offset.

        Raises InvalidArgumentError when nothing is committed where ``shift_by`` needs it.
        """
        return [
            PlannedOffset(
                each.tp.topic,
                each.tp.partition,
                each.current,
                min(max(self._target(each), each.start), each.end),
            )
            for each in partitions
        ]

    def _target(self, each: PartitionExtent) -> int:
        match self.mode:
            case "earliest":
                return each.start
            case "latest":
                return each.end
            case "current":
                return each.end if each.current is None else each.current
            case "offset":
                return self.number
            case "timestamp" | "duration":
                return each.end if each.found is None else each.found
            case "shift":
                if each.current is None:
                    raise InvalidArgumentError(
                        f"Nothing is committed for partition {each.tp.partition} of topic {each.tp.topic!r}: "
                        "there is nothing to shift.",
                        details={"topic": each.tp.topic, "partition": each.tp.partition},
                    )
                return each.current + self.number
            case _:
                assert self.offsets is not None
                return self.offsets[each.tp]


class PartitionExtent(NamedTuple):
    """What a reset needs to know of one partition."""

    tp: TopicPartition
    start: int
    end: int
    current: int | None
    """The committed offset."""
    found: int | None
    """The offset that a time stands for."""


def _integer(value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InvalidArgumentError(f"An offset or a number of milliseconds is an integer, not {value!r}.")
    return value
