"""How far a follower is behind its leader, told without comparing clocks.

The leader numbers its seals.  A reader notes, by its own clock, when it heard that the leader had one: as
long as the follower has not got that one, it is behind by at least the time since.
"""

from __future__ import annotations

from collections import deque

__all__ = ["ReplicaLag"]


class ReplicaLag:
    """Of one follower.  All times are seconds of a monotonic clock."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._lacks: deque[tuple[int, float]] = deque()
        self._has = -1
        self._heard = -1
        self._fresh = False
        self._behind_s = 0.0

    def begin(self, now: float) -> None:
        """Another follower is looked at from now on."""
        self._has = -1
        self._lacks.clear()
        if self._heard >= 0:
            self._lacks.append((self._heard, now))
        self._fresh = False
        self._behind_s = 0.0

    def leader_has(self, seal_id: int | None, now: float) -> None:
        """The leader has said what its newest seal is."""
        heard = seal_id or 0
        if heard < self._heard:  # of a history that was cut off
            self._lacks = deque((each, at) for each, at in self._lacks if each <= heard)
        if heard != self._heard and heard > self._has:
            self._lacks.append((heard, now))
        self._heard = heard
        self._fresh = True

    def follower_has(self, seal_id: int | None, now: float) -> None:
        """The follower has said what its newest seal is, after a question at ``now`` or later."""
        self._has = max(self._has, seal_id or 0)
        while self._lacks and self._lacks[0][0] <= self._has:
            self._lacks.popleft()
        self._behind_s = now - self._lacks[0][1] if self._lacks else 0.0

    @property
    def behind_s(self) -> float:
        """For how long, at least, the follower had lacked what the leader had, when it was asked last."""
        return self._behind_s

    @property
    def caught_up(self) -> bool:
        """The leader has been heard of since :meth:`begin`, and the follower has what the leader had then."""
        return self._fresh and self._has >= 0 and not self._lacks

    @property
    def too_far(self) -> bool:
        """It is further behind than is allowed."""
        return self._behind_s > self._longest_s

    def look_every_s(self) -> float:
        """How often both have to be asked."""
        return min(1.0, max(0.05, self._longest_s / 4))
