"""Queues over the log: what members of a share group handle."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final, NamedTuple

from logstore.errors import InvalidArgumentError
from logstore.records import Header, TopicPartition

__all__ = [
    "ACCEPT",
    "DELIVER_AFTER_HEADER",
    "REJECT",
    "RELEASE",
    "RENEW",
    "AcknowledgeType",
    "ShareConfig",
    "SharePartition",
    "ShareRecord",
    "deliver_after",
]

DELIVER_AFTER_HEADER: Final = "logstore.deliver-after"
"""The header that keeps share groups from delivering a record before its time."""


class AcknowledgeType(IntEnum):
    """What became of a record."""

    ACCEPT = 1
    """It was processed; nobody gets it again."""
    RELEASE = 2
    """It was not processed; it is delivered again, at once or after a delay, unless it has been delivered
    ``share.delivery.count.limit`` times: then it is a dead letter."""
    REJECT = 3
    """It cannot be processed; it is a dead letter, and nobody gets it again."""
    RENEW = 4
    """It is still being processed: the lock lasts its whole duration from now on.  Another acknowledgement
    has to follow."""


ACCEPT: Final = AcknowledgeType.ACCEPT
RELEASE: Final = AcknowledgeType.RELEASE
REJECT: Final = AcknowledgeType.REJECT
RENEW: Final = AcknowledgeType.RENEW


class ShareRecord(NamedTuple):
    """One record as a member of a share group gets it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    timestamp_type: int
    """``CREATE_TIME`` or ``LOG_APPEND_TIME``."""
    key: Any
    """``bytes`` or None, or whatever ``key_deserializer`` made of it."""
    value: Any
    """``bytes`` or None (a tombstone), or whatever ``value_deserializer`` made of it."""
    headers: tuple[Header, ...]
    leader_epoch: int
    """The epoch of the leader that appended the record."""
    delivery_count: int
    """How often it has been delivered, this time included: 1 for the first time."""

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class SharePartition(NamedTuple):
    """Where a share group is in one partition."""

    group: str
    topic: str
    topic_id: int
    partition: int
    start_offset: int
    """Everything below it is finished."""
    end_offset: int
    """Nothing from it on has been acquired yet."""
    in_flight: int
    """Records that are acquired now."""
    available: int
    """Records that are to be delivered again."""
    delayed: int
    """Records that nobody may have before their time."""
    lag: int
    """Records that are not finished."""
    members: list[str]
    """Who has acquired records now."""
    next_due_at: int | None
    """When the first delayed record is due, in milliseconds since the epoch."""

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class ShareConfig(NamedTuple):
    """One config of a share group, its value and its definition."""

    name: str
    value: str
    default: str
    is_default: bool
    type: str
    minimum: str | None
    maximum: str | None
    doc: str


def deliver_after(when: datetime | timedelta) -> Header:
    """A header for a record that share groups are to deliver later: ``headers=[deliver_after(…)]``.

    A ``timedelta`` counts from the record's time stamp, a ``datetime`` (with a time zone) is the time itself;
    both are exact to the millisecond.  Consumers and consumer groups take no notice.  Raises
    InvalidArgumentError.
    """
    if isinstance(when, timedelta):
        delay_ms = when // timedelta(milliseconds=1)
        if delay_ms >= 0:
            return (DELIVER_AFTER_HEADER, b"+%d" % delay_ms)
    elif isinstance(when, datetime) and when.tzinfo is not None:
        at_ms = round(when.timestamp() * 1000)
        if at_ms >= 0:
            return (DELIVER_AFTER_HEADER, b"%d" % at_ms)
    raise InvalidArgumentError(
        f"A record is delivered after a timedelta from 0, or a datetime with a time zone, not {when!r}."
    )
