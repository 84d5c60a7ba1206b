"""How long a job stays with a worker that is gone, over many blows.

``python -m tests.support.worker_takeover`` keeps three worker processes on a log with a job that never ends,
and strikes the one that runs it, again and again: kill -9, SIGSTOP, SIGTERM, or kill -9 of the server under
all of them.  Each time another worker has to run the job within ten seconds (of its return, if it was the
server), and whoever was stopped has to find, when it goes on, that the job is not its any more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from typing import Final

import psycopg

from tests.support.producer_chaos import kill_server
from tests.support.programs import REPOSITORY, eventually
from tests.support.servers import Server, embedded

WORKERS: Final = 3
LONGEST_S: Final = 10.0
ENDLESS: Final = """
    CREATE OR REPLACE FUNCTION logstore.measure_topics(after_topic int4, at_most int4 DEFAULT 50)
    RETURNS TABLE (last_topic int4, topics int4, records int8, bytes int8) LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_sleep(3600); END $$
"""
RUNS: Final = """
    SELECT w.pid FROM logstore.worker_jobs j JOIN logstore.workers w USING (worker) WHERE j.state = 'running'
"""


class Takeover:
    """The workers on one log, and what becomes of them."""

    def __init__(self, server: Server, dsn: str) -> None:
        self._server = server
        self._dsn = dsn
        self.workers: dict[int, subprocess.Popen[bytes]] = {}

    def hire(self) -> None:
        """There are as many workers as there should be."""
        while len(self.workers) < WORKERS:
            command = [
                "worker",
                "run",
                "--dsn",
                self._dsn,
                "--only",
                "statistics",
                "--every",
                "statistics=1s",
            ]
            process = subprocess.Popen(
                [sys.executable, "-m", "logstore.cli", *command, "--grace", "0.5"],
                stderr=subprocess.DEVNULL,
                cwd=REPOSITORY,
            )
            self.workers[process.pid] = process
        eventually(lambda: self.known() == set(self.workers), "all workers are there")

    def known(self) -> set[int]:
        try:
            with psycopg.connect(self._dsn) as connection:
                return {row[0] for row in connection.execute("SELECT pid FROM logstore.workers")}
        except psycopg.OperationalError:
            return set()

    def running(self) -> int | None:
        """The process that runs the job."""
        try:
            with psycopg.connect(self._dsn) as connection:
                row = connection.execute(RUNS.encode()).fetchone()
        except psycopg.OperationalError:
            return None
        return None if row is None else row[0]

    def strike(self, blow: str) -> float:
        """Strike, and answer after how many seconds another worker, or with the server any, runs the job."""
        eventually(lambda: self.running() in self.workers, "somebody runs the job")
        struck = self.running()
        assert struck is not None
        if blow == "server":
            kill_server(self._server)
            began = time.monotonic()
            eventually(lambda: self.running() is not None, "somebody runs the job")
            return time.monotonic() - began
        began = time.monotonic()
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[blow]
        os.kill(struck, number)
        eventually(lambda: self.running() not in (None, struck), f"another worker runs the job after {blow}")
        elapsed = time.monotonic() - began
        if blow == "stop":
            os.kill(struck, signal.SIGCONT)
            eventually(lambda: struck in self.known(), "the one that was stopped goes on")
            assert self.running() != struck, "it took the job back"
        else:
            code = self.workers.pop(struck).wait(30)
            assert blow == "kill" or code == 0, f"told to end, it ended with {code}"
        return elapsed

    def dismiss(self) -> None:
        for process in self.workers.values():
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Strike workers, and see how soon they are replaced.")
    parser.add_argument("--blows", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    choose = random.Random(seed)
    print(f"seed {seed}", flush=True)
    found: dict[str, list[float]] = {}
    with embedded() as server:
        dsn = server.create()
        with psycopg.connect(dsn) as connection:
            connection.execute(ENDLESS.encode())
        with contextlib.ExitStack() as stack:
            takeover = Takeover(server, dsn)
            stack.callback(takeover.dismiss)
            for _ in range(options.blows):
                takeover.hire()
                blow = choose.choice(["kill", "stop", "term", "server"])
                found.setdefault(blow, []).append(takeover.strike(blow))
    for blow, times in sorted(found.items()):
        times.sort()
        print(f"{blow}: {len(times)} times, median {times[len(times) // 2]:.1f} s, at most {times[-1]:.1f} s")
    late = [elapsed for times in found.values() for elapsed in times if elapsed > LONGEST_S]
    print("too late" if late else f"always replaced within {LONGEST_S:.0f} s")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
