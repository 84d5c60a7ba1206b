"""Signals that set an event, safely while the main thread waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["stopped_by"]


@contextlib.contextmanager
def stopped_by(*numbers: signal.Signals, twice_ends: bool = False) -> Iterator[threading.Event]:
    """An event that these signals set; main thread only.  ``twice_ends``: a second one ends the process.

    A handler runs in the main thread, between any two of its instructions.  If it set the event there, while
    the main thread was about to wait for it, with the event's own lock in hand, it would wait for ever.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    told: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        if told and twice_ends:
            os._exit(128 + number)
        told.append(number)
        os.write(writing, b"x")

    def hear() -> None:
        if os.read(reading, 1):
            stop.set()

    before = {number: signal.signal(number, tell) for number in numbers}
    hearing = threading.Thread(target=hear, name="signals", daemon=True)
    hearing.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        hearing.join()
        os.close(reading)
