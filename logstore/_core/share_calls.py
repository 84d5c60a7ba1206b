"""The SQL functions of share groups as calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from logstore._core.arrays import Int4Array, Int8Array, TextArray
from logstore._core.call import Call, Row
from logstore._core.calls import Calls, Fetched
from logstore.share import ShareConfig, SharePartition

__all__ = [
    "Acknowledgements",
    "Acquired",
    "AcquiredRange",
    "Refused",
    "ShareCalls",
]


T = TypeVar("T")


class AcquiredRange(NamedTuple):
    """Records that were acquired: a range of offsets, both ends included."""

    idx: int
    """1-based position of the topic in the request; 0: not from :meth:`ShareCalls.acquire`."""
    topic_id: int
    partition: int
    first_offset: int
    last_offset: int
    delivery_count: int
    lock_ms: int
    """How long they are the member's."""


class Acquired(NamedTuple):
    """The answer to ``acquire``."""

    ranges: list[AcquiredRange]
    lock_ms: int
    wait_ms: int | None
    """When nothing was acquired: in how many milliseconds something will be due; None: not known."""


class Refused(NamedTuple):
    """A part of an acknowledgement that was refused: these records are not the member's."""

    idx: int
    """1-based position in the request."""
    first_offset: int
    last_offset: int


class Acknowledgements(NamedTuple):
    """Parallel sequences, as ``acknowledge`` takes them; ranges of offsets include both ends."""

    topic_ids: Sequence[int]
    partitions: Sequence[int]
    first_offsets: Sequence[int]
    last_offsets: Sequence[int]
    types: Sequence[int]
    delays_ms: Sequence[int | None] | None = None
    reasons: Sequence[str | None] | None = None


_PARTITION_COLUMNS = (
    '"group", topic, topic_id, partition, start_offset, end_offset, in_flight, available, delayed, lag, '
    "members, (extract(epoch from next_due_at) * 1000)::int8"
)


class ShareCalls(Calls):
    """The SQL functions of one log, with those of share groups."""

    def __init__(self, schema: str = "logstore") -> None:
        super().__init__(schema)
        self._open_group = self._value("open_share_group", "text", "text[]", "boolean")
        self._acquire = self._rows(
            "idx, topic_id, partition, first_offset, last_offset, delivery_count, lock_ms, wait_ms",
            "acquire", "text", "text", "text[]", "int4", "boolean",
        )  # fmt: skip
        self._acquired = self._rows(
            "0, topic_id, partition, first_offset, last_offset, delivery_count, lock_ms",
            "acquired", "text", "text",
        )  # fmt: skip
        self._fetch_records = self._rows(
            "idx, null::int8, null::int8, base_offset, last_offset, record_count, leader_epoch, "
            'timestamp_type, max_timestamp, timestamps, keys, "values", '
            "header_records, header_keys, header_values, offset_deltas",
            "fetch_records", "int4[]", "int4[]", "int8[]", "int8[]", "int4",
        )  # fmt: skip
        self._acknowledge = self._rows(
            "idx, first_offset, last_offset", "acknowledge",
            "text", "text", "int4[]", "int4[]", "int8[]", "int8[]", "int2[]", "int8[]", "text[]", "boolean",
        ).replace("$7::int2[]", "$7::int4[]::int2[]")  # fmt: skip
        self._alter = self._value("alter_share_group", "text", "text::jsonb", "text[]")
        self._describe = self._rows(
            'name, value, "default", is_default, type, minimum, maximum, doc',
            "describe_share_configs",
            "text",
        )
        self._reset_share = self._value("reset_share_offsets", "text", "int4[]", "int4[]", "int8[]")
        self._forget = self._value("delete_share_offsets", "text", "int4[]", "int4[]")
        self._delete_share = self._value("delete_share_group", "text")
        self._partitions_sql = (
            f"SELECT {_PARTITION_COLUMNS} FROM {self._prefix}share_groups "  # noqa: S608 (our own names)
            'WHERE $1::text IS NULL OR "group" = $1::text ORDER BY "group", topic, partition'
        )

    # -- members -------------------------------------------------------------------------------------------

    def open_share_group(
        self, group: str, topics: Sequence[str], *, key_ordered: bool | None = None
    ) -> Call[list[int]]:
        """Make the group where it is new; the topics' ids."""
        args = (group, TextArray(topics), key_ordered)
        return Call(self._open_group, args, _value, "open_share_group", writes=True)

    def acquire(
        self,
        group: str,
        member: str,
        topics: Sequence[str],
        max_records: int,
        *,
        key_ordered: bool | None = None,
    ) -> Call[Acquired]:
        """Acquire up to ``max_records`` records for ``member``."""
        args = (group, member, TextArray(topics), max_records, key_ordered)
        return Call(self._acquire, args, _acquired, "acquire", writes=True)

    def acquired(self, group: str, member: str) -> Call[list[AcquiredRange]]:
        """What ``member`` has acquired and not acknowledged."""
        return Call(self._acquired, (group, member), partial(_many, AcquiredRange), "acquired")

    def fetch_records(
        self,
        topic_ids: Sequence[int],
        partitions: Sequence[int],
        first_offsets: Sequence[int],
        last_offsets: Sequence[int],
        max_bytes: int,
    ) -> Call[Fetched]:
        """The records of these ranges, in ascending order of topic, partition and offset.

        A last row without records says where it stopped because of ``max_bytes``.
        """
        args = (
            Int4Array(topic_ids),
            Int4Array(partitions),
            Int8Array(first_offsets),
            Int8Array(last_offsets),
            max_bytes,
        )
        return Call(self._fetch_records, args, Fetched.of, "fetch_records")

    def acknowledge(
        self, group: str, member: str, acknowledgements: Acknowledgements, *, strict: bool = False
    ) -> Call[list[Refused]]:
        """Acknowledge; what was refused.  ``strict``: all or nothing, raising InvalidRecordStateError."""
        given = acknowledgements
        args = (
            group,
            member,
            Int4Array(given.topic_ids),
            Int4Array(given.partitions),
            Int8Array(given.first_offsets),
            Int8Array(given.last_offsets),
            Int4Array(given.types),
            None if given.delays_ms is None else Int8Array(given.delays_ms),
            None if given.reasons is None else TextArray(given.reasons),
            strict,
        )
        return Call(self._acknowledge, args, partial(_many, Refused), "acknowledge", writes=True)

    # -- administration ------------------------------------------------------------------------------------

    def alter_share_group(
        self, group: str, configs: Mapping[str, str], unset: Sequence[str] = ()
    ) -> Call[None]:
        """Set and unset configs; a group that does not exist is made."""
        args = (group, json.dumps(dict(configs)), TextArray(unset))
        return Call(self._alter, args, _none, "alter_share_group", writes=True)

    def describe_share_configs(self, group: str) -> Call[list[ShareConfig]]:
        """Every config of a share group."""
        return Call(
            self._describe,
            (group,),
            lambda rows: [ShareConfig(*row) for row in rows],
            "describe_share_configs",
        )

    def share_partitions(self, group: str | None = None) -> Call[list[SharePartition]]:
        """The view ``share_groups``, of one group or of all."""
        return Call(
            self._partitions_sql,
            (group,),
            lambda rows: [SharePartition(*row) for row in rows],
            "share_groups",
        )

    def reset_share_offsets(
        self, group: str, partitions: Sequence[tuple[int, int]], offsets: Sequence[int]
    ) -> Call[list[int]]:
        """Move the group's start in these (topic_id, partition); the offsets as they are now."""
        args = (group, *_pairs(partitions), Int8Array(offsets))
        return Call(self._reset_share, args, _value, "reset_share_offsets", writes=True)

    def delete_share_offsets(self, group: str, partitions: Sequence[tuple[int, int]]) -> Call[int]:
        """Forget these (topic_id, partition); how many the group knew."""
        return Call(self._forget, (group, *_pairs(partitions)), _value, "delete_share_offsets", writes=True)

    def delete_share_group(self, group: str) -> Call[None]:
        return Call(self._delete_share, (group,), _none, "delete_share_group", writes=True)


def _pairs(partitions: Sequence[tuple[int, int]]) -> tuple[Int4Array, Int4Array]:
    return (
        Int4Array([topic_id for topic_id, _ in partitions]),
        Int4Array([number for _, number in partitions]),
    )


def _acquired(rows: Sequence[Row]) -> Acquired:
    ranges = [AcquiredRange(*row[:7]) for row in rows if row[0] is not None]
    lock_ms, wait_ms = rows[0][6:] if rows else (0, 0)
    return Acquired(ranges, lock_ms, wait_ms)


def _many(kind: Callable[..., T], rows: Sequence[Row]) -> list[T]:
    return [kind(*row) for row in rows]


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None
