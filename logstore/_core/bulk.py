"""Many records at once: cut into parts, sent to their partitions, checked against the limits, column by
column.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple
from zlib import crc32

from logstore._core.batch import RECORD_OVERHEAD, Columns, headers_size
from logstore._core.partitioner import Partitioner, crc32_partition
from logstore._core.queues import Limits, Topic, too_large

__all__ = ["Piece", "check_sizes", "parts", "pieces"]

PART_RECORDS: Final = 16384
"""So many records are taken at a time; the first of them are on their way while the others are looked at."""


class Piece(NamedTuple):
    """Records of one partition that fit into one batch."""

    partition: int | None
    """None: any."""
    columns: Columns
    size: int
    """Bytes, as the limits count them."""


def check_sizes(columns: Columns, topic: Topic, limits: Limits) -> None:
    """Raise RecordTooLargeError when any record is larger than the topic and the limits allow."""
    if not columns.values:
        return
    longest = _longest(columns.keys) + _longest(columns.values)
    if columns.headers is None and RECORD_OVERHEAD + longest <= topic.max_record:
        return
    largest = max(_sizes(columns))
    if largest > topic.max_record:
        raise too_large(topic, largest, limits)


def parts(columns: Columns, limits: Limits) -> Iterator[Columns]:
    """Cut ``columns`` into parts of which several fit into the buffer, where single records allow that."""
    for start in range(0, len(columns.values), PART_RECORDS):
        part = columns.cut(start, start + PART_RECORDS)
        yield from _halves(part, _size(part), limits.buffer_memory // 4)


def pieces(
    columns: Columns, partition: int | None, count: int, partitioner: Partitioner, max_record: int
) -> list[Piece]:
    """Send ``columns`` to their partitions (all to ``partition``, unless it is None), cut to fit into
    batches.
    """
    result: list[Piece] = []
    for target, group in _grouped(columns, partition, count, partitioner):
        size = _size(group)
        if size <= max_record:
            result.append(Piece(target, group, size))
            continue
        ends = list(accumulate(_sizes(group)))
        start = taken = 0
        while start < len(ends):
            stop = bisect_right(ends, taken + max_record, start)
            result.append(Piece(target, group.cut(start, stop), ends[stop - 1] - taken))
            start, taken = stop, ends[stop - 1]
    return result


def _grouped(
    columns: Columns, partition: int | None, count: int, partitioner: Partitioner
) -> list[tuple[int | None, Columns]]:
    keys, values, timestamps, headers = columns
    if partition is not None or keys.count(None) == len(keys):
        return [(partition, columns)]
    if count == 1:
        return [(0, columns)]
    targets: list[int]
    if None in keys:
        # The keyless ones are the last group, which goes anywhere.
        targets = [count if key is None else partitioner(key, count) for key in keys]
    elif partitioner is crc32_partition:
        targets = [number % count for number in map(crc32, keys)]  # type: ignore[arg-type]
    else:
        targets = [partitioner(key, count) for key in keys]  # type: ignore[arg-type]
    groups = [Columns([], [], [], None if headers is None else []) for _ in range(count + 1)]
    add_key = [group.keys.append for group in groups]
    add_value = [group.values.append for group in groups]
    for target, key, value in zip(targets, keys, values, strict=True):
        add_key[target](key)
        add_value[target](value)
    if timestamps.count(timestamps[0]) == len(timestamps):
        for group in groups:
            group.timestamps.extend(timestamps[: len(group.values)])
    else:
        for target, timestamp in zip(targets, timestamps, strict=True):
            groups[target].timestamps.append(timestamp)
    if headers is not None:
        for target, pairs in zip(targets, headers, strict=True):
            collected = groups[target].headers
            assert collected is not None
            collected.append(pairs)
    filled: list[tuple[int | None, Columns]] = []
    for target, group in enumerate(groups):
        if group.values:
            filled.append((target if target < count else None, group))
    return filled


def _halves(columns: Columns, size: int, most: int) -> Iterator[Columns]:
    count = len(columns.values)
    if size <= most or count <= 1:
        yield columns
        return
    for start, stop in ((0, count // 2), (count // 2, count)):
        half = columns.cut(start, stop)
        yield from _halves(half, _size(half), most)


def _size(columns: Columns) -> int:
    keys, values, _, headers = columns
    size = RECORD_OVERHEAD * len(values) + _bytes(keys) + _bytes(values)
    if headers is not None:
        size += sum(headers_size(pairs) for pairs in headers if pairs)
    return size


def _sizes(columns: Columns) -> list[int]:
    keys, values, _, headers = columns
    sizes = [
        RECORD_OVERHEAD + len(key or b"") + len(value or b"") for key, value in zip(keys, values, strict=True)
    ]
    if headers is not None:
        sizes = [size + headers_size(pairs or ()) for size, pairs in zip(sizes, headers, strict=True)]
    return sizes


def _bytes(column: Sequence[bytes | None]) -> int:
    if None in column:
        return sum(len(item) for item in column if item is not None)
    return sum(map(len, column))  # type: ignore[arg-type]


def _longest(column: Sequence[bytes | None]) -> int:
    if None in column:
        return max((len(item) for item in column if item is not None), default=0)
    return max(map(len, column))  # type: ignore[arg-type]
