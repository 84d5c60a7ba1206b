"""The values that go in and come out of a log: small, immutable, cheap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = [
    "CREATE_TIME",
    "LOG_APPEND_TIME",
    "BatchMetadata",
    "ConsumerGroupMetadata",
    "ConsumerRecord",
    "Header",
    "OffsetAndMetadata",
    "OffsetAndTimestamp",
    "RecordMetadata",
    "TopicPartition",
]

CREATE_TIME: Final = 0
"""``timestamp_type`` of a record whose time stamp its producer set."""
LOG_APPEND_TIME: Final = 1
"""``timestamp_type`` of a record whose time stamp the server set when it appended the record."""

Header = tuple[str, bytes | None]
"""One header: a name and a value.  A record may have several of one name; their order is kept."""


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class RecordMetadata(NamedTuple):
    """Where an acknowledged record is in the log."""

    topic: str
    partition: int
    offset: int
    """-1 with ``acks=0``, where nothing is awaited."""
    timestamp: int
    """Milliseconds since the epoch: the record's own, or the server's with LogAppendTime."""
    timestamp_type: int
    serialized_key_size: int
    """Bytes; -1 without a key."""
    serialized_value_size: int
    """Bytes; -1 for a tombstone (a value of None)."""
    throttle_time_ms: int = 0
    """For how long the producer sends nothing more, because its quota was used up by then."""

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class BatchMetadata(NamedTuple):
    """Where a run of acknowledged records is in the log: their offsets follow each other without a gap."""

    topic: str
    partition: int
    base_offset: int
    """The offset of the first; -1 with ``acks=0``, where nothing is awaited."""
    record_count: int
    append_time: int
    """Milliseconds since the epoch with ``message.timestamp.type=LogAppendTime``; -1 otherwise."""
    throttle_time_ms: int = 0
    """For how long the producer sends nothing more, because its quota was used up by then."""

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class ConsumerRecord(NamedTuple):
    """One record as a consumer gets it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    timestamp_type: int
    """:data:`CREATE_TIME` or :data:`LOG_APPEND_TIME`."""
    key: Any
    """``bytes`` or None, or whatever ``key_deserializer`` made of it."""
    value: Any
    """``bytes`` or None (a tombstone), or whatever ``value_deserializer`` made of it."""
    headers: tuple[Header, ...]
    leader_epoch: int
    """The epoch of the leader that appended the record."""

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class OffsetAndTimestamp(NamedTuple):
    """The answer to "which record is the first at or after this time?"."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    leader_epoch: int


class OffsetAndMetadata(NamedTuple):
    """A committed offset: of the next record to be read, with a note of the program's own."""

    offset: int
    metadata: str = ""
    """At most 4096 bytes."""
    leader_epoch: int | None = None
    """The epoch of the leader that appended the record before; None: not known."""


class ConsumerGroupMetadata(NamedTuple):
    """What identifies a member of a group."""

    group_id: str
    generation_id: int = -1
    """The epoch of the group's assignment that the member knows; -1: none yet."""
    member_id: str = ""
    group_instance_id: str | None = None
    claims: Mapping[TopicPartition, tuple[int, int]] | None = None
    """The partitions that the member owns, each with its topic's id and the claim's epoch: the fence of what
    is committed with a producer's transaction.  None: partitions are assigned by hand."""
