"""A log in memory that answers ``fetch`` as the SQL function does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from logstore._core.calls import FetchRow
from logstore._core.subscription import FetchRequest
from logstore.records import CREATE_TIME


def state_row(idx: int, log_start: int | None, high_watermark: int | None) -> FetchRow:
    """The row that precedes a partition's batches."""
    return FetchRow(
        idx, log_start, high_watermark, None, 0, 0, 0, 0, 0, None, None, None, None, None, None, None
    )


def batch_row(
    base_offset: int,
    values: Sequence[bytes | None] | None,
    *,
    idx: int = 1,
    count: int | None = None,
    keys: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int] | None = None,
    headers: Sequence[tuple[int, str, bytes | None]] | None = None,
    deltas: Sequence[int] | None = None,
    last_offset: int | None = None,
) -> FetchRow:
    """A batch; ``headers`` are (ordinal from 1, name, value)."""
    count = len(values or ()) if count is None else count
    return FetchRow(
        idx=idx,
        log_start=None,
        high_watermark=None,
        base_offset=base_offset,
        last_offset=base_offset + count - 1 if last_offset is None else last_offset,
        record_count=count,
        leader_epoch=3,
        timestamp_type=CREATE_TIME,
        max_timestamp=1000,
        timestamps=None if timestamps is None else list(timestamps),
        keys=None if keys is None else list(keys),
        values=None if values is None else list(values),
        header_records=None if headers is None else [ordinal for ordinal, _, _ in headers],
        header_keys=None if headers is None else [name for _, name, _ in headers],
        header_values=None if headers is None else [value for _, _, value in headers],
        offset_deltas=None if deltas is None else list(deltas),
    )


@dataclass
class PartitionLog:
    """The batches of one partition, each with the offsets it still holds and its last offset."""

    log_start: int = 0
    end: int = 0
    batches: list[tuple[list[int], int]] = field(default_factory=list)

    def append(self, kept: Sequence[bool]) -> None:
        """A batch of ``len(kept)`` records of which compaction has left those that are True."""
        offsets = [self.end + place for place, keep in enumerate(kept) if keep]
        self.end += len(kept)
        self.batches.append((offsets, self.end - 1))

    def readable(self, offset: int) -> list[int]:
        return [o for offsets, last in self.batches if last >= offset for o in offsets if o >= offset]

    def fetch(self, idx: int, offset: int, most: int) -> list[FetchRow]:
        rows = [state_row(idx, self.log_start, self.end)]
        if self.log_start <= offset <= self.end:
            wanted = [(offsets, last) for offsets, last in self.batches if last >= offset][:most]
            for offsets, last in wanted:
                base = last - 9 if not offsets else offsets[0]
                rows.append(
                    batch_row(
                        base,
                        [b"%d" % o for o in offsets],
                        idx=idx,
                        deltas=[o - base for o in offsets],
                        last_offset=last,
                    )
                )
        return rows


def answer(logs: dict[int, PartitionLog], request: FetchRequest, most: int = 100) -> list[FetchRow]:
    """What the server says to ``request``: ``most`` batches for each partition, after the state of all."""
    rows = [
        row
        for place, (partition, offset) in enumerate(
            zip(request.partitions, request.offsets, strict=True), start=1
        )
        for row in logs[partition].fetch(place, offset, most)
    ]
    return sorted(rows, key=lambda row: row.base_offset is not None)
