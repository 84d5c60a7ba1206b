"""Every SQL function of the log as a method that returns a :class:`~logstore._core.call.Call`.

This is the whole protocol between client and server.  The texts are rendered once per client, with the
quoted name of the schema; values only ever travel as parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.call import Call, Row, quoted

__all__ = [
    "EARLIEST",
    "EARLIEST_LOCAL",
    "LATEST",
    "LATEST_TIERED",
    "MAX_TIMESTAMP",
    "AppendBatch",
    "AppendResult",
    "Call",
    "Calls",
    "ConfigEntry",
    "EpochEnd",
    "FetchRow",
    "Fetched",
    "ListedOffset",
    "ReplicaState",
    "Sealed",
    "ServerInfo",
    "TopicMetadata",
    "Watermarks",
]

T = TypeVar("T")

LATEST: Final = -1
"""``list_offsets``: the end of the log, as far as it may be read."""
EARLIEST: Final = -2
"""``list_offsets``: the start of the log."""
MAX_TIMESTAMP: Final = -3
"""``list_offsets``: the record with the highest time stamp."""
EARLIEST_LOCAL: Final = -4
"""``list_offsets``: the start of what PostgreSQL has; what comes before is in files."""
LATEST_TIERED: Final = -5
"""``list_offsets``: the end of what is in files."""


class ServerInfo(NamedTuple):
    """What a client asks once per connection."""

    revision: str | None
    """The schema's Alembic revision."""
    fingerprint: str | None
    """Identifies the SQL functions that are installed."""
    is_in_recovery: bool
    """The server is a follower: read-only, and without LISTEN."""
    boot: int = 0
    """When the server was started, in microseconds since the epoch; with ``timeline`` it says which leader
    this is, and which life of it.
    """
    timeline: int = 0
    """Of the write-ahead log that it writes, or replays."""
    replicated: bool = False
    """What may be read ends at what standbys have."""


class TopicMetadata(NamedTuple):
    topic: str
    topic_id: int
    partitions: int
    timestamp_type: int
    """``CREATE_TIME`` or ``LOG_APPEND_TIME``."""
    max_message_bytes: int
    configs: dict[str, str]
    """Effective configs: what was set, else the default."""


class AppendBatch(NamedTuple):
    """One record batch as ``append`` takes it."""

    topic_id: int
    partition: int
    record_count: int
    max_timestamp: int
    """Milliseconds."""
    timestamps: Int8Array | None
    """None: all are ``max_timestamp``."""
    keys: ByteaArray | None
    """None: no record has a key."""
    values: ByteaArray | None
    """None: all are tombstones."""
    header_records: Int4Array | None = None
    """For each header, the 1-based ordinal of its record, ascending; None: no headers."""
    header_keys: TextArray | None = None
    header_values: ByteaArray | None = None
    producer_id: int | None = None
    producer_epoch: int | None = None
    base_sequence: int | None = None
    leader_epoch: int | None = None


class AppendResult(NamedTuple):
    base_offset: int
    append_time: int
    """Milliseconds; -1 when the records keep their producer's time stamps."""
    log_start_offset: int
    throttle_ms: int = 0
    """For how long nothing more is to be appended, by the client's quota."""


class FetchRow(NamedTuple):
    """One row of ``fetch``: either a partition's state (``base_offset`` is None) or one of its batches."""

    idx: int
    """1-based position of the partition in the request."""
    log_start: int | None
    """On state rows; None there: the partition does not exist."""
    high_watermark: int | None
    base_offset: int | None
    last_offset: int
    record_count: int
    leader_epoch: int
    timestamp_type: int
    max_timestamp: int
    timestamps: list[int] | None
    keys: list[bytes | None] | None
    values: list[bytes | None] | None
    header_records: list[int] | None
    header_keys: list[str] | None
    header_values: list[bytes | None] | None
    offset_deltas: list[int] | None
    """None: dense from ``base_offset``."""
    local_start: int | None = None
    """On state rows: records from ``log_start`` to here are in files only."""
    log_end: int | None = None
    """On state rows: where the log ends; from the high watermark to here it may not be read yet."""


class Fetched(list[FetchRow]):
    """The rows of a fetch."""

    throttle_ms: int = 0
    """For how long nothing more is to be fetched, by the client's quota."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Fetched:
        """What the server sent: a last row with the idx 0 is not one of them."""
        found = cls(FetchRow(*row) for row in rows)
        if found and not found[-1].idx:
            found.throttle_ms = found.pop().record_count
        return found


class Watermarks(NamedTuple):
    idx: int
    log_start: int | None
    """None: the partition does not exist."""
    high_watermark: int | None


class Sealed(NamedTuple):
    """What the leader says after it has sealed."""

    seal_id: int | None
    """The newest seal; None: there is none."""
    pending: bool
    """Something is committed that followers may not hand out yet."""


class ReplicaState(NamedTuple):
    """How far a follower has come."""

    seal_id: int | None
    """The newest seal that it has."""
    sealed_at: int | None
    """When that was made, by the leader's clock: milliseconds."""
    replay_lag_ms: int | None
    """What the follower thinks of itself, by two clocks."""


class EpochEnd(NamedTuple):
    """A place that is not in the log."""

    idx: int
    """1-based position in the request."""
    leader_epoch: int | None
    """The largest epoch up to the one that was asked for; None: the log has nothing so old."""
    end_offset: int
    """Where it ends."""


class ListedOffset(NamedTuple):
    idx: int
    offset: int | None
    """None: no record is that late."""
    timestamp: int | None
    leader_epoch: int | None
    remote: bool = False
    """The record is in a file, the one that begins at ``offset`` or a later one; ``timestamp`` is what to
    look for there.
    """


class ConfigEntry(NamedTuple):
    """One topic config, its value and its definition."""

    name: str
    value: str | None
    default: str | None
    is_default: bool
    type: str
    values: list[str] | None
    """The allowed values, where there is a fixed set."""
    minimum: str | None
    maximum: str | None
    doc: str


_APPEND_CASTS: Final = (
    "int4", "int4", "int4", "int8", "int8[]", "bytea[]", "bytea[]", "int4[]", "text[]", "bytea[]",
    "int2", "int8", "int2", "int4", "int4",
)  # fmt: skip


KEPT_BATCHES: Final = 64
"""Each number of batches in a request is a text of its own, of which the server keeps 7 kB a batch: with more
batches than these it is not kept."""


class Calls:
    """The SQL functions of one log.

    ``schema`` is the schema that the log lives in; it may be any name, it is quoted.
    """

    def __init__(self, schema: str = "logstore") -> None:
        self.schema = schema
        self._prefix = quoted(schema) + "."
        self._append_sql: dict[int, str] = {}
        self._metadata = self._rows(
            "topic, topic_id, partitions, timestamp_type, max_message_bytes, configs::text",
            "metadata",
            "text[]",
        )
        self._fetch = self._rows(
            ", ".join(FetchRow._fields), "fetch", "int4[]", "int4[]", "int8[]", "int4", "int4"
        )
        self._high_watermarks = self._rows(
            "idx, log_start, high_watermark", "high_watermarks", "int4[]", "int4[]"
        )
        self._list_offsets = self._rows(
            'idx, "offset", "timestamp", leader_epoch, remote', "list_offsets", "int4[]", "int4[]", "int8[]"
        )
        self._create_topic = self._value("create_topic", "text", "int4", "text::jsonb", "boolean", "int4")
        self._alter_topic = self._value("alter_topic", "text", "text::jsonb", "text[]")
        self._add_partitions = self._value("add_partitions", "text", "int4")
        self._delete_topic = self._value("delete_topic", "text")
        self._delete_records = self._value("delete_records", "text", "int4", "int8")
        self._describe_configs = self._rows(
            'name, value, "default", is_default, type, "values", minimum, maximum, doc',
            "describe_configs",
            "text",
        )
        self._produce = self._value("produce", "text", "bytea", "bytea", "text::jsonb", "int4")
        self._wake = self._value("wake", "int4[]")
        self._waiting = self._value("waiting", "int4[]")
        self._not_waiting = self._value("not_waiting", "int4[]")
        self._info = self._rows("revision, fingerprint, is_in_recovery, boot, timeline, replicated", "info")
        self._schema_version = self._value("schema_version")
        self._seal = self._rows("sealed_to, pending", "seal")
        self._replica_state = self._rows("seal_id, sealed_at, replay_lag_ms", "replica_state")
        self._epoch_ends = self._rows(
            "idx, leader_epoch, end_offset", "epoch_ends", "int4[]", "int4[]", "int4[]", "int8[]"
        )

    @property
    def wake_channel(self) -> str:
        """The channel that ``wake`` notifies; its payloads are topic ids."""
        return self.schema + "_wake"

    def info(self) -> Call[ServerInfo]:
        """What the server is; asked once per connection."""
        return Call(self._info, (), partial(_one, ServerInfo), "info")

    def schema_version(self) -> Call[str | None]:
        """The schema's revision."""
        return Call(self._schema_version, (), _value, "schema_version")

    def metadata(self, topics: Iterable[str] | None = None) -> Call[list[TopicMetadata]]:
        """The topics that exist among ``topics``; all there are for None."""
        names = None if topics is None else TextArray(list(topics))
        return Call(self._metadata, (names,), _metadata, "metadata")

    def append(self, batches: Sequence[AppendBatch], acks: int) -> Call[list[AppendResult]]:
        """Append ``batches`` in one transaction: all or none.

        They have to be in ascending order of (topic_id, partition), each at most once, which keeps
        transactions from deadlocking.  ``acks`` is 0, 1 or -1 (all).
        """
        count = len(batches)
        sql = self._append_sql.get(count) or self._append_text(count)
        if kept := count <= KEPT_BATCHES:
            self._append_sql[count] = sql
        args: list[Any] = []
        for batch in batches:
            args += batch[:10]
            args.append(acks)
            args += batch[10:]
        return Call(sql, tuple(args), _append_results, "append", writes=True, prepared=kept)

    def fetch(
        self,
        topic_ids: Sequence[int],
        partitions: Sequence[int],
        offsets: Sequence[int],
        max_bytes: int,
        max_partition_bytes: int,
    ) -> Call[Fetched]:
        """The batches at and after ``offsets`` of several partitions (three parallel sequences)."""
        args = (
            Int4Array(topic_ids),
            Int4Array(partitions),
            Int8Array(offsets),
            max_bytes,
            max_partition_bytes,
        )
        return Call(self._fetch, args, Fetched.of, "fetch")

    def high_watermarks(self, topic_ids: Sequence[int], partitions: Sequence[int]) -> Call[list[Watermarks]]:
        """How far each partition may be read."""
        args = (Int4Array(topic_ids), Int4Array(partitions))
        return Call(self._high_watermarks, args, partial(_many, Watermarks), "high_watermarks")

    def seal(self) -> Call[Sealed]:
        """Have the leader say what is replicated by now."""
        return Call(self._seal, (), partial(_one, Sealed), "seal")

    def replica_state(self) -> Call[ReplicaState]:
        """How far a follower has come."""
        return Call(self._replica_state, (), partial(_one, ReplicaState), "replica_state")

    def epoch_ends(
        self,
        topic_ids: Sequence[int],
        partitions: Sequence[int],
        epochs: Sequence[int],
        offsets: Sequence[int],
    ) -> Call[list[EpochEnd]]:
        """Those of the places (an offset, and the epoch of what comes before it) that are not in the log."""
        args = (Int4Array(topic_ids), Int4Array(partitions), Int4Array(epochs), Int8Array(offsets))
        return Call(self._epoch_ends, args, partial(_many, EpochEnd), "epoch_ends")

    def list_offsets(
        self, topic_ids: Sequence[int], partitions: Sequence[int], specs: Sequence[int]
    ) -> Call[list[ListedOffset]]:
        """Offsets by :data:`EARLIEST`, :data:`LATEST`, :data:`MAX_TIMESTAMP` or a time stamp (ms)."""
        args = (Int4Array(topic_ids), Int4Array(partitions), Int8Array(specs))
        return Call(self._list_offsets, args, partial(_many, ListedOffset), "list_offsets")

    def create_topic(
        self,
        name: str,
        partitions: int,
        configs: Mapping[str, str] | None = None,
        *,
        if_not_exists: bool = False,
        replication_factor: int = -1,
    ) -> Call[int]:
        """Create a topic; the answer is its id."""
        args = (name, partitions, _json(configs), if_not_exists, replication_factor)
        return Call(self._create_topic, args, _value, "create_topic", writes=True)

    def alter_topic(self, name: str, configs: Mapping[str, str], unset: Sequence[str] = ()) -> Call[None]:
        """Set and unset configs."""
        return Call(
            self._alter_topic, (name, _json(configs), TextArray(unset)), _none, "alter_topic", writes=True
        )

    def add_partitions(self, name: str, total: int) -> Call[None]:
        """Raise the number of partitions to ``total``."""
        return Call(self._add_partitions, (name, total), _none, "add_partitions", writes=True)

    def delete_topic(self, name: str) -> Call[None]:
        """Make a topic invisible and fence its writers; the space is freed later."""
        return Call(self._delete_topic, (name,), _none, "delete_topic", writes=True)

    def delete_records(self, topic: str, partition: int, before_offset: int) -> Call[int]:
        """Move the log start to ``before_offset`` (-1: the high watermark) and return it."""
        args = (topic, partition, before_offset)
        return Call(self._delete_records, args, _value, "delete_records", writes=True)

    def describe_configs(self, topic: str) -> Call[list[ConfigEntry]]:
        """Every config of a topic."""
        return Call(self._describe_configs, (topic,), partial(_many, ConfigEntry), "describe_configs")

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, str] | None = None,
        partition: int | None = None,
    ) -> Call[int]:
        """Append one record by topic name; the answer is its partition."""
        args = (topic, key, value, None if headers is None else _json(headers), partition)
        return Call(self._produce, args, _value, "produce", writes=True)

    def wake(self, topic_ids: Sequence[int]) -> Call[None]:
        """Notify whoever waits for records of these topics; for after the commit, never inside it."""
        return Call(self._wake, (Int4Array(topic_ids),), _none, "wake")

    def waiting(self, topic_ids: Sequence[int]) -> Call[None]:
        """Announce that this session listens for records of these topics."""
        return Call(self._waiting, (Int4Array(topic_ids),), _none, "waiting")

    def not_waiting(self, topic_ids: Sequence[int]) -> Call[None]:
        """Take :meth:`waiting` back."""
        return Call(self._not_waiting, (Int4Array(topic_ids),), _none, "not_waiting")

    def _function(self, function: str, casts: Sequence[str], first: int = 1) -> str:
        parameters = ", ".join(f"${number}::{cast}" for number, cast in enumerate(casts, first))
        return f"{self._prefix}{quoted(function)}({parameters})"

    def _rows(self, columns: str, function: str, *casts: str) -> str:
        return f"SELECT {columns} FROM {self._function(function, casts)}"  # noqa: S608 (our own names)

    def _value(self, function: str, *casts: str) -> str:
        return f"SELECT {self._function(function, casts)}"

    def _append_text(self, count: int) -> str:
        step = len(_APPEND_CASTS)
        calls = (self._function("append", _APPEND_CASTS, 1 + step * ordinal) for ordinal in range(count))
        return "SELECT " + ", ".join(calls)


def _json(value: Mapping[str, str] | None) -> str:
    return json.dumps(dict(value or {}))


def _many(kind: Callable[..., T], rows: Sequence[Row]) -> list[T]:
    return [kind(*row) for row in rows]


def _one(kind: Callable[..., T], rows: Sequence[Row]) -> T:
    return kind(*rows[0])


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None


def _metadata(rows: Sequence[Row]) -> list[TopicMetadata]:
    return [TopicMetadata(row[0], row[1], row[2], row[3], row[4], json.loads(row[5])) for row in rows]


def _append_results(rows: Sequence[Row]) -> list[AppendResult]:
    return [AppendResult(*column) for column in rows[0]]
