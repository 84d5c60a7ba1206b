"""Latencies: percentiles from all samples, none of them thrown away or binned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["PERCENTILES", "Latency", "summarize"]

PERCENTILES: Final = ("p50", "p95", "p99", "p99.9")


class Latency(NamedTuple):
    """Milliseconds; NaN without samples."""

    samples: int
    avg: float
    p50: float
    p95: float
    p99: float
    p999: float
    max: float

    def document(self) -> dict[str, float | int | None]:
        """For JSON: null instead of NaN."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in {
                "samples": self.samples,
                "avg": round(self.avg, 4),
                "p50": round(self.p50, 4),
                "p95": round(self.p95, 4),
                "p99": round(self.p99, 4),
                "p99.9": round(self.p999, 4),
                "max": round(self.max, 4),
            }.items()
        }

    def line(self) -> str:
        """``p50 1.4 ms   p99 2.8 ms …`` for people."""
        parts = [("avg", self.avg), ("p50", self.p50), ("p95", self.p95), ("p99", self.p99)]
        parts += [("p99.9", self.p999), ("max", self.max)]
        return "   ".join(f"{name} {_milliseconds(value)}" for name, value in parts)


def _milliseconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def summarize(seconds: Sequence[float]) -> Latency:
    """Nearest-rank percentiles of ``seconds``: each is a latency that was really seen."""
    if not seconds:
        return Latency(0, *([math.nan] * 6))
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000

    average = math.fsum(ordered) / len(ordered) * 1000
    return Latency(len(ordered), average, at(0.50), at(0.95), at(0.99), at(0.999), ordered[-1] * 1000)
