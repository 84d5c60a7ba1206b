"""The processes of a member, found by where they work and what they are, and their end.

PostgreSQL outlives a Patroni that is killed, and nobody is its parent then: a process number from a file may
be somebody else's by now, its working directory is not.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from logstore.cluster.layout import Place

if TYPE_CHECKING:
    import psutil

__all__ = ["discard", "end", "held_up", "kill", "of"]

_PROGRAMS: Final = frozenset(
    {"postgres", "etcd", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl", "pg_controldata"}
)


def of(place: Place) -> list[psutil.Process]:
    """Every process of a member, or of etcd, that lives; oldest first."""
    return [process for process, _ in _at(place)]


def _at(place: Place) -> Iterator[tuple[psutil.Process, str]]:
    """The processes, with the names of what they run."""
    import psutil

    inside = place.path.resolve()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            where = Path(process.cwd())
            if where != inside and inside not in where.parents:
                continue
            name = process.name()
            ours = name in _PROGRAMS or str(place.configuration) in process.cmdline()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                yield process, name


def kill(place: Place, patience_s: float = 10.0) -> int:
    """kill -9 all of a member's processes; how many there were.  Returns when they are gone."""
    import psutil

    killed = 0
    # Again, for those that were just being started.
    while found := of(place):
        # Patroni is the oldest: it must not see its PostgreSQL die, and start another.
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(found)
        if psutil.wait_procs(found, timeout=patience_s)[1]:
            break
    return killed


@contextmanager
def held_up(places: Iterable[Place]) -> Iterator[None]:
    """The Patroni of each of these members stands still inside."""
    import psutil

    stopped = []
    for place in places:
        for process in of(place):
            # Others of a member's come and go.
            with suppress(psutil.Error):
                if str(place.configuration) in process.cmdline():
                    stopped.append(process)
    try:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def discard(place: Place, patience_s: float = 5.0) -> int:
    """Stop at once a member whose data are to be removed; how many processes there were.

    Nothing but PostgreSQL's own end gives its shared memory back.
    """
    import psutil

    named = list(_at(place))
    found = [process for process, _ in named]
    postgres = [process for process, name in named if name == "postgres"]
    for process in found:
        if process not in postgres:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    for process in _oldest(postgres):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGQUIT)
    psutil.wait_procs(found, timeout=patience_s)
    kill(place)
    return len(found)


def end(places: Iterable[Place], patience_s: float = 20.0) -> int:
    """Stop what still runs, kindly first; how many processes there were."""
    import psutil

    places = list(places)
    found = [process for place in places for process in of(place)]
    for process in _oldest(found):
        # Also PostgreSQL's fast shutdown.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    psutil.wait_procs(found, timeout=patience_s)
    for place in places:
        kill(place)
    return len(found)


def _oldest(found: list[psutil.Process]) -> list[psutil.Process]:
    """Those whose parents are not among them."""
    import psutil

    numbers = {process.pid for process in found}
    oldest = []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in numbers:
                oldest.append(process)
    return oldest
