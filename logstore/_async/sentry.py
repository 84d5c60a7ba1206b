"""Notices that the leader has fallen silent, where the operating system does not.

A process that is stopped, or a machine that is cut off, closes nothing: a request to it waits for its
deadline.  Whether a server is dead or only slow cannot be told from there; but when another one leads,
whoever waits for the old one waits in vain.  So when a request takes long, the other hosts are asked.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING
from weakref import ref

from logstore._async.concurrency import Event, Task, spawn

if TYPE_CHECKING:
    from logstore._async.session import Session

__all__ = ["Sentry"]

LOOK_EVERY_S = 0.5
LEAVE_S = 2.0
SUSPECT_S = 2.0
"""A request that takes longer makes its server suspect."""


class Sentry:
    """Looks after the connections of one session, while it has any."""

    def __init__(self, session: Session) -> None:
        self._session = ref(session)
        self._dismissed = Event()
        self._task: Task | None = None

    def begin(self) -> None:
        """Look from now on, if nobody looks."""
        if self._task is None or not self._task.alive:
            self._dismissed = Event()
            self._task = spawn(self._run, name="logstore-sentry")

    async def dismiss(self) -> None:
        """Stop looking."""
        self._dismissed.set()
        if self._task is not None and not self._task.is_current:
            await self._task.join(LEAVE_S)

    async def _run(self) -> None:
        dismissed = self._dismissed
        while not await dismissed.wait(LOOK_EVERY_S):
            session = self._session()
            if session is None or not session.connected:
                return
            suspects = session.suspects(monotonic() - SUSPECT_S)
            if suspects:
                await session.look_beyond(suspects)
            del session
