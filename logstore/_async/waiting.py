"""Waiting for records on one connection, so that those who append know that somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic

from logstore._async.driver import Connection
from logstore._async.outbox import SEAT, Outbox
from logstore._core.calls import Calls
from logstore._core.pace import Pace
from logstore.errors import ConfigurationError

__all__ = ["Waiting"]


class Waiting:
    """Announces which topics the connection waits for, and listens.

    The order matters: announce, look once more, then sleep.  Whoever commits after the announcement wakes us;
    what was committed before it is seen by the look.  ``attends``: it is always used, so that it can be the
    one that drains what transactions stage.
    """

    def __init__(
        self,
        connection: Connection,
        calls: Calls,
        wakeup: str,
        *,
        follower: bool,
        timeout_s: float,
        max_wait_ms: int,
        attends: bool = True,
    ) -> None:
        able = not connection.pooled and not follower
        if wakeup == "notify" and not able:
            raise ConfigurationError(
                f'wakeup="notify" is not possible: {connection.dsn_for_display} is a '
                f"{'follower' if follower else 'pooler'}, which passes no notifications on.",
                advice='Use wakeup="auto" or "poll".',
            )
        # Twice in that time, because a look at what is staged may come in between.
        self.pace = Pace(woken=able and wakeup != "poll", longest_s=max_wait_ms / 2000)
        self.outbox = Outbox(
            connection,
            calls.schema,
            able=able and wakeup != "poll" and attends,
            follower=follower,
            timeout_s=timeout_s,
        )
        self.brought = False
        """What the next look finds, we have drained: it does not mean that somebody appends."""
        self._connection = connection
        self._calls = calls
        self._timeout_s = timeout_s
        self._listening = False
        self._announced: list[int] = []

    async def announced(self, topic_ids: Sequence[int]) -> bool:
        """Announce these topics; whether that was news, so that the caller has to look once more."""
        wanted = sorted(set(topic_ids))
        if wanted == self._announced:
            return False
        if not self._listening:
            await self._connection.listen(self._calls.wake_channel, timeout_s=self._timeout_s)
            self._listening = True
            if self.outbox.attendance.able:
                # Whoever had the seat may have left it before we could be told.
                self.outbox.heard([SEAT])
        known = set(self._announced)
        await self.not_waiting(known.difference(wanted))
        await self._connection.run(
            self._calls.waiting([each for each in wanted if each not in known]), timeout_s=self._timeout_s
        )
        self._announced = wanted
        return True

    async def sleep(self, seconds: float) -> bool:
        """Until a topic that is waited for has records, somebody interrupts, or the time is over; whether
        it is.
        """
        until = monotonic() + seconds
        wanted = set(map(str, self._announced))
        while (left := until - monotonic()) > 0:
            woken_for = await self._connection.wait_notify(left)
            if not woken_for or not wanted.isdisjoint(woken_for):
                break
        return left <= 0 or until <= monotonic()

    async def drained(self, wanted: Collection[str]) -> bool:
        """Drain what transactions have staged; whether some of it was of ``wanted`` topics."""
        self.brought = not set(wanted).isdisjoint(map(str, await self.outbox.look()))
        return self.brought

    async def drain_is_due(self) -> bool:
        """For a reader that is not asleep: whether it is time to look after what is staged."""
        outbox = self.outbox
        if outbox.attendance.armed:
            outbox.heard(await self._connection.wait_notify(0.0))
        return outbox.due_in(monotonic()) <= 0

    async def attend(self, seconds: float, disturbed: Callable[[], bool]) -> bool:
        """:meth:`sleep`, and drain meanwhile what transactions stage; whether nothing has ended it.

        Whoever interrupts makes ``disturbed`` true before.
        """
        outbox = self.outbox
        until = monotonic() + seconds
        wanted = set(map(str, self._announced))
        while not disturbed():
            now = monotonic()
            due_in = outbox.due_in(now)
            if due_in <= 0 and (outbox.seated or outbox.rung):
                if await self.drained(wanted):
                    return False
                continue
            if now >= until:
                return True
            left = until - now
            heard = await self._connection.wait_notify(min(left, due_in) if outbox.seated else left)
            outbox.heard(heard)
            if not wanted.isdisjoint(heard):
                return False
        return False

    async def not_waiting(self, topic_ids: set[int] | None = None) -> None:
        """Take the announcement back, of all topics or of some."""
        gone = set(self._announced) if topic_ids is None else topic_ids
        if gone:
            await self._connection.run(self._calls.not_waiting(sorted(gone)), timeout_s=self._timeout_s)
            self._announced = [each for each in self._announced if each not in gone]
