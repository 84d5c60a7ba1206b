"""The worker's jobs struck down at each request they make: nothing is lost, nothing twice, nothing left over.

``python -m tests.support.worker_killed`` takes a log with work for every job, lets a process do it, and has a
blow fall at its first request, then (on a fresh copy) at its second, and so on until it makes no more; with
each kind of blow.  After each one appends and reads have to go on at once, and other workers have to finish.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Final, NamedTuple

import psycopg

from logstore.errors import LogstoreError
from tests.support import jobs
from tests.support.log_story import JOBS, Story, goes_on, told
from tests.support.producer_chaos import kill_server
from tests.support.programs import eventually
from tests.support.proxy import Proxy
from tests.support.servers import Server, embedded

__all__ = ["Blow", "Point", "Result", "points", "strike_each", "workers"]

PATIENCE_S: Final = 60.0
SUDDEN_MS: Final = 8.0
"""A blow in the middle of a request falls at most so long after its beginning."""
PACE: Final = 10
"""The server itself is killed at every so many requests only, and no sooner than:"""
PACE_S: Final = 13.0
"""Its supervisor gives up a server that dies six times a minute."""
LOCK_TIMEOUT_MS: Final = 10_000
"""What is left of a worker that was killed is gone after this at the latest."""


class Blow(Enum):
    """What happens at a request."""

    BEFORE = "the worker is killed before the server gets it"
    AFTER = "the worker is killed while the server does it"
    SESSION = "the server ends the session while it does it"
    CRASH = "the session's process is killed, so that the server starts all of them anew and recovers"
    SERVER = "the server is killed while it does it"


class Point(NamedTuple):
    blow: Blow
    request: int
    """Counted from the first connection on, over all of them, from 0."""
    text: bytes = b""
    """A regular expression: only requests that have such text are counted."""


@dataclass
class Result:
    point: Point
    struck: bool
    """The worker made so many requests."""
    text: str = ""
    """What it was about to do."""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.point.blow.name} at request {self.point.request}, {self.text}: {self.wrong[:5]}"


def points(blows: Sequence[Blow], stride: int = 1, begin: int = 0) -> Iterator[Point]:
    """Without end: the blows in turn, from request to request."""
    number = 0
    while True:
        yield Point(blows[number % len(blows)], begin + number * stride)
        number += 1


def workers() -> ForkServerContext:
    """What starts processes that have the jobs loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *(f"logstore.workers.{name}" for name in JOBS)])
    return context


def strike_each(story: Story, chosen: Iterable[Point], *, seed: int = 0) -> Iterator[Result]:
    """Let the jobs begin the same work again and again, each time with a blow at another point."""
    context = workers()
    dice = random.Random(seed)
    for point in chosen:
        with story.copy() as dsn:
            result = _strike(story, context, dsn, point, dice.uniform(0, SUDDEN_MS) / 1000)
            yield result
        if not result.struck:
            return


def _strike(story: Story, context: ForkServerContext, dsn: str, point: Point, pause_s: float) -> Result:
    result = Result(point, struck=False)
    with Proxy(dsn) as proxy:
        worker = context.Process(target=_work, args=(proxy.dsn,), daemon=True)
        striker = _Striker(result, pause_s, lambda: _fall(point.blow, story.server, dsn, worker))
        proxy.on_request = striker
        worker.start()
        worker.join(PATIENCE_S)
        if worker.exitcode is None:
            result.wrong.append("the worker does not come to an end")
            worker.kill()
            worker.join()
        if result.struck and not striker.fallen.wait(PATIENCE_S):
            result.wrong.append("the blow does not come to an end")
        if not result.struck and worker.exitcode != 0:
            result.wrong.append(f"the worker ended with {worker.exitcode}")
    if result.struck:
        result.wrong += goes_on(dsn, lock_timeout_ms=LOCK_TIMEOUT_MS)
    result.wrong += finish(story, dsn)
    return result


def finish(story: Story, dsn: str) -> list[str]:
    """Let another worker do the rest; what is wrong then."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            jobs.settle(dsn, JOBS)
        except LogstoreError as error:
            # The server may still be busy with what the dead one asked for.
            found = [repr(error)]
        else:
            found = story.faults(dsn)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


class _Striker:
    """Stands between the worker and the server, and counts."""

    def __init__(self, result: Result, pause_s: float, fall: Callable[[], None]) -> None:
        self._result = result
        self._pause_s = pause_s
        self._fall = fall
        self._lock = threading.Lock()
        self._requests = 0
        self.fallen: Final = threading.Event()
        """The blow, too, is over: a server that was killed is back."""

    def __call__(self, data: bytes, send: Callable[[], None]) -> None:
        point = self._result.point
        if re.search(point.text, data) is None:
            send()
            return
        with self._lock:
            number = self._requests
            self._requests += 1
        if number != point.request:
            send()
            return
        self._result.struck = True
        self._result.text = repr(data[:200])
        if point.blow is not Blow.BEFORE:
            send()
            time.sleep(self._pause_s)
        try:
            self._fall()
        finally:
            self.fallen.set()
        if point.blow is Blow.BEFORE:
            raise ConnectionAbortedError


def _fall(blow: Blow, server: Server, dsn: str, worker: ForkServerProcess) -> None:
    if blow is Blow.SESSION:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name LIKE 'logstore %' AND pid <> pg_backend_pid()"
            )
    elif blow is Blow.CRASH:
        _crash(dsn)
    elif blow is Blow.SERVER:
        kill_server(server)
    else:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: not worker.is_alive(), "the worker is dead")


def _crash(dsn: str) -> None:
    """kill -9 of one of the server's processes; it is back then."""
    with psycopg.connect(dsn, autocommit=True) as witness:

        def broken() -> bool:
            try:
                pids = witness.execute(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                    "AND (application_name LIKE 'logstore %' OR pid = pg_backend_pid()) "
                    "ORDER BY pid = pg_backend_pid()"
                ).fetchall()
            except psycopg.Error:
                return True
            # One that ends by itself just then takes nobody with it: again.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0][0], signal.SIGKILL)
            return False

        eventually(broken, "all sessions are gone", PATIENCE_S)

    def answers() -> bool:
        try:
            psycopg.connect(dsn).close()
        except psycopg.Error:
            return False
        return True

    eventually(answers, "the server is back", PATIENCE_S)


def _work(dsn: str) -> None:
    """The worker."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jobs.settle(dsn, JOBS)
    except LogstoreError as error:
        print(repr(error), file=sys.stderr)
        sys.exit(3)  # it was told that its session, or the server, has come to an end


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Strike the worker's jobs down at each of their requests.")
    parser.add_argument("--blow", choices=[blow.name for blow in Blow], action="append")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--begin", type=int, default=0, help="the first request")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    failed = 0
    with embedded() as server, told(server) as story:
        for name in options.blow or [blow.name for blow in Blow]:
            requests = 0
            paced = Blow[name] is Blow.SERVER
            stride = options.stride * (PACE if paced else 1)
            for result in strike_each(story, points([Blow[name]], stride, options.begin), seed=options.seed):
                if paced:
                    time.sleep(PACE_S)
                requests += result.struck
                if result.wrong:
                    failed += 1
                    print(result, flush=True)
            print(f"{name}: the worker was struck down at {requests} requests", flush=True)
    print(f"{failed} times something was wrong afterwards")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
