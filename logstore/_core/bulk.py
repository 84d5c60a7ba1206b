"""Many records at once: cut into parts, sent to their partitions, checked against the limits, column by
column.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Final, NamedTuple

from logstore._core.batch import RECORD_OVERHEAD, Columns, headers_size
from logstore._core.partitioner import Partitioner, hash_of
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


def check_sizes(columns: Columns, topic: Topic, limits: Limits) -> int:
    """Raise RecordTooLargeError when any record is larger than the topic and the limits allow.

    The result is a size that no record exceeds.
    """
    if not columns.values:
        return 0
    longest = RECORD_OVERHEAD + _longest(columns.keys) + _longest(columns.values)
    if columns.headers is not None or longest > topic.max_record:
        longest = max(_sizes(columns))
    if longest > topic.max_record:
        raise too_large(topic, longest, limits)
    return longest


def parts(columns: Columns, longest: int, limits: Limits) -> Iterator[Columns]:
    """Cut ``columns``, no record of which exceeds ``longest``, into parts of which several fit into the
    buffer.
    """
    step = max(1, min(PART_RECORDS, limits.buffer_memory // 4 // max(longest, 1)))
    count = len(columns.values)
    if 0 < count <= step:
        yield columns
        return
    for start in range(0, count, step):
        yield columns.cut(start, start + step)


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
    keys = columns.keys
    if not keys:
        return []
    if partition is not None or (keys[0] is None and keys.count(None) == len(keys)):
        return [(partition, columns)]
    # The last group is of the keyless ones, which go anywhere.
    ordinals: list[list[int]] = [[] for _ in range(count + 1)]
    add = [group.append for group in ordinals]
    hashed = hash_of(partitioner)
    if None in keys:
        for ordinal, key in enumerate(keys):
            add[count if key is None else partitioner(key, count)](ordinal)
    elif hashed is not None:
        for ordinal, number in enumerate(map(hashed, keys)):  # type: ignore[arg-type]
            add[number % count](ordinal)
    else:
        for ordinal, key in enumerate(keys):
            add[partitioner(key, count)](ordinal)  # type: ignore[arg-type]
    targets: list[tuple[int | None, list[int]]] = [*enumerate(ordinals[:count]), (None, ordinals[count])]
    return [(target, _picked(columns, group)) for target, group in targets if group]


def _picked(columns: Columns, ordinals: list[int]) -> Columns:
    keys, values, timestamps, headers = columns
    if len(ordinals) == len(values):
        return columns
    if len(ordinals) == 1:  # itemgetter would give the item itself
        return columns.cut(ordinals[0], ordinals[0] + 1)
    pick = itemgetter(*ordinals)
    constant = timestamps.count(timestamps[0]) == len(timestamps)
    return Columns(
        pick(keys),
        pick(values),
        timestamps[: len(ordinals)] if constant else pick(timestamps),
        None if headers is None else list(pick(headers)),
    )


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
    try:
        return sum(map(len, column))  # type: ignore[arg-type]
    except TypeError:  # a None among them
        return sum(len(item) for item in column if item is not None)


def _longest(column: Sequence[bytes | None]) -> int:
    try:
        return max(map(len, column))  # type: ignore[arg-type]
    except TypeError:
        return max((len(item) for item in column if item is not None), default=0)
