"""Something that goes on whatever the program does; the asyncio twin is ``logstore._async.apart``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Apart", "Bell", "SharedLock", "settle", "settle_soon"]

SharedLock: Final = threading.Lock
"""Guards state that several threads touch, for a moment."""


class Apart:
    """Runs ``run`` apart from the program, in a daemon thread."""

    def __init__(self, run: Callable[[], None], *, name: str) -> None:
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function``; it may be called from any thread."""
        function()

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it ended within ``timeout_s`` seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class Bell:
    """Calls ``answer`` whenever somebody rings."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer

    def ring(self) -> None:
        """Any thread may call this."""
        self._answer()


def settle(result: object) -> None:
    """What a callback returned is there already."""


def settle_soon(result: object) -> None:
    """What a callback returned is there already."""
