"""How a client keeps to its quota: what the server told it to wait, and how that came to be over.

The server works out, over all connections of whoever has the quota, for how long it is used up, and says so
with its answers.  Until then the client sends no request of that kind.  All times here are seconds of a
monotonic clock, except where a name says ``ms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["Throttle", "refused_for_ms"]

ASK_EVERY_S: Final = 2.0
"""Who has to wait for longer asks the server this often whether the quota has been changed since."""
LOG_EVERY_S: Final = 60.0
"""A client that is throttled all the time says so this often."""


class Throttle:
    """One client's, for one kind of request; whoever owns it guards it."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._ask_at = float("inf")
        self._logged = float("-inf")
        self.requests = 0
        self.total_ms = 0
        self.max_ms = 0

    def told(self, throttle_ms: int, now: float) -> bool:
        """An answer said to wait for ``throttle_ms`` (0: not to); whether that is worth a line in the log."""
        self.requests += 1
        if throttle_ms <= 0:
            return False
        self.total_ms += throttle_ms
        self.max_ms = max(self.max_ms, throttle_ms)
        self._until = max(self._until, now + throttle_ms / 1000)
        self._ask_at = now + ASK_EVERY_S
        if now - self._logged < LOG_EVERY_S:
            return False
        self._logged = now
        return True

    def left(self, now: float) -> float:
        """For how many seconds nothing is to be sent; 0: it may."""
        return max(0.0, self._until - now)

    def pause(self, now: float) -> float:
        """In how many seconds there is something to do: to ask, or to go on."""
        return max(0.0, min(self._until, self._ask_at) - now)

    def to_ask(self, now: float) -> bool:
        """Whether it is time to ask; then :meth:`asked` is to be called.  True only once until then."""
        if self._until > now >= self._ask_at:
            self._ask_at = float("inf")
            return True
        return False

    def asked(self, throttle_ms: int | None, now: float) -> None:
        """The quota is used up for another ``throttle_ms``; None: there was no answer.

        Others may have used it since, and that is not for this client to wait for: the end only comes
        nearer.
        """
        if throttle_ms is not None:
            self._until = min(self._until, now + throttle_ms / 1000)
        self._ask_at = now + ASK_EVERY_S

    def by_name(self, kind: str) -> dict[str, float]:
        """By Kafka's metric names: milliseconds, on average over all requests, and at most."""
        return {
            f"{kind}-throttle-time-avg": self.total_ms / max(self.requests, 1),
            f"{kind}-throttle-time-max": self.max_ms,
        }


def refused_for_ms(details: Mapping[str, Any]) -> int:
    """How long the server wants somebody to wait whom it has refused; from the details of the error."""
    told = details.get("throttle_time_ms")
    return told if isinstance(told, int) and told > 0 else 1000
