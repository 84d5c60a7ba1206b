"""Draining: what transactions have staged becomes records, by the hands of whoever waits for some."""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic
from typing import Final

from logstore._async.driver import Connection
from logstore._core.attendance import Attendance
from logstore._core.staging_calls import StagingCalls
from logstore.errors import LogstoreError

__all__ = ["SEAT", "STAGED", "Outbox"]

_log = logging.getLogger("logstore.consumer")

STAGED: Final = "staged"
SEAT: Final = "seat"
"""The payloads that are not a topic's id."""
SWEEP_EVERY_S: Final = 1.0
LEAVE_S: Final = 1.0


class Outbox:
    """Drains on a connection on which somebody waits for records.

    ``able``: the connection can hold the seat and be notified.  ``follower``: it cannot drain at all.
    """

    def __init__(
        self, connection: Connection, schema: str, *, able: bool, follower: bool, timeout_s: float
    ) -> None:
        self._connection = connection
        self._calls = StagingCalls(schema)
        self._timeout_s = timeout_s
        self._disabled = follower
        self._listening = False
        self._sweep_at = 0.0
        self.rung = False
        """Somebody has committed, or the seat is free."""
        self.attendance = Attendance(able=able)

    @property
    def seated(self) -> bool:
        """This connection is the one that drains."""
        return self.attendance.seated

    def due_in(self, now: float) -> float:
        """Seconds until :meth:`look` is due."""
        return float("inf") if self._disabled else self.attendance.due_in(now)

    def heard(self, payloads: list[str]) -> None:
        """What has come with notifications."""
        if STAGED in payloads or (SEAT in payloads and not self.seated):
            self.rung = True
            self.attendance.rung()

    async def look(self) -> tuple[int, ...]:
        """Drain what there is; the topics that got records.  Those who wait for them are woken.

        Raises only what means that the connection is lost.
        """
        self.rung = False
        if self._disabled:
            return ()
        try:
            return await self._look()
        except LogstoreError as error:
            if self._connection.closed:
                raise
            if error.retriable:
                _log.debug("Draining stopped, trying again: %s", error)
                self.attendance.failed(monotonic())
            else:
                # It has not kept anybody from reading so far, and somebody else may be able to.
                _log.warning("This consumer does not drain what transactions have staged: %s", error)
                self._disabled = True
                await self.leave()
            return ()

    async def _look(self) -> tuple[int, ...]:
        attendance = self.attendance
        if attendance.able and not attendance.seated:
            await self._take_seat()
        drained = await self._connection.run(self._calls.drain(), timeout_s=self._timeout_s)
        now = monotonic()
        attendance.drained(now, drained.records, more=drained.more)
        topic_ids = drained.topic_ids or ()
        if topic_ids:
            await self._connection.run(self._calls.wake(topic_ids), timeout_s=self._timeout_s)
        if drained.sweep and now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            await self._connection.run(self._calls.sweep_staged(), timeout_s=self._timeout_s)
        if attendance.should_arm(now):
            if await self._connection.run(self._calls.arm_doorbell(), timeout_s=self._timeout_s):
                attendance.has_armed()
        elif attendance.should_disarm(now):
            await self._connection.run(self._calls.disarm_doorbell(), timeout_s=self._timeout_s)
            attendance.has_disarmed(now)
        return topic_ids

    async def _take_seat(self) -> None:
        if await self._connection.run(self._calls.attend_staging(), timeout_s=self._timeout_s):
            if not self._listening:
                await self._connection.listen(self._calls.staged_channel, timeout_s=self._timeout_s)
                self._listening = True
            self.attendance.took_the_seat(monotonic())

    async def leave(self) -> None:
        """Let another one drain."""
        if self.seated and not self._connection.closed:
            self.attendance.seated = False
            with suppress(LogstoreError):
                if self.attendance.armed:
                    self.attendance.armed = False
                    await self._connection.run(self._calls.disarm_doorbell(), timeout_s=LEAVE_S)
                await self._connection.run(self._calls.leave_staging(), timeout_s=LEAVE_S)
