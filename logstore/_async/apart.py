"""Something that goes on whatever the program does; the threaded twin is ``logstore._sync.apart``.

A task of the program's event loop stands still while a handler computes or blocks.  What must not stand
still, such as a member's heartbeat, runs here: in a thread with an event loop of its own.  What it shares
with the program's side is touched under a :data:`SharedLock`, which is a real lock in both colours.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Final

__all__ = ["Apart", "Bell", "SharedLock", "settle", "settle_soon"]

SharedLock: Final = threading.Lock
"""Guards state that several threads touch, for a moment and never across an await."""


class Apart:
    """Runs ``run`` apart from the program, in a daemon thread."""

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        self._run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` over there, soon; forgotten when it has ended.  Any thread may call this."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(function)

    async def join(self, timeout_s: float | None = None) -> bool:
        """Whether it ended within ``timeout_s`` seconds."""
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._run())


class Bell:
    """Calls ``answer`` in the program's event loop whenever somebody rings.

    Made in that loop.
    """

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Any thread may call this."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._answer)


async def settle(result: object) -> None:
    """Wait for what a callback returned, if it is something to be waited for."""
    if isawaitable(result):
        await result


def settle_soon(result: object) -> None:
    """Let what a callback returned go on by itself, if it is something to be waited for."""
    if isawaitable(result):
        task = asyncio.ensure_future(result)
        _going_on.add(task)
        task.add_done_callback(_going_on.discard)


_going_on: Final[set[asyncio.Future[Any]]] = set()
"""The event loop itself holds its tasks only weakly."""
