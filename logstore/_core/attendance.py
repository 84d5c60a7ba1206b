"""When a waiting reader looks after what transactions have staged.

One session of all that wait has the seat.  It drains every few milliseconds while records are staged.  When
none have come for a while it arms the doorbell, which makes commits notify it, and sleeps; a single commit
now and then only wakes it, several in a row make it look by itself again, without the doorbell.  Whoever has
no seat looks now and then whether it is free, and drains, in case that who has it does not.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Attendance"]

PERIOD_S: Final = 0.005
"""While records are staged, the one with the seat drains this often."""
QUIET_S: Final = 0.1
"""When nothing has been staged for so long, the doorbell is armed."""
BUSY_S: Final = 0.03
"""Records in two looks within this time mean that more are about to come."""
UNDISTURBED_S: Final = 4.2
"""Everybody who waits and can be rung for looks this often at least."""
LONGEST_S: Final = 2.1
"""And this often who cannot."""
FAILED_S: Final = 0.25
"""After an error that may pass."""


class Attendance:
    """All times are seconds of a monotonic clock.

    ``seated``, ``armed``: as the server has it.  After a look that brought nothing, the pauses of those who
    can have no seat (``able`` is False) double.
    """

    def __init__(self, *, able: bool) -> None:
        self.able = able
        self.seated = False
        self.armed = False
        self._due = 0.0
        self._found = self._found_before = float("-inf")
        self._quiet_from = 0.0
        self._pause_s = PERIOD_S

    def due_in(self, now: float) -> float:
        """Seconds until the next look; 0: now."""
        return max(0.0, self._due - now)

    def rung(self) -> None:
        """Somebody has committed, or the seat is free: look now."""
        self._due = 0.0

    def took_the_seat(self, now: float) -> None:
        self.seated, self.armed = True, False
        self._quiet_from = now

    def drained(self, now: float, records: int, *, more: bool) -> None:
        """A look has brought this."""
        if records:
            self._found_before, self._found = self._found, now
            self._quiet_from = now
            self._pause_s = PERIOD_S
        if more:
            self._due = now
        elif self.armed:
            self._due = now + UNDISTURBED_S
        elif self.seated:
            self._due = now + PERIOD_S
        else:
            self._due = now + (UNDISTURBED_S if self.able else self._pause_s)
            self._pause_s = min(2 * self._pause_s, LONGEST_S)

    def failed(self, now: float) -> None:
        """A look has failed, and may succeed later."""
        self._due = now + FAILED_S

    def should_arm(self, now: float) -> bool:
        return self.seated and not self.armed and now - self._quiet_from >= QUIET_S

    def should_disarm(self, now: float) -> bool:
        return self.armed and now - self._found_before <= BUSY_S

    def has_armed(self) -> None:
        """The doorbell is armed: look once more, then sleep."""
        self.armed = True
        self._due = 0.0

    def has_disarmed(self, now: float) -> None:
        self.armed = False
        self._quiet_from = now
        self._due = now + PERIOD_S
