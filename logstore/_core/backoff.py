"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with jitter, as Kafka's KIP-580: the first wait is ``base_s``, each next twice as long.

    ``random`` yields numbers in [0, 1); every wait is varied by up to a fifth, so that clients that failed
    together do not come back together.
    """

    base_s: float
    max_s: float
    random: Callable[[], float]

    def delay(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (1, 2, …)."""
        # The exponent is bounded because failures is not: 2.0 ** 1024 would raise OverflowError.
        exact = min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 62))
        return exact * (0.8 + 0.4 * self.random())
