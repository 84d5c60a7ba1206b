"""What differs in behaviour between asyncio and threads; the threaded twin is ``logstore._sync.concurrency``.

Code above uses these names only, so that its generated twin differs in words alone.  Async code is atomic
between two awaits and its twin is not: whatever both touch is touched under a :class:`Lock`, which costs
nothing here and is a real lock there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

__all__ = [
    "COLOUR",
    "Condition",
    "Event",
    "Lock",
    "Mutex",
    "Promise",
    "Task",
    "breathe",
    "offload",
    "sleep",
    "spawn",
    "start_at_once",
]

T = TypeVar("T")

COLOUR: Final = "async"


class Lock:
    """Guards state between two awaits: nothing to do in asyncio."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def acquire(self) -> None:
        return None

    def release(self) -> None:
        return None


class Mutex:
    """Guards an operation that itself awaits, such as the use of a connection."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class Event:
    """Something that happens once."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it happened within ``timeout_s`` seconds; None waits for ever."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Condition:
    """A change of the state that ``lock`` guards."""

    def __init__(self, lock: Lock) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, with the lock held, until somebody notifies; False after ``timeout_s`` seconds.

        The lock is free meanwhile.  As with every condition: look at the state again afterwards.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return True

    def notify_all(self) -> None:
        """Wake everybody who waits; the lock must be held."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Task:
    """Something that runs in the background."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def alive(self) -> bool:
        return not self._task.done()

    @property
    def is_current(self) -> bool:
        """The caller is this task."""
        return asyncio.current_task() is self._task

    async def join(self, timeout_s: float | None = None) -> bool:
        """Whether it ended within ``timeout_s`` seconds."""
        done, _ = await asyncio.wait((self._task,), timeout=timeout_s)
        return bool(done)

    def cancel(self) -> None:
        """End it at its next await."""
        self._task.cancel()


def spawn(run: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> Task:
    """Run ``run`` in the background."""
    return Task(asyncio.get_running_loop().create_task(run(), name=name))


async def sleep(seconds: float) -> None:
    """Do nothing for ``seconds``."""
    await asyncio.sleep(seconds)


async def breathe() -> None:
    """Let the other tasks run: a caller that never has to wait would starve them."""
    await asyncio.sleep(0)


async def offload(work: Callable[[], T]) -> T:
    """Do something that blocks without keeping the other tasks waiting."""
    return await asyncio.to_thread(work)


class Promise(Generic[T]):
    """What makes a future of this colour awaitable."""

    __slots__ = ()

    async def get(self, timeout: float | None = None) -> T:
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, T]:
        return self.get().__await__()


def start_at_once(client: object) -> None:
    """An async client is started by ``async with``, by ``start()`` or by its first use: not here."""
