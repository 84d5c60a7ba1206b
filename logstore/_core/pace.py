"""How long a reader that has caught up waits before it looks again.

Where the server can wake it (LISTEN), a reader sleeps until it is woken, and looks by itself only to make up
for a wake-up that was lost.  While records keep coming, looking once in a millisecond costs less than being
woken for each of them.  Where the server cannot wake it (a follower, a pooler), it looks ever less often.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

__all__ = ["Pace", "Pause", "Way"]

BUSY_S: Final = 0.01
"""Records that came in two looks within this time mean that more are about to come."""
BUSY_PERIOD_S: Final = 0.0008
"""A busy reader looks this often, if looking is quick."""
QUICK_S: Final = 0.002
"""A look that takes no longer is followed by a pause of a quarter of it; by one as long as it otherwise."""
SHORTEST_S: Final = 0.005
"""The first pause of a reader that nobody wakes; it doubles up to the longest."""
HASTE_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""The pauses of a reader that waits for what is there to become safe."""
UNDISTURBED_S: Final = 1.05
"""A reader that is woken looks by itself this often, unless told otherwise, and the pauses of one that is not
grow to this: less than one query a second, whatever a query takes."""


class Way(Enum):
    """How to wait."""

    PAUSE = "pause"
    """Just wait."""
    WAKE = "wake"
    """Wait to be woken: announce it, look once more, then wait for a notification."""


class Pause(NamedTuple):
    way: Way
    seconds: float
    """At most this long."""


class Pace:
    """``woken``: the server can wake this reader.  ``longest_s``: the longest pause, unless looks take
    longer.  All times are seconds of a monotonic clock.
    """

    def __init__(self, *, woken: bool, longest_s: float = UNDISTURBED_S) -> None:
        self._woken = woken
        self.longest_s: Final = max(longest_s, BUSY_PERIOD_S)
        self._found = self._found_before = float("-inf")
        self._next_s = min(SHORTEST_S, self.longest_s)
        self._hastened = 0

    @property
    def woken(self) -> bool:
        """The server can wake this reader."""
        return self._woken

    def found(self, now: float) -> None:
        """A look brought records."""
        self._found_before, self._found = self._found, now
        self._next_s = min(SHORTEST_S, self.longest_s)
        self._hastened = 0

    def hasten(self) -> Pause:
        """A look has shown records that are not safe yet: how to wait for the next one.

        It should be a matter of milliseconds; where it is not, because too few followers answer, looks become
        as rare as ten in a second.
        """
        seconds = HASTE_S[min(self._hastened, len(HASTE_S) - 1)]
        self._hastened += 1
        return Pause(Way.PAUSE, seconds)

    @property
    def hastens(self) -> bool:
        """What is not safe yet may be, any moment."""
        return self._hastened < len(HASTE_S)

    def pause(self, now: float, look_s: float = 0.0) -> Pause:
        """A look brought nothing: how to wait for the next one.

        ``look_s`` is what that look took: a reader of very many partitions, whose looks take long, waits as
        long, so that it does not keep the server busy with looking.
        """
        self._hastened = 0
        if self._woken:
            if now - self._found_before <= BUSY_S:
                shortest = look_s / 4 if look_s <= QUICK_S else look_s
                return Pause(Way.PAUSE, max(BUSY_PERIOD_S - look_s, shortest))
            return Pause(Way.WAKE, self.longest_s)
        seconds, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return Pause(Way.PAUSE, max(seconds, look_s))
