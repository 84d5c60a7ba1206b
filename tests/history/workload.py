"""Clients at work, writing down what they do and see; what they do follows from a seed.

Each actor is a function for a thread or a process of its own; it works until ``stop`` is set (or it is
killed) and goes on whatever fails.  :func:`finish` reads everything that there is in the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from tests.history.plan import Plan, Sign, Stop
from tests.history.readers import finish, marks, reader, subscriber, wanderer
from tests.history.writers import committer, processor, sender, transactor

__all__ = ["ACTORS", "WRITERS", "Actor", "Crew", "Plan", "Sign", "Stop", "finish"]

Actor = Callable[[Plan, str, Stop], None]

ACTORS: Final[dict[str, Actor]] = {
    "sender": sender,
    "committer": committer,
    "transactor": transactor,
    "processor": processor,
    "reader": reader,
    "wanderer": wanderer,
    "subscriber": subscriber,
    "marks": marks,
}
WRITERS: Final = frozenset({"sender", "committer", "transactor", "processor"})
"""Those that are stopped first."""


class Crew:
    """Actors in threads of this process; an error of one is raised by :meth:`close`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stop = threading.Event()
        self.writing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._writers: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, actor: str, name: str) -> None:
        stop = self.writing if actor in WRITERS else self.stop

        def run() -> None:
            try:
                ACTORS[actor](self.plan, name, stop)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, name=name)
        (self._writers if stop is self.writing else self._threads).append(thread)
        thread.start()

    def check(self) -> None:
        """Raise what an actor has failed with, if one has."""
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Stop the writers, then the readers."""
        self.writing.set()
        for thread in self._writers:
            thread.join()
        self.stop.set()
        for thread in self._threads:
            thread.join()
        self.check()
