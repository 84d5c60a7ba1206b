"""Ctrl-C that strikes while the lock of a condition is taken back leaves it with whoever had it."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from logstore._sync.concurrency import Condition, Event, Lock


class StruckLock:
    """A lock; Ctrl-C strikes the first who waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.struck = False
        self.release = self.lock.release

    def acquire(self, blocking: bool = True) -> bool:
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        return self.lock.acquire(blocking)


@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
def test_lock_is_held_whatever_ends_the_wait(timeout_s: float) -> None:
    lock = StruckLock()
    lock.lock.acquire()
    condition = Condition(cast(Any, lock))
    with pytest.raises(KeyboardInterrupt):
        condition.wait(timeout_s)
    assert lock.struck
    assert lock.lock.locked()
    lock.release()


def test_notification_wakes_every_waiter_and_is_remembered_by_none() -> None:
    lock = Lock()
    condition = Condition(lock)
    woken: list[bool] = []
    ready = threading.Semaphore(0)

    def wait() -> None:
        with lock:
            ready.release()
            woken.append(condition.wait(30))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    with lock:  # all of them wait by now: each let go of the lock only to do so
        condition.notify_all()
    for thread in threads:
        thread.join(30)
    assert woken == [True] * 3
    with lock:
        assert not condition.wait(0.01)


def test_event_wakes_those_who_wait_and_those_who_come_later() -> None:
    event = Event()
    assert not event.wait(0.01)
    seen: list[bool] = []
    threads = [threading.Thread(target=lambda: seen.append(event.wait(30))) for _ in range(3)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join(30)
    assert seen == [True] * 3
    assert event.is_set()
    assert event.wait(0)
