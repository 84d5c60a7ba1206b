"""The SQL functions of segments in files, as :class:`~logstore._core.call.Call` objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.call import Call, Row, quoted
from logstore._core.calls import FetchRow

__all__ = ["FoundTime", "RemoteFile", "TierCalls"]


class RemoteFile(NamedTuple):
    """One file, as the catalog knows it."""

    file_id: int
    topic_id: int
    partition: int
    first_offset: int
    """Of the range that it covers."""
    last_offset: int
    records: int
    """How many it has: fewer than offsets where some were erased."""
    size: int
    """Of the file, in bytes."""
    log_bytes: int
    """Of its batches in the log."""
    min_timestamp: int | None
    """Milliseconds; None: it has no record."""
    max_timestamp: int | None
    url: str
    sha256: bytes
    part_ends: list[int]
    """Where each of its row groups ends, in bytes, and then the file."""
    part_sha256: list[bytes]
    """Of each row group, and of what comes after them."""
    group_last_offsets: list[int]
    """For each row group, its last record's offset; of the last one, ``last_offset``."""
    group_max_timestamps: list[int]


class FoundTime(NamedTuple):
    """Where the search for a time stamp leads."""

    offset: int | None
    """The record; None: see ``file``."""
    timestamp: int | None
    leader_epoch: int | None
    log_start: int
    file: RemoteFile | None
    """Where to look for it; None, with no ``offset``: there is none."""


class TierCalls:
    """``schema`` is the log's; it is quoted."""

    def __init__(self, schema: str = "logstore") -> None:
        self.schema = schema
        prefix = quoted(schema) + "."
        names = ["bytes" if name == "size" else name for name in RemoteFile._fields]
        columns = ", ".join(f'f."{name}"' for name in names)
        inner = ", ".join(f'(t.file)."{name}"' for name in names)
        self._remote_files = (
            f"SELECT {columns} FROM {prefix}remote_files($1::int4, $2::int4, $3::int8, $4::int4) f"  # noqa: S608
        )
        self._find_time = (
            f'SELECT t."offset", t.found_timestamp, t.leader_epoch, t.log_start, {inner} '  # noqa: S608
            f"FROM {prefix}find_time($1::int4, $2::int4, $3::int8, $4::int8) t"
        )
        self._read_chunk = (
            f"SELECT {', '.join(FetchRow._fields)} FROM {prefix}read_chunk("  # noqa: S608
            "$1::text, $2::int4, $3::int8, $4::int8, $5::int8, $6::int8, $7::int8)"
        )
        casts = (
            "int4", "int4", "int4", "int8", "int8", "int4", "int4", "int2", "int8", "int8", "int8[]",
            "bytea[]", "bytea[]", "int4[]", "text[]", "bytea[]", "int4[]",
        )  # fmt: skip
        parameters = ", ".join(f"${number}::{cast}" for number, cast in enumerate(casts, 1))
        self._restore_batch = f"SELECT {prefix}restore_batch({parameters})"

    def remote_files(
        self, topic_id: int, partition: int, offset: int, most: int | None = None
    ) -> Call[list[RemoteFile]]:
        """The files that hold what is only there of a partition, from ``offset`` on; at most ``most``."""
        return Call(self._remote_files, (topic_id, partition, offset, most), _files, "remote_files")

    def find_time(self, topic_id: int, partition: int, timestamp: int, from_offset: int) -> Call[FoundTime]:
        """The first record from ``from_offset`` on with ``timestamp`` (ms) or a later one."""
        return Call(self._find_time, (topic_id, partition, timestamp, from_offset), _found, "find_time")

    def read_chunk(
        self,
        topic: str,
        partition: int,
        from_offset: int,
        to_offset: int | None,
        from_time: int | None,
        to_time: int | None,
        max_records: int,
    ) -> Call[list[FetchRow]]:
        """The state of a partition, then the batches in PostgreSQL that may have records of the range.

        None of them when ``from_offset`` is in a file.  Times are milliseconds; bounds are half open.
        """
        args = (topic, partition, from_offset, to_offset, from_time, to_time, max_records)
        return Call(self._read_chunk, args, _rows, "read_chunk")

    def restore_batch(
        self, topic_id: int, segment: int, partition: int, row: FetchRow, min_timestamp: int
    ) -> Call[None]:
        """Write a batch that was read from a file."""
        args = (
            topic_id,
            segment,
            partition,
            row.base_offset,
            row.last_offset,
            row.record_count,
            row.leader_epoch,
            row.timestamp_type,
            min_timestamp,
            row.max_timestamp,
            None if row.timestamps is None else Int8Array(row.timestamps),
            None if row.keys is None else ByteaArray(row.keys),
            None if row.values is None else ByteaArray(row.values),
            None if row.header_records is None else Int4Array(row.header_records),
            None if row.header_keys is None else TextArray(row.header_keys),
            None if row.header_values is None else ByteaArray(row.header_values),
            None if row.offset_deltas is None else Int4Array(row.offset_deltas),
        )
        return Call(self._restore_batch, args, _none, "restore_batch", writes=True)


def _none(rows: Sequence[Row]) -> None:
    return None


def _rows(rows: Sequence[Row]) -> list[FetchRow]:
    return [FetchRow(*row) for row in rows]


def _files(rows: Sequence[Row]) -> list[RemoteFile]:
    return [_file(row) for row in rows]


def _file(row: Sequence[Any]) -> RemoteFile:
    return RemoteFile(*row)


def _found(rows: Sequence[Row]) -> FoundTime:
    (row,) = rows
    file = None if row[4] is None else _file(row[4:])
    return FoundTime(row[0], row[1], row[2], row[3], file)
