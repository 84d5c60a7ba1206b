"""Batches on their way from one log to another, their arrays as PostgreSQL sent them.

Nothing is decoded: an array of one server is an array of every other.  Where the next batch does not begin
where the mirror ends (compaction has left a hole, or has merged batches that the mirror has parts of), and
where many small ones are to be one, arrays are cut and joined as bytes.

See :mod:`logstore._core.arrays` for the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from logstore.errors import MirrorError

__all__ = ["COLUMNS", "Batch", "fitted"]

COLUMNS: Final = (
    "base_offset", "last_offset", "record_count", "leader_epoch", "timestamp_type", "append_time",
    "max_timestamp", "timestamps", "keys", "values", "header_records", "header_keys", "header_values",
    "offset_deltas",
)  # fmt: skip
"""Of ``mirror_read()``, and what ``mirror_append()`` takes after topic and partition."""

MOST_RECORDS: Final = 4_000
MOST_BYTES: Final = 128 << 10
"""Small batches are joined up to one of these."""
MOST_DELTA: Final = 2**31 - 1

BYTEA: Final = 17
INT8: Final = 20
INT4: Final = 23
TEXT: Final = 25

_HEADER: Final = Struct(">5i")
_COUNT: Final = Struct(">i")
_INT4: Final = Struct(">ii")
_INT8: Final = Struct(">iq")
_NULL: Final = b"\xff\xff\xff\xff"


class Batch(NamedTuple):
    """One row; arrays are in PostgreSQL's binary format."""

    base_offset: int
    last_offset: int
    record_count: int
    leader_epoch: int
    timestamp_type: int
    append_time: int
    max_timestamp: int
    timestamps: bytes | None
    keys: bytes | None
    values: bytes | None
    header_records: bytes | None
    header_keys: bytes | None
    header_values: bytes | None
    offset_deltas: bytes | None

    @property
    def size(self) -> int:
        """The bytes of its arrays."""
        return sum(len(part) for part in self[7:] if part is not None)


def fitted(batches: Sequence[Batch], position: int) -> Iterator[Batch]:
    """The records of ``batches`` from ``position`` on, in batches that follow each other without a gap.

    Each begins where the one before ends, the first at ``position``; offsets that no record has are left out
    within a batch.  Epochs, time stamps and their type, and the time of appending stay; small neighbours that
    agree in those are joined.  Batches without any record bring none: the next one covers their offsets.
    """
    group: list[Batch] = []
    count = size = 0
    for batch in batches:
        if batch.last_offset < position or not batch.record_count:
            continue
        if group and not _joins(group[-1], batch, count, size):
            yield _joined(group, position)
            position = group[-1].last_offset + 1
            group = []
        if batch.base_offset < position and not group:
            batch = _cut(batch, position)
            if not batch.record_count:
                continue
        if not group:
            count = size = 0
        group.append(batch)
        count += batch.record_count
        size += batch.size
    if group:
        yield _joined(group, position)


def _joins(before: Batch, batch: Batch, count: int, size: int) -> bool:
    return (
        count + batch.record_count <= MOST_RECORDS
        and size + batch.size <= MOST_BYTES
        and before.leader_epoch == batch.leader_epoch
        and before.timestamp_type == batch.timestamp_type
        # Records that the server has stamped have one time stamp a batch, which is the time of appending.
        and (batch.timestamp_type == 0 or before.append_time == batch.append_time)
    )


def _joined(group: list[Batch], position: int) -> Batch:
    first, last = group[0], group[-1]
    if len(group) == 1 and first.base_offset == position:
        return first
    count = sum(batch.record_count for batch in group)
    dense = last.last_offset - position + 1 == count
    if not dense and last.last_offset - position > MOST_DELTA:
        raise MirrorError(
            f"Offsets {position} to {last.last_offset} are too many for a batch, and it is their only one."
        )
    newest = max(batch.max_timestamp for batch in group)
    records, header_keys, header_values = _headers(group)
    stamped_once = all(batch.timestamps is None and batch.max_timestamp == newest for batch in group)
    return first._replace(
        base_offset=position,
        last_offset=last.last_offset,
        record_count=count,
        append_time=last.append_time,
        max_timestamp=newest,
        timestamps=None if stamped_once else _array(INT8, count, b"".join(map(_stamps, group))),
        keys=_column(group, 8, count),
        values=_column(group, 9, count),
        offset_deltas=None
        if dense
        else _array(INT4, count, b"".join(_deltas(batch, batch.base_offset - position) for batch in group)),
        header_records=records,
        header_keys=header_keys,
        header_values=header_values,
    )


def _column(group: list[Batch], column: int, count: int) -> bytes | None:
    parts: list[bytes | None] = [batch[column] for batch in group]  # type: ignore[misc]
    if not any(part is not None for part in parts):
        return None
    bodies = (
        _NULL * batch.record_count if part is None else _body(part)
        for batch, part in zip(group, parts, strict=True)
    )
    return _array(BYTEA, count, b"".join(bodies))


def _headers(group: list[Batch]) -> tuple[bytes | None, bytes | None, bytes | None]:
    records: list[bytes] = []
    keys: list[bytes] = []
    values: list[bytes] = []
    before = 0
    for batch in group:
        if batch.header_records is not None:
            assert batch.header_keys is not None
            assert batch.header_values is not None
            records += [_INT4.pack(4, before + number) for number in _numbers(batch.header_records)]
            keys.append(_body(batch.header_keys))
            values.append(_body(batch.header_values))
        before += batch.record_count
    if not records:
        return None, None, None
    return (
        _array(INT4, len(records), b"".join(records)),
        _array(TEXT, len(records), b"".join(keys)),
        _array(BYTEA, len(records), b"".join(values)),
    )


def _cut(batch: Batch, position: int) -> Batch:
    """The records from ``position`` on, which lies within the batch."""
    if batch.offset_deltas is None:
        gone = position - batch.base_offset
        deltas = None
    else:
        numbers = _numbers(batch.offset_deltas)
        gone = sum(batch.base_offset + number < position for number in numbers)
        shift = position - batch.base_offset
        deltas = _array(
            INT4,
            batch.record_count - gone,
            b"".join(_INT4.pack(4, number - shift) for number in numbers[gone:]),
        )
    count = batch.record_count - gone
    if not count:
        return batch._replace(record_count=0)
    headers: list[bytes | None] = [None, None, None]
    if batch.header_records is not None:
        assert batch.header_keys is not None
        assert batch.header_values is not None
        numbers = _numbers(batch.header_records)
        skipped = sum(number <= gone for number in numbers)
        left = len(numbers) - skipped
        if left:
            headers = [
                _array(INT4, left, b"".join(_INT4.pack(4, number - gone) for number in numbers[skipped:])),
                _array(TEXT, left, _after(batch.header_keys, skipped)),
                _array(BYTEA, left, _after(batch.header_values, skipped)),
            ]
    stamps = batch.timestamps
    newest = batch.max_timestamp
    if stamps is not None:
        body = _after(stamps, gone)
        stamps = _array(INT8, count, body)
        newest = max(number for _, number in _INT8.iter_unpack(body))
    return batch._replace(
        base_offset=position,
        record_count=count,
        max_timestamp=newest,
        timestamps=stamps,
        keys=None if batch.keys is None else _array(BYTEA, count, _after(batch.keys, gone)),
        values=None if batch.values is None else _array(BYTEA, count, _after(batch.values, gone)),
        header_records=headers[0],
        header_keys=headers[1],
        header_values=headers[2],
        offset_deltas=deltas,
    )


def _stamps(batch: Batch) -> bytes:
    if batch.timestamps is None:
        return _INT8.pack(8, batch.max_timestamp) * batch.record_count
    return _body(batch.timestamps)


def _deltas(batch: Batch, shift: int) -> bytes:
    numbers = range(batch.record_count) if batch.offset_deltas is None else _numbers(batch.offset_deltas)
    return b"".join(_INT4.pack(4, number + shift) for number in numbers)


def _numbers(array: bytes) -> list[int]:
    """The elements of an ``int4[]`` without nulls."""
    return [number for _, number in _INT4.iter_unpack(_body(array))]


def _array(element: int, count: int, body: bytes) -> bytes:
    # The flag says that there may be nulls.
    return _HEADER.pack(1, 1, element, count, 1) + body


def _body(array: bytes) -> bytes:
    """The elements, each with its length."""
    return array[_HEADER.size :]


def _after(array: bytes, gone: int) -> bytes:
    """The elements behind the first ``gone``."""
    place = _HEADER.size
    for _ in range(gone):
        (length,) = _COUNT.unpack_from(array, place)
        place += 4 + max(length, 0)
    return array[place:]
