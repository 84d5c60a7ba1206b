"""The methods of a consumer that say what it has done."""

from __future__ import annotations

from logstore._async.concurrency import Lock
from logstore._async.fetcher import Fetcher

__all__ = ["Measured"]


class Measured:
    _fetcher: Fetcher
    _lock: Lock

    def metrics(self) -> dict[str, float]:
        """Counters since the start, by Kafka's names where Kafka has them; times in milliseconds."""
        with self._lock:
            return {**self._fetcher.tally.by_name(), **self._fetcher.throttle.by_name("fetch")}
