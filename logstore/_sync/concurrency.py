"""What differs in behaviour between threads and asyncio; the asyncio twin is ``logstore._async.concurrency``.

Waiting here is interrupted by Ctrl-C at once, and background threads are daemons: a program that ends without
closing its client ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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

COLOUR: Final = "sync"

Lock = threading.Lock
"""Guards state that several threads touch."""


class Mutex:
    """Guards an operation that itself waits, such as the use of a connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class Event:
    """Something that happens once."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it happened within ``timeout_s`` seconds; None waits for ever."""
        return self._event.wait(_bounded(timeout_s))


class Condition:
    """A change of the state that ``lock`` guards."""

    def __init__(self, lock: threading.Lock) -> None:
        self._condition = threading.Condition(lock)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, with the lock held, until somebody notifies; False after ``timeout_s`` seconds.

        The lock is free meanwhile.  As with every condition: look at the state again afterwards.
        """
        return self._condition.wait(_bounded(timeout_s))

    def notify_all(self) -> None:
        """Wake everybody who waits; the lock must be held."""
        self._condition.notify_all()


class Task:
    """Something that runs in the background."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """The caller is this task."""
        return threading.current_thread() is self._thread

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it ended within ``timeout_s`` seconds."""
        self._thread.join(_bounded(timeout_s))
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Nothing: a thread ends by itself when it sees that its client is closed."""


def spawn(run: Callable[[], None], *, name: str) -> Task:
    """Run ``run`` in the background."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return Task(thread)


def sleep(seconds: float) -> None:
    """Do nothing for ``seconds``."""
    time.sleep(seconds)


def breathe() -> None:
    """Nothing: the other threads run anyway."""


def offload(work: Callable[[], T]) -> T:
    """Do something that blocks; here that keeps nobody else waiting."""
    return work()


class Promise(Generic[T]):
    """A future of this colour is not awaitable."""

    __slots__ = ()

    def get(self, timeout: float | None = None) -> T:
        raise NotImplementedError


def start_at_once(client: Any) -> None:
    """A client that cannot work says so where it is made."""
    client.start()


def _bounded(timeout_s: float | None) -> float | None:
    # Longer than this, threading raises OverflowError.
    return None if timeout_s is None else min(max(timeout_s, 0.0), threading.TIMEOUT_MAX)
