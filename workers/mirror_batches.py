"""Batches read from one log and written to another, with their arrays as they are on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format

from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.calls import FetchRow
from logstore._core.mirrored import COLUMNS, Batch
from logstore._core.tier_calls import RemoteFile
from logstore.workers.connections import Connection

__all__ = ["Reading", "Writing", "in_file"]

ARRAYS: Final = (1001, 1007, 1009, 1016)
"""bytea[], int4[], text[], int8[]."""
CASTS: Final = (
    "int4", "int4", "int8", "int8", "int4", "int4", "int2", "int8", "int8", "int8[]", "bytea[]", "bytea[]",
    "int4[]", "text[]", "bytea[]", "int4[]",
)  # fmt: skip
"""Of the parameters of ``mirror_append()``."""


class _AsSent(Loader):
    format = Format.BINARY

    def load(self, data: Any) -> bytes:
        return bytes(data)


class _BytesDumper(Dumper):
    # Of no declared type: the cast in the statement gives it one.
    format = Format.BINARY
    oid = 0

    def dump(self, obj: Any) -> Any:
        return obj


class _IntDumper(Dumper):
    oid = 0

    def dump(self, obj: Any) -> bytes:
        return b"%d" % obj


class Reading:
    """Reads batches from the source."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        columns = ", ".join(f'b."{name}"' for name in COLUMNS)
        self._query = sql.SQL(
            f"SELECT {columns} FROM {{}}.mirror_read($1::int4, $2::int4, $3::int8, $4::int4) b"  # noqa: S608
        ).format(sql.Identifier(connection.schema))

    def batches(self, topic_id: int, partition: int, offset: int, max_bytes: int) -> list[Batch]:
        """Whole batches from the one that holds ``offset`` on, below the high watermark."""
        with self.connection.transaction():
            cursor = psycopg.RawCursor(self.connection.raw)
            cursor.format = Format.BINARY
            for oid in ARRAYS:
                cursor.adapters.register_loader(oid, _AsSent)
            cursor.execute(self._query, [topic_id, partition, offset, max_bytes])
            return [Batch._make(row) for row in cursor.fetchall()]


class Writing:
    """Appends batches to the mirror."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        parameters = ", ".join(f"${number}::{cast}" for number, cast in enumerate(CASTS, 1))
        self._query = sql.SQL(f"SELECT {{}}.mirror_append({parameters})").format(
            sql.Identifier(connection.schema)
        )

    def append(self, topic_id: int, partition: int, batches: Sequence[Batch]) -> int:
        """In one transaction, one round trip; answer where the partition ends then.

        That is elsewhere than behind the last of them if somebody else has copied something meanwhile: then
        not all of them, or none, were written, and what is there is right.
        """
        with self.connection.transaction():
            cursors = []
            with self.connection.raw.pipeline():
                for batch in batches:
                    cursor = psycopg.RawCursor(self.connection.raw)
                    cursor.adapters.register_dumper(bytes, _BytesDumper)
                    cursor.adapters.register_dumper(int, _IntDumper)
                    cursor.execute(self._query, [topic_id, partition, *batch])
                    cursors.append(cursor)
            (end,) = cursors[-1].fetchone() or (None,)
        return int(end)


def _from_file(row: FetchRow) -> Batch:
    """A batch of records that were read from a file: when they were appended is not known any more."""
    assert row.base_offset is not None
    return Batch(
        row.base_offset,
        row.last_offset,
        row.record_count,
        row.leader_epoch,
        row.timestamp_type,
        row.max_timestamp,
        row.max_timestamp,
        None if row.timestamps is None else Int8Array(row.timestamps).encode(),
        None if row.keys is None else ByteaArray(row.keys).encode(),
        None if row.values is None else ByteaArray(row.values).encode(),
        None if row.header_records is None else Int4Array(row.header_records).encode(),
        None if row.header_keys is None else TextArray(row.header_keys).encode(),
        None if row.header_values is None else ByteaArray(row.header_values).encode(),
        None if not row.offset_deltas else Int4Array(row.offset_deltas).encode(),
    )


def in_file(source: Connection, topic_id: int, partition: int, offset: int) -> tuple[list[Batch], int] | None:
    """Batches from the file that holds ``offset``, and where to go on from; None: no file does (any more)."""
    from logstore.tier.files import Reader
    from logstore.workers.tier import FILE_COLUMNS, file_of
    from logstore.workers.tier_restore import batches

    row = source.row(
        f"SELECT {FILE_COLUMNS} FROM {{}}.remote_files(%s, %s, %s, 1)",  # noqa: S608 (our own names)
        topic_id,
        partition,
        offset,
    )
    if row is None:
        return None
    file: RemoteFile = file_of(row)
    reader = Reader(file)
    group = reader.group_of(offset)
    if group >= reader.groups:
        return [], file.last_offset + 1
    rows = reader.rows(group, 1)
    begin = min((row.base_offset or 0 for row in rows), default=offset)
    return [_from_file(row) for row, _ in batches(rows, begin, None)], file.group_last_offsets[group] + 1
