"""What a producer has done, in numbers."""

from __future__ import annotations

from collections.abc import Sequence

from logstore._core.batch import Batch

__all__ = ["Tally"]


class Tally:
    """Counted by the sender; read by ``Producer.metrics``."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.batches = 0
        self.requests = 0
        self.latency_s = 0.0
        self.latency_max_s = 0.0
        self.errors = 0
        self.retries = 0
        self.connections = 0

    def request(self, batches: Sequence[Batch], seconds: float) -> None:
        """A request with ``batches`` was answered after ``seconds``."""
        self.records += sum(map(len, batches))
        self.bytes += sum(batch.size for batch in batches)
        self.batches += len(batches)
        self.requests += 1
        self.latency_s += seconds
        self.latency_max_s = max(self.latency_max_s, seconds)

    def by_name(self) -> dict[str, float]:
        """By Kafka's metric names; times in milliseconds, sizes in bytes."""
        requests, batches = max(self.requests, 1), max(self.batches, 1)
        return {
            "record-send-total": self.records,
            "record-error-total": self.errors,
            "record-retry-total": self.retries,
            "outgoing-byte-total": self.bytes,
            "batch-send-total": self.batches,
            "batch-size-avg": self.bytes / batches,
            "records-per-request-avg": self.records / requests,
            "request-total": self.requests,
            "request-latency-avg": self.latency_s / requests * 1000,
            "request-latency-max": self.latency_max_s * 1000,
            "connection-creation-total": self.connections,
        }
