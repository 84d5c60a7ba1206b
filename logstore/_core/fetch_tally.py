"""What a consumer has fetched, in numbers."""

from __future__ import annotations

from collections.abc import Iterable

from logstore._core.calls import FetchRow

__all__ = ["FetchTally"]


class FetchTally:
    """Counted by the fetcher; read by ``Consumer.metrics``."""

    def __init__(self) -> None:
        self.fetches = 0
        self.records = 0
        self.latency_s = 0.0
        self.latency_max_s = 0.0

    def fetched(self, rows: Iterable[FetchRow], seconds: float) -> None:
        """A fetch was answered with ``rows`` after ``seconds``."""
        self.fetches += 1
        self.records += sum(row.record_count for row in rows if row.base_offset is not None)
        self.latency_s += seconds
        self.latency_max_s = max(self.latency_max_s, seconds)

    def by_name(self) -> dict[str, float]:
        """By Kafka's metric names; times in milliseconds."""
        return {
            "fetch-total": self.fetches,
            "records-fetched-total": self.records,
            "fetch-latency-avg": self.latency_s / max(self.fetches, 1) * 1000,
            "fetch-latency-max": self.latency_max_s * 1000,
        }
