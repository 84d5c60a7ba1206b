"""The SQL functions of segments in files, as :class:`~logstore._core.call.Call` objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from logstore._core.call import Call, Row, quoted

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

    def remote_files(
        self, topic_id: int, partition: int, offset: int, most: int | None = None
    ) -> Call[list[RemoteFile]]:
        """The files that hold what is only there of a partition, from ``offset`` on; at most ``most``."""
        return Call(self._remote_files, (topic_id, partition, offset, most), _files, "remote_files")

    def find_time(self, topic_id: int, partition: int, timestamp: int, from_offset: int) -> Call[FoundTime]:
        """The first record from ``from_offset`` on with ``timestamp`` (ms) or a later one."""
        return Call(self._find_time, (topic_id, partition, timestamp, from_offset), _found, "find_time")


def _files(rows: Sequence[Row]) -> list[RemoteFile]:
    return [_file(row) for row in rows]


def _file(row: Sequence[Any]) -> RemoteFile:
    return RemoteFile(*row)


def _found(rows: Sequence[Row]) -> FoundTime:
    (row,) = rows
    file = None if row[4] is None else _file(row[4:])
    return FoundTime(row[0], row[1], row[2], row[3], file)
