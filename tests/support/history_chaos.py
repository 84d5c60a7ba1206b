"""Producers under random faults: is every acknowledged record there, once, in order?

``python -m tests.support.history_chaos --faults 200`` runs it at length, on an embedded server.  Producers
are processes that are killed and replaced; their connections, the server's backends and the server itself are
broken in turn.  Beside them transactions are committed, aborted and fenced, members of one group process
exactly once and members of another commit what they have read.  A reader that started before all of them
reads on through all of it and must never skip an offset.  Everybody writes a history
(:mod:`tests.history.record`), which the checker judges; the log is judged by ``logstore verify``.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import psycopg

from logstore._core.calls import Calls
from logstore._sync.driver import Connection
from tests.history.checker import Verdict, check
from tests.history.record import Op, read_history
from tests.history.workload import ACTORS, WRITERS, Plan, Sign, finish
from tests.support.programs import eventually, kill
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server, embedded

__all__ = ["Chaos", "Report", "run"]

KINDS: Final[dict[str, int]] = {
    "connection": 10,
    "connecting": 2,
    "refused": 1,
    "frozen": 1,
    "backend terminated": 5,
    "backend killed": 1,
    "client killed": 4,
    "server killed": 1,
}
"""Faults, and how often one is chosen."""
MORTAL: Final = frozenset({"sender", "subscriber", "transactor", "processor"})
"""Who is killed: not the reader that started first."""
SERVER_KILLS_APART_S: Final = 15.0
"""The embedded server gives up when it dies more often than five times a minute."""


@dataclass(frozen=True)
class Chaos:
    faults: int = 200
    producers: int = 8
    others: int = 2
    """Of each: producers with a transactional id that they take from each other, members of a group that
    process exactly once, members of one that commit afterwards."""
    partitions: int = 4
    pause_s: float = 0.25
    """Between faults, on average."""
    seed: int = 0
    fixed: tuple[str, ...] = ()
    """Faults that come first, in this order; the rest is chosen at random."""


@dataclass
class Report:
    chaos: Chaos
    seconds: float
    faults: Counter[str]
    verdict: Verdict
    verified: str
    """What ``logstore verify`` said, if it found something."""
    followed: bool
    """The reader that started first has seen the log to its end."""

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.verified and self.followed

    def __str__(self) -> str:
        lines = [
            f"{sum(self.faults.values())} faults in {self.seconds:.1f} s: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())),
            str(self.verdict),
        ]
        if self.verified:
            lines.append(self.verified)
        if not self.followed:
            lines.append("the reader that started first has not come to the end")
        return "\n".join(lines)


class Crew:
    """Actors in processes of their own."""

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self.plan = plan
        self._chance = chance
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._stops = {writers: Sign(plan.path.with_suffix(f".{writers}")) for writers in (True, False)}
        self._numbers = itertools.count()
        self._running: list[tuple[str, BaseProcess]] = []

    def start(self, actor: str) -> None:
        stop = self._stops[actor in WRITERS]
        name = f"{actor}{next(self._numbers)}"
        process = self._context.Process(target=_act, args=(actor, self.plan, name, stop), daemon=True)
        process.start()
        self._running.append((actor, process))

    def replace_one(self) -> None:
        """kill -9 of somebody; another one takes its place."""
        mortal = [at for at, (actor, _) in enumerate(self._running) if actor in MORTAL]
        actor, process = self._running.pop(self._chance.choice(mortal))
        process.kill()
        process.join()
        self.start(actor)

    def stop(self, *, writers: bool) -> None:
        self._stops[writers].set()
        for actor, process in self._running:
            if (actor in WRITERS) == writers:
                process.join(120)
                assert process.exitcode == 0, f"{actor} ended with {process.exitcode}"
        self._running = [each for each in self._running if (each[0] in WRITERS) != writers]

    def kill(self) -> None:
        for _, process in self._running:
            process.kill()
            process.join()


def _act(actor: str, plan: Plan, name: str, stop: Sign) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    ACTORS[actor](plan, name, stop)


class Nemesis:
    """Breaks things, one at a time."""

    def __init__(self, server: Server, dsn: str, proxy: Proxy, crew: Crew, chance: random.Random) -> None:
        self.server = server
        self.dsn = dsn
        self.proxy = proxy
        self.chance = chance
        self.done: Counter[str] = Counter()
        self._server_killed = -SERVER_KILLS_APART_S
        self._how: dict[str, Callable[[], object]] = {
            "connection": lambda: proxy.strike(chance.choice(list(Fault)), chance.choice([b"", b"append"])),
            "connecting": self._connecting,
            "refused": lambda: self._for_a_while(proxy.refuse),
            "frozen": lambda: self._for_a_while(proxy.freeze),
            "backend terminated": lambda: self._backend("pg_terminate_backend(pid)"),
            "backend killed": self._kill_backend,
            "client killed": crew.replace_one,
            "server killed": self._kill_server,
        }

    def strike(self, kind: str | None = None) -> None:
        chosen = kind or self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        if chosen == "server killed" and time.monotonic() - self._server_killed < SERVER_KILLS_APART_S:
            chosen = "backend killed"
        self._how[chosen]()
        self.done[chosen] += 1

    def _connecting(self) -> None:
        """A connection is lost, and the next one while it is being made."""
        self.proxy.strike(self.chance.choice([Fault.REQUEST, Fault.ANSWER, Fault.RESET]), b"user")
        self.proxy.strike(Fault.RESET)

    def _for_a_while(self, switch: Callable[[bool], None]) -> None:
        switch(True)
        time.sleep(self.chance.uniform(0.05, 0.4))
        switch(False)

    def _backend(self, expression: str) -> int | None:
        with suppress(psycopg.Error), psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute(
                (
                    f"SELECT pid, {expression} FROM (SELECT pid FROM pg_stat_activity"  # noqa: S608 (ours)
                    " WHERE application_name = 'chaos' AND datname = current_database()"
                    " ORDER BY random() LIMIT 1) u"
                ).encode()
            ).fetchone()
            return None if row is None else int(row[0])
        return None

    def _kill_backend(self) -> None:
        """One backend dies, so PostgreSQL ends all of them and recovers."""
        pid = self._backend("0")
        if pid is not None:
            kill(pid)
        self.answers()

    def _kill_server(self) -> None:
        self._server_killed = time.monotonic()
        assert self.server.home is not None
        pid = int((self.server.home / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGKILL)
        self.answers()

    def answers(self) -> None:
        """Wait until the server works again."""

        def works() -> bool:
            try:
                with psycopg.connect(self.dsn, connect_timeout=2) as connection:
                    return connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.Error:
                return False

        eventually(works, "the server works again", 60)


def run(server: Server, dsn: str, chaos: Chaos, path: Path) -> Report:
    """Produce, break, read, check."""
    connection = Connection.open(dsn)
    # Segments are left all the time, and what is known of producers with them.
    connection.run(Calls().create_topic("t", chaos.partitions, {"segment.bytes": "200000"}))
    connection.close()
    chance = random.Random(chaos.seed)
    plan = Plan(dsn, path, partitions=chaos.partitions, seed=chaos.seed, pause_s=0.002)
    began = time.monotonic()
    with Proxy(dsn) as proxy:
        crew = Crew(replace(plan, dsn=proxy.dsn), chance)
        nemesis = Nemesis(server, dsn, proxy, crew, chance)
        try:
            crew.start("reader")
            eventually(lambda: any(op.kind == "assign" for op in _so_far(path)), "the reader reads", 60)
            others = dict.fromkeys(("subscriber", "transactor", "processor"), chaos.others)
            for actor, count in {"sender": chaos.producers, **others, "marks": 1}.items():
                for _ in range(count):
                    crew.start(actor)
            eventually(lambda: _acknowledged(path) > 50, "records are acknowledged", 60)
            for number in range(chaos.faults):
                nemesis.strike(chaos.fixed[number] if number < len(chaos.fixed) else None)
                time.sleep(chance.expovariate(1 / chaos.pause_s))
            # Everything heals; what goes on now has to get through.
            before = _acknowledged(path)
            eventually(lambda: _acknowledged(path) > before + 20, "records are acknowledged again", 90)
            crew.stop(writers=True)
            followed = _has_followed(dsn, path)
            crew.stop(writers=False)
        finally:
            crew.kill()
    finish(plan)
    command = [sys.executable, "-m", "logstore.cli", "verify", "--dsn", dsn]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)
    return Report(
        chaos,
        time.monotonic() - began,
        nemesis.done,
        check(read_history(path)),
        "" if verified.returncode == 0 else verified.stdout + verified.stderr,
        followed,
    )


def _so_far(path: Path) -> list[Op]:
    return read_history(path) if path.exists() else []


def _acknowledged(path: Path) -> int:
    return path.read_bytes().count(b'{"type": "ok", "process": "sender')


def _has_followed(dsn: str, path: Path) -> bool:
    """Whether the reader that started first comes to the ends of all partitions."""
    with psycopg.connect(dsn) as connection:
        rows: list[Any] = connection.execute(
            "SELECT partition, high_watermark FROM logstore.partitions WHERE topic = 't'"
        ).fetchall()
    ends = {f"t-{partition}": end for partition, end in rows}

    def there() -> bool:
        reached = dict.fromkeys(ends, 0)
        for op in read_history(path):
            if op.process == "reader0":
                for partition, offset, _ in op.polled:
                    reached[partition] = offset + 1
        return reached == ends

    with suppress(AssertionError):
        eventually(there, "it is there", 60)
    return there()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break connections, backends, clients and the server.")
    parser.add_argument("--faults", type=int, default=Chaos.faults)
    parser.add_argument("--producers", type=int, default=Chaos.producers)
    parser.add_argument("--partitions", type=int, default=Chaos.partitions)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--keep", type=Path, help="where the history goes, to be looked at")
    options = parser.parse_args(arguments)
    chaos = Chaos(options.faults, options.producers, partitions=options.partitions, seed=options.seed)
    print(chaos, flush=True)
    with tempfile.TemporaryDirectory() as directory, embedded() as server:
        report = run(server, server.create(), chaos, options.keep or Path(directory) / "history.jsonl")
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
