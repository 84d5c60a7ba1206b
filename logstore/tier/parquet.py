"""Records as Parquet: one row a record, columns that anything can read.

======================  ==============================  ====================================================
offset                  int64                           ascending
timestamp               timestamp in ms, UTC
timestamp_type          int8                            0 the producer's clock, 1 the server's
key, value              binary, may be null
headers                 list of {key: string, value: binary}
leader_epoch            int32
======================  ==============================  ====================================================
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

from logstore._core.calls import FetchRow
from logstore.tier.extra import needed

__all__ = ["Rows", "fetch_rows", "schema"]

OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["timestamp_type", "leader_epoch"],
    "column_encoding": {"offset": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED"},
    "write_statistics": ["offset", "timestamp", "timestamp_type", "leader_epoch"],
    "store_schema": False,
}
"""How :mod:`logstore.tier.files` writes them."""


@cache
def schema() -> Any:
    """The columns."""
    pa = needed("pyarrow")
    header = pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())])
    return pa.schema(
        [
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp", pa.timestamp("ms", tz="UTC"), nullable=False),
            pa.field("timestamp_type", pa.int8(), nullable=False),
            pa.field("key", pa.binary()),
            pa.field("value", pa.binary()),
            pa.field("headers", pa.list_(pa.field("element", header, nullable=False)), nullable=False),
            pa.field("leader_epoch", pa.int32(), nullable=False),
        ]
    )


class Rows:
    """Records that become one row group."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of keys, values and headers."""
        self.max_timestamp = 0
        self._offsets = array("q")
        self._timestamps = array("q")
        self._types = array("b")
        self._epochs = array("i")
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._header_counts = array("i")
        self._header_keys: list[str] = []
        self._header_values: list[bytes | None] = []

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def last_offset(self) -> int:
        return self._offsets[-1]

    def add(self, row: FetchRow, first_offset: int, last_offset: int) -> None:
        """The records of a batch between these offsets, both included."""
        base, count = row.base_offset, row.record_count
        assert base is not None
        offsets: Sequence[int] = (
            range(base, base + count)
            if row.offset_deltas is None
            else [base + delta for delta in row.offset_deltas]
        )
        begin = sum(offset < first_offset for offset in offsets) if base < first_offset else 0
        end = count if row.last_offset <= last_offset else sum(offset <= last_offset for offset in offsets)
        if begin >= end:
            return
        taken = end - begin
        timestamps = [row.max_timestamp] * count if row.timestamps is None else row.timestamps
        keys = [None] * taken if row.keys is None else row.keys[begin:end]
        values = [None] * taken if row.values is None else row.values[begin:end]
        self._offsets.extend(offsets[begin:end])
        self._timestamps.extend(timestamps[begin:end])
        self.max_timestamp = max(self.max_timestamp, max(timestamps[begin:end]))
        self._types.extend([row.timestamp_type] * taken)
        self._epochs.extend([row.leader_epoch] * taken)
        self._keys += keys
        self._values += values
        self.bytes += sum(map(len, filter(None, keys))) + sum(map(len, filter(None, values)))
        counts = [0] * taken
        if row.header_records is not None:
            assert row.header_keys is not None
            assert row.header_values is not None
            for ordinal, key, value in zip(
                row.header_records, row.header_keys, row.header_values, strict=True
            ):
                if begin < ordinal <= end:
                    counts[ordinal - 1 - begin] += 1
                    self._header_keys.append(key)
                    self._header_values.append(value)
                    self.bytes += len(key) + len(value or b"")
        self._header_counts.extend(counts)

    def min_timestamp(self) -> int:
        return min(self._timestamps)

    def table(self) -> Any:
        """As an Arrow table."""
        pa = needed("pyarrow")
        columns = schema()
        ends = array("i", [0])
        total = 0
        for count in self._header_counts:
            total += count
            ends.append(total)
        headers_type = columns.field("headers").type
        headers = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()),
            pa.StructArray.from_arrays(
                [pa.array(self._header_keys, pa.string()), pa.array(self._header_values, pa.binary())],
                fields=list(headers_type.value_type),
            ),
            type=headers_type,
        )
        return pa.Table.from_arrays(
            [
                _numbers(pa, self._offsets, pa.int64()),
                _numbers(pa, self._timestamps, pa.int64()).cast(columns.field("timestamp").type),
                _numbers(pa, self._types, pa.int8()),
                pa.array(self._keys, pa.binary()),
                pa.array(self._values, pa.binary()),
                headers,
                _numbers(pa, self._epochs, pa.int32()),
            ],
            schema=columns,
        )


def fetch_rows(table: Any, idx: int, last_offset: int) -> list[FetchRow]:
    """A row group as batches, as a fetch from the server brings them.

    ``last_offset``: how far the row group reaches; a reader goes on after it.
    """
    if not table.num_rows:
        return []
    starts = _runs(table)
    rows: list[FetchRow] = []
    for start, end in pairwise([*starts, table.num_rows]):
        part = table.slice(start, end - start)
        rows.append(_fetch_row(part, idx, last_offset if end == table.num_rows else None))
    return rows


def _numbers(pa: Any, numbers: Any, kind: Any) -> Any:
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers.tobytes())])


def _runs(table: Any) -> list[int]:
    """Where a batch has to begin, because leader epoch or kind of time stamp are others than before."""
    pc = needed("pyarrow.compute")
    extremes = [pc.min_max(table[name]) for name in ("leader_epoch", "timestamp_type")]
    if all(each["min"] == each["max"] for each in extremes):
        return [0]
    pairs = list(zip(table["leader_epoch"].to_pylist(), table["timestamp_type"].to_pylist(), strict=True))
    return [0, *(ordinal for ordinal in range(1, len(pairs)) if pairs[ordinal] != pairs[ordinal - 1])]


def _fetch_row(table: Any, idx: int, last_offset: int | None) -> FetchRow:
    count = table.num_rows
    offsets = table["offset"]
    base = offsets[0].as_py()
    last = offsets[count - 1].as_py()
    timestamps = table["timestamp"].cast(needed("pyarrow").int64()).to_pylist()
    newest = max(timestamps)
    keys, values, headers = (_array(table[name]) for name in ("key", "value", "headers"))
    header_records = header_keys = header_values = None
    ends = headers.offsets.to_pylist()
    if ends[0] != ends[-1]:
        names = headers.flatten()
        header_records = [n for n, (a, b) in enumerate(pairwise(ends), 1) for _ in range(b - a)]
        header_keys = names.field("key").to_pylist()
        header_values = names.field("value").to_pylist()
    return FetchRow(
        idx=idx,
        log_start=None,
        high_watermark=None,
        base_offset=base,
        last_offset=last if last_offset is None else last_offset,
        record_count=count,
        leader_epoch=table["leader_epoch"][0].as_py(),
        timestamp_type=table["timestamp_type"][0].as_py(),
        max_timestamp=newest,
        timestamps=None if min(timestamps) == newest else timestamps,
        keys=None if keys.null_count == count else keys.to_pylist(),
        values=None if values.null_count == count else values.to_pylist(),
        header_records=header_records,
        header_keys=header_keys,
        header_values=header_values,
        offset_deltas=None if last - base + 1 == count else [offset - base for offset in offsets.to_pylist()],
    )


def _array(column: Any) -> Any:
    """A column in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0)
    found = column.combine_chunks()
    return found.chunk(0) if hasattr(found, "num_chunks") else found
