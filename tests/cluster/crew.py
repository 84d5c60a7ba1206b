"""The clients of a run: in a few processes, several in each, writing down what they do and see.

Beside the actors of :mod:`tests.history` there is the *spy*: it asks one member, whoever leads, for its
watermarks and for every record below them, on a bare connection.  What a follower gives away is known then,
and compared with the log in the end.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from logstore._core.calls import Calls
from logstore._sync.driver import Connection
from logstore.errors import LogstoreError
from tests.history.plan import Plan, Sign, Stop
from tests.history.record import Poll, Recorder
from tests.history.workload import ACTORS

__all__ = ["Crew", "Hand", "spy"]

LOOKS_APART: Final = 3
"""A spy lets a sender send so many records between two looks."""
MANY_BYTES: Final = 1 << 20
JOIN_S: Final = 260.0


def spy(plan: Plan, name: str, stop: Stop) -> None:
    """Reads everything below the watermarks of the member that ``plan.dsn`` names, from the beginning."""
    recorder = Recorder(plan.path, name)
    positions = dict.fromkeys(range(plan.partitions), 0)
    node = name.rpartition("@")[2].partition(".")[0]
    apart_s = LOOKS_APART * plan.pause_s
    while not stop.is_set():
        with (
            contextlib.suppress(LogstoreError),
            closing(Connection.open(plan.dsn, timeout_s=2, application_name="spy")) as connection,
        ):
            while not stop.wait(apart_s):
                _look(connection, plan, recorder, positions, node)
        stop.wait(apart_s)
    recorder.close()


def _look(
    connection: Connection, plan: Plan, recorder: Recorder, positions: dict[int, int], node: str
) -> None:
    """One look: how far the log may be read, and what is there from where we were."""
    calls = Calls()
    found = connection.run(calls.metadata([plan.topic]), timeout_s=2)
    if not found:
        return  # a follower that has not heard of it
    topic, partitions = found[0].topic_id, list(positions)
    marks, records = {}, []
    begun = time.monotonic()
    rows = connection.run(
        calls.fetch([topic] * len(partitions), partitions, list(positions.values()), MANY_BYTES, MANY_BYTES),
        timeout_s=3,
    )
    for row in rows:
        partition = partitions[row.idx - 1]
        tp = f"{plan.topic}-{partition}"
        if row.base_offset is None:
            if row.high_watermark is not None:
                marks[tp] = row.high_watermark
            continue
        for at, value in enumerate(row.values or ()):
            offset = row.base_offset + (row.offset_deltas[at] if row.offset_deltas else at)
            if offset >= positions[partition]:
                records.append((tp, offset, (value or b"").decode()))
                positions[partition] = offset + 1
    recorder.note("answer", node=node, marks=marks, begun=begun)
    if records:
        recorder.note("poll", [Poll(tuple(records))], marks=marks)


@dataclass(frozen=True)
class Hand:
    """One actor: which, on which plan."""

    actor: str
    name: str
    plan: Plan
    writes: bool = False


_ACTORS: Final[dict[str, Callable[[Plan, str, Stop], None]]] = {**ACTORS, "spy": spy}


class Crew:
    """The processes.  They end with this one, however it ends."""

    def __init__(self, path: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._path = path
        self._stops = {writes: Sign(path.with_suffix(f".stop-{writes}")) for writes in (True, False)}
        self._running: list[tuple[bool, BaseProcess]] = []
        self._numbers = itertools.count()

    def start(self, *hands: Hand) -> None:
        """A process with these actors in it, which all write or all read."""
        (writes,) = {hand.writes for hand in hands}
        arguments = (hands, self._stops[writes], self._clock)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        self._running.append((writes, process))

    @property
    def _clock(self) -> Path:
        return self._path.with_suffix(".clock")

    def step_clocks(self, seconds: float) -> None:
        """From now on the clocks of all clients are wrong by that."""
        draft = self._path.with_suffix(".clock-new")
        draft.write_text(str(seconds))
        draft.replace(self._clock)

    def check(self) -> None:
        """All that have not been told to stop work."""
        for _, process in self._running:
            assert process.exitcode is None, f"a process of clients has ended with {process.exitcode}"

    def stop(self, *, writes: bool) -> None:
        self._stops[writes].set()
        for what, process in self._running:
            if what == writes:
                process.join(JOIN_S)
                assert process.exitcode == 0, f"a process of clients has ended with {process.exitcode}"
        self._running = [each for each in self._running if each[0] != writes]

    def kill(self) -> None:
        for _, process in self._running:
            process.kill()
            process.join()


def _work(hands: Sequence[Hand], stop: Sign, clock: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _let_the_clock_be_wrong(clock)
    failed: list[BaseException] = []

    def run(hand: Hand) -> None:
        try:
            lives = itertools.count()
            while not stop.is_set():
                # A producer that has been told that it cannot go on ends, and another one begins.
                _ACTORS[hand.actor](replace(hand.plan), f"{hand.name}.{next(lives)}", stop)
        except BaseException as error:
            logging.disable(logging.NOTSET)
            logging.exception("%s", hand.name)
            failed.append(error)

    threads = [threading.Thread(target=run, args=(hand,), name=hand.name) for hand in hands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _let_the_clock_be_wrong(told: Path) -> None:
    """Shift this process's wall clock by what the file says, looked up ten times a second."""
    shift = [0.0]

    def follow() -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):
                shift[0] = float(told.read_text())
            threading.Event().wait(0.1)

    threading.Thread(target=follow, daemon=True).start()
    real, real_ns = time.time, time.time_ns
    shifted: dict[str, Callable[[], Any]] = {
        "time": lambda: real() + shift[0],
        "time_ns": lambda: real_ns() + round(shift[0] * 1e9),
    }
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").partition(".")[0] in ("logstore", "time", "tests"):
            for name, function in (("time", real), ("time_ns", real_ns)):
                if getattr(module, name, None) is function:
                    setattr(module, name, shifted[name])
