"""What becomes of a partition's records by Kafka's rules, in plain Python: retention, and compaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Policy", "Record", "Span", "compacted", "dirty_ratio", "retained_from"]

FOREVER = 1 << 62


class Record(NamedTuple):
    """One record of a partition."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Span(NamedTuple):
    """A segment as one partition sees it; the last of them is the one it writes to."""

    first_offset: int
    last_offset: int
    bytes: int
    max_timestamp: int


@dataclass
class Policy:
    """A topic's configs, as far as they say what becomes of old records."""

    cleanup: str = "delete"
    retention_ms: int = 7 * 86_400_000
    retention_bytes: int = -1
    delete_retention_ms: int = 86_400_000
    min_compaction_lag_ms: int = 0
    max_compaction_lag_ms: int = (1 << 63) - 1
    min_cleanable_dirty_ratio: float = 0.5

    @property
    def deletes(self) -> bool:
        return "delete" in self.cleanup

    @property
    def compacts(self) -> bool:
        return "compact" in self.cleanup

    def configs(self) -> dict[str, str]:
        """All of them by name, as a topic has them."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "retention.bytes": str(self.retention_bytes),
            "delete.retention.ms": str(self.delete_retention_ms),
            "min.compaction.lag.ms": str(self.min_compaction_lag_ms),
            "max.compaction.lag.ms": str(self.max_compaction_lag_ms),
            "min.cleanable.dirty.ratio": str(self.min_cleanable_dirty_ratio),
        }


def retained_from(spans: Sequence[Span], log_start: int, now: int, policy: Policy) -> int:
    """Where the log starts once retention has been over it.

    Segments go from the oldest on, whole ones: while all records of one are older than ``retention_ms``, and
    while what would be left is ``retention_bytes`` or more.
    """
    kept = [span for span in spans if span.last_offset >= log_start]
    while kept and policy.deletes and _goes(kept, now, policy):
        log_start = kept.pop(0).last_offset + 1
    return log_start


def _goes(kept: Sequence[Span], now: int, policy: Policy) -> bool:
    if 0 <= policy.retention_ms < now - kept[0].max_timestamp:
        return True
    return 0 <= policy.retention_bytes <= sum(span.bytes for span in kept[1:])


def dirty_ratio(spans: Sequence[Span], compacted_to: int, segment_start: int) -> float:
    """The part of the closed segments' bytes that has not been compacted yet."""
    sealed = [span for span in spans if span.last_offset < segment_start]
    total = sum(span.bytes for span in sealed)
    dirty = sum(span.bytes for span in sealed if span.first_offset >= compacted_to)
    return dirty / total if total else 0.0


def compacted(
    records: Sequence[Record], to: int, now: int, horizons: Mapping[int, int]
) -> tuple[list[Record], Collection[int]]:
    """What is left when ``records`` have been compacted up to offset ``to``; and which of it need not be.

    A tombstone stays until its horizon, which is ``delete.retention.ms`` after it was compacted first; from
    then on it may go.
    """
    last = {record.key: record.offset for record in records if record.offset < to}
    left = [record for record in records if record.offset >= to or last[record.key] == record.offset]
    optional = {
        record.offset
        for record in left
        if record.offset < to and record.value is None and horizons.get(record.offset, FOREVER) <= now
    }
    return left, optional
