# Generated from logstore/_async/lifetimes.py by tools/unasync.py; edit that file.
"""What has to happen to every living client when the process forks or ends."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

__all__ = ["Living", "living"]


class Living(Protocol):
    """A client that must not outlive its process, nor be used in a copy of it."""

    def forked(self) -> None:
        """Called in the child of a fork, where no other thread runs and any lock may be held for ever."""

    def at_exit(self) -> None:
        """Called when the interpreter ends."""


living: WeakSet[Living] = WeakSet()
"""The clients that have been started and not closed."""


def _forked() -> None:
    for client in list(living):
        with suppress(Exception):
            client.forked()


def _at_exit() -> None:
    for client in list(living):
        with suppress(Exception):
            client.at_exit()


os.register_at_fork(after_in_child=_forked)
atexit.register(_at_exit)
