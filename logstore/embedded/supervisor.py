"""The process that owns an embedded PostgreSQL: its parent, its restarter, the one that stops it.

Started by whoever needs the server first, it leaves that program's session at once and serves everybody.  It
stops the server

* when told to (SIGTERM, which is what `logstore down` sends),
* when nobody has held ``users.lock`` for a while: users hold it shared, so the kernel notices a user's death;
  whoever is connected without it, having been given the DSN, counts too,
* when its directory is removed.

It keeps a worker going beside the server (:mod:`logstore.embedded.attendant`).  It starts the server again
when the server dies, and if it dies itself, both stop: on Linux the kernel sees to the server, elsewhere a
second process, which waits for the end of a pipe that only the supervisor holds; the worker waits for one
everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from logstore.embedded.attendant import Attendant
from logstore.embedded.cluster import Cluster, rotate
from logstore.embedded.home import POLL_S, Home, Lock, Phase, ServerStatus, tail
from logstore.embedded.orders import Orders
from logstore.errors import EmbeddedServerError

__all__ = ["main"]

log = logging.getLogger("logstore.embedded.supervisor")

_TICK_S: Final = 1.0
_CRASHES: Final = 5
_CRASH_WINDOW_S: Final = 60.0


class _Told(Exception):
    """Told to stop."""


class Supervisor:
    """Runs until the server has been stopped.  Holds ``supervisor.lock``."""

    def __init__(self, orders: Orders, lock: Lock) -> None:
        self.orders = orders
        self.home = Home(Path(orders.home))
        self.cluster = Cluster(
            self.home, orders.settings, orders.namespaces, orders.programs, bind=orders.bind
        )
        self._lock = lock
        self._users = Lock(self.home.users)
        self._status = ServerStatus("starting", orders.home, supervisor_pid=os.getpid())
        self._told = False
        self._wake, self._waker = os.pipe()
        self._guard_pipe = -1
        self._last_user = time.time()
        self._crashes: list[float] = []
        self._attendant = Attendant(self.home) if orders.worker else None

    def run(self) -> int:
        """Start, watch, stop.  Returns the exit code."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        # The program that started us may have blocked signals for itself.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._say("starting")
        try:
            self.cluster.prepare()
            if self.orders.guard:
                self._start_guard()
            self._start("starting")
            self._watch()
        except _Told:
            pass
        except EmbeddedServerError as exc:
            log.error("%s", exc)
            self._stop()
            self._say("failed", message=exc.message, advice=exc.advice)
            return self._leave(1)
        except Exception as exc:
            log.exception("unexpected")
            self._stop()
            self._say(
                "failed",
                message=f"The supervisor failed: {exc!r}.",
                advice=f"See {self.home.supervisor_log}.",
            )
            return self._leave(1)
        self._say("stopping", deliberate=self._told)
        self._stop()
        self._say("stopped", deliberate=self._told)
        return self._leave(0)

    def _stop(self) -> None:
        if self._attendant is not None:
            self._attendant.stop()
        self.cluster.stop()

    def _leave(self, code: int) -> int:
        if self.orders.throw_away and code == 0 and self._at_home():
            self.cluster.remove()
        return code

    def _on_term(self, *_: object) -> None:
        self._told = True

    def _say(self, phase: Phase, **words: object) -> None:
        live = phase in ("ready", "recovering", "stopping")
        self._status = replace(
            self._status,
            phase=phase,
            postmaster_pid=self.cluster.postmaster_pid if live else 0,
            supervisor_pid=os.getpid() if phase not in ("stopped", "failed") else 0,
            **words,  # type: ignore[arg-type]
        )
        log.info("%s", phase)
        # Where the directory was removed, another one may be in its place, and another supervisor in that.
        if self._at_home():
            with contextlib.suppress(OSError):
                self.home.write_status(self._status)

    def _pause(self, timeout_s: float) -> None:
        """Wait for a signal, at most ``timeout_s``; raise if it was an order to stop."""
        select.select([self._wake], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._told:
            raise _Told

    def _start(self, phase: Phase) -> None:
        while not self._started(phase):
            self._count_crash()

    def _started(self, phase: Phase) -> bool:
        """Start PostgreSQL and wait until it can be used; False: it was killed before."""
        began = time.monotonic()
        while not self.cluster.start():
            self._say(phase, message="The previous server has not stopped yet.")
            waited = time.monotonic() - began
            if waited > self.orders.patience_s:
                self.cluster.evict()
            if waited > self.orders.patience_s + 30:
                raise self.cluster.occupied()
            self._pause(POLL_S * 5)
        self._tell_guard()
        self._say(phase, message="")
        while not self._furnished():
            if self.cluster.killed():
                return False
            if self.cluster.exited():
                raise self.cluster.failure()
            self._pause(POLL_S)
        self._say(
            "ready",
            dsn=self.cluster.dsn,
            superuser_dsn=self.cluster.superuser_dsn,
            data_directory=str(self.cluster.data),
            socket_directory=str(self.cluster.sockets),
            version=self.cluster.programs.version,
            started_at_ms=time.time_ns() // 1_000_000,
        )
        return True

    def _furnished(self) -> bool:
        """The server accepts connections and has what the log's owner needs."""
        if not self.cluster.ready():
            return False
        try:
            self.cluster.furnish()
        except psycopg.OperationalError as exc:
            if exc.sqlstate is not None and not exc.sqlstate.startswith("57"):
                raise
            # Killed at this very moment, it or one of its processes.
            log.warning("not furnished: %s", exc)
            return False
        return True

    def _watch(self) -> None:
        """Return when nobody uses the server any more; then ``users.lock`` is held."""
        while self._at_home():
            self._pause(_TICK_S)
            if self.cluster.exited():
                self._count_crash()
                self._start("recovering")
            rotate(self.home.server_log)
            if self._attendant is not None:
                self._attendant.mind(self.cluster.dsn)
            if self._unused():
                return

    def _count_crash(self) -> None:
        """PostgreSQL has died; raise if it did so too often."""
        now = time.monotonic()
        self._crashes = [when for when in self._crashes if now - when < _CRASH_WINDOW_S] + [now]
        log.warning("PostgreSQL died: %s", tail(self.home.server_log))
        if len(self._crashes) > _CRASHES:
            raise EmbeddedServerError(
                f"PostgreSQL died {len(self._crashes)} times within {_CRASH_WINDOW_S:.0f} s; its last "
                f"words were: {tail(self.home.server_log)}",
                advice=f"The whole log is {self.home.server_log}.",
            )

    def _at_home(self) -> bool:
        """The directory has not been removed (or replaced) under us."""
        try:
            return os.path.samestat(self.home.users.stat(), os.fstat(self._users.fileno()))
        except OSError:
            return False

    def _unused(self) -> bool:
        """Nobody holds ``users.lock`` and nobody has for ``idle_s``; then we keep it, and newcomers wait."""
        if not self._users.take():
            self._last_user = time.time()
            return False
        # Users touch the file when they come and go, so that the short-lived ones between two ticks count
        # too.
        self._last_user = max(self._last_user, os.fstat(self._users.fileno()).st_mtime)
        if time.time() - self._last_user >= self.orders.idle_s:
            if not self.cluster.connections():
                return True
            # Somebody was given the DSN.
            self._last_user = time.time()
        self._users.unlock()
        return False

    def _start_guard(self) -> None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(writing)
            self._lock.close()
            self._users.close()
            _guard(reading)
            os._exit(0)
        os.close(reading)
        self._guard_pipe = writing

    def _tell_guard(self) -> None:
        if self._guard_pipe >= 0:
            os.write(self._guard_pipe, f"{self.cluster.postmaster_pid}\n".encode())


def _guard(reading: int) -> None:
    """Read process numbers until the writer dies, then stop the last one."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said = b""
    while part := os.read(reading, 64):
        said = (said + part)[-64:]
    numbers = said.split()
    if numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(numbers[-1]), signal.SIGINT)


def main() -> int:
    """Take ``supervisor.lock`` and go on in the background; if it is taken, there is nothing to do."""
    orders = Orders.decode(sys.argv[1])
    home = Home(Path(orders.home))
    lock = Lock(home.supervisor)
    # Those who look whether a supervisor lives hold the lock for an instant.
    if not lock.wait(2.0):
        return 0
    home.status_file.unlink(missing_ok=True)
    if os.fork() != 0:
        # Nobody waits for the child: the program that started us gets no zombie.
        return 0
    rotate(home.supervisor_log)
    logging.basicConfig(format="%(asctime)s [%(process)d] %(message)s", level=logging.INFO)
    return Supervisor(orders, lock).run()


if __name__ == "__main__":
    sys.exit(main())
