"""What differs in behaviour between threads and asyncio; the asyncio twin is ``logstore._async.concurrency``.

Waiting here is interrupted by Ctrl-C, and background threads are daemons: a program that ends without
closing its client ends.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from contextlib import suppress
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

Lock = threading.RLock
"""Guards state that several threads touch.

It knows who holds it, so that tests can ask; nobody takes it twice.
"""

Mutex = threading.Lock
"""Guards an operation that itself waits, such as the use of a connection."""

ATTENTION_S: Final = 0.2
"""How late the main thread notices a Ctrl-C, at worst."""


class Event:
    """Something that happens once."""

    __slots__ = ("_happened", "_waiters")

    def __init__(self) -> None:
        self._happened = False
        self._waiters: list[_thread.LockType] = []

    def set(self) -> None:
        # In this order, and the opposite one in wait(): nobody begins to wait unseen.
        self._happened = True
        _release(self._waiters)

    def is_set(self) -> bool:
        return self._happened

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it happened within ``timeout_s`` seconds; None waits for ever."""
        waiter = _waiter(self._waiters)
        try:
            return self._happened or _acquired(waiter, timeout_s) or self._happened
        finally:
            _forget(self._waiters, waiter)


class Condition:
    """A change of the state that ``lock`` guards.

    ``threading.Condition`` leaves the lock to somebody else when Ctrl-C strikes while it takes it back.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiters: list[_thread.LockType] = []

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, with the lock held, until somebody notifies; False after ``timeout_s`` seconds.

        The lock is free meanwhile.  As with every condition: look at the state again afterwards.
        """
        lock = self._lock
        waiter = _waiter(self._waiters)
        taken: list[bool] = []
        try:
            lock.release()
            return _acquired(waiter, timeout_s)
        finally:
            # Ctrl-C strikes between two calls of C functions, or ends the one that waits. Taking the lock and
            # writing that down are one; and one Ctrl-C is followed by a second try that it does not strike.
            try:
                taken.extend(map(lock.acquire, (True,)))
            finally:
                if not taken:
                    lock.acquire()
                _forget(self._waiters, waiter)

    def notify_all(self) -> None:
        """Wake everybody who waits; the lock must be held."""
        _release(self._waiters)


def _waiter(waiters: list[_thread.LockType]) -> _thread.LockType:
    """A lock that is taken, and freed when somebody wakes ``waiters``."""
    waiter = _thread.allocate_lock()
    waiter.acquire()
    waiters.append(waiter)
    return waiter


def _forget(waiters: list[_thread.LockType], waiter: _thread.LockType) -> None:
    with suppress(ValueError):  # whoever woke it has done so
        waiters.remove(waiter)


def _release(waiters: list[_thread.LockType]) -> None:
    """Wake and forget them all; several threads may do so at once."""
    while waiters:
        with suppress(IndexError):
            waiter = waiters[-1]
            with suppress(RuntimeError):
                waiter.release()
            _forget(waiters, waiter)


def _acquired(lock: _thread.LockType, timeout_s: float | None) -> bool:
    """Whether ``lock`` could be taken within ``timeout_s`` seconds.

    A signal that comes between the interpreter's last look and the system call that waits does not end the
    wait: the thread that Ctrl-C is for never waits long at a time.
    """
    patience = _bounded(timeout_s)
    if threading.get_ident() != threading.main_thread().ident:
        return lock.acquire(timeout=-1 if patience is None else patience)
    end = None if patience is None else time.monotonic() + patience
    while True:
        left = ATTENTION_S if end is None else min(ATTENTION_S, end - time.monotonic())
        if lock.acquire(timeout=max(0.0, left)):
            return True
        if left < ATTENTION_S:
            return False


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
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._thread.is_alive():
            left = ATTENTION_S if end is None else min(ATTENTION_S, end - time.monotonic())
            if left <= 0:
                return False
            self._thread.join(left)
        return True

    def cancel(self) -> None:
        """Nothing: a thread ends by itself when it sees that its client is closed."""


def spawn(run: Callable[[], None], *, name: str) -> Task:
    """Run ``run`` in the background."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return Task(thread)


def sleep(seconds: float) -> None:
    """Do nothing for ``seconds``."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, ATTENTION_S))


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
