"""The embedded server as its users see it: start or join it, hold it, stop it."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import logstore.errors
from logstore.embedded.home import Home, Lock, ServerStatus, tail, unusable, wait_until
from logstore.embedded.orders import Orders, worker_wanted
from logstore.errors import EmbeddedServerError

__all__ = ["EmbeddedServer", "Handle", "down", "run_in_foreground", "status"]

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 120.0
_DEATHS: Final = 3
_FULL_BYTES: Final = 1 << 20


class Handle:
    """A use of the embedded server: while one is open, in any process, the server is kept running.

    Dies with its process.  A process that was forked holds the server too, until it exits.
    """

    def __init__(self, server: EmbeddedServer, lock: Lock, status: ServerStatus) -> None:
        self._server = server
        self._lock = lock
        self.status = status

    @property
    def dsn(self) -> str:
        return self.status.dsn

    @property
    def superuser_dsn(self) -> str:
        return self.status.superuser_dsn

    def revive(self, *, timeout_s: float = START_TIMEOUT_S) -> ServerStatus:
        """Start the server again if it, or its supervisor, was killed.  For a client whose connection broke.

        Raises :class:`EmbeddedServerError` if it was stopped on purpose.
        """
        now = self._server.status()
        if now.phase == "stopped" and now.deliberate:
            raise EmbeddedServerError(
                f"The embedded server in {now.home} was stopped by `logstore down`.",
                advice="Make a new client to start it again.",
            )
        try:
            self.status = self._server.await_ready(timeout_s)
        except OSError as exc:
            raise unusable(self._server.home.path, exc) from exc
        return self.status

    def close(self) -> None:
        """Give the server up.  It stops some seconds later, if nobody else uses it."""
        if not self._lock.closed:
            self._lock.touch()
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EmbeddedServer:
    """A PostgreSQL of our own in a directory of the user's.

    ``home``: the directory; default ``LOGSTORE_HOME``, else the user's data directory.  ``settings``:
    PostgreSQL settings, used if this call is the one that starts the server.  ``idle_s``: seconds without
    users after which the server stops.  ``throw_away``: remove the directory when the server stops.
    ``programs``: the directory of PostgreSQL's programs; default: looked for.  ``namespaces``: use a user
    namespace for root.  Unless the environment says ``LOGSTORE_WORKER=off``, a worker runs beside the server.
    """

    def __init__(
        self,
        home: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        idle_s: float = 30.0,
        throw_away: bool = False,
        programs: Path | None = None,
        namespaces: bool = True,
    ) -> None:
        self.home = Home(home.absolute()) if home else Home.default()
        self._orders = Orders(
            str(self.home.path),
            dict(settings or {}),
            idle_s,
            throw_away=throw_away,
            programs=str(programs.absolute()) if programs else "",
            namespaces=namespaces,
            worker=worker_wanted(),
        )

    def start_or_join(self, *, timeout_s: float = START_TIMEOUT_S) -> Handle:
        """Start the server, or use the one that runs.  Any number of processes may call this at once.

        Raises :class:`EmbeddedServerError` with the reason when the server cannot be started within
        ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        self.home.create()
        users = Lock(self.home.users)
        try:
            if not users.wait(timeout_s, shared=True):
                raise self._too_slow(timeout_s)
            users.touch()
            return Handle(self, users, self.await_ready(deadline - time.monotonic()))
        except OSError as exc:
            users.close()
            raise unusable(self.home.path, exc) from exc
        except BaseException:
            users.close()
            raise

    def status(self) -> ServerStatus:
        return self.home.status()

    @property
    def dsn(self) -> str:
        """Where the server answers; raises :class:`EmbeddedServerError` if it does not run."""
        found = self.status()
        if not found.running:
            raise EmbeddedServerError(
                f"The embedded server in {self.home.path} does not run.",
                advice="Start it with `logstore up`.",
            )
        return found.dsn

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the server, whoever uses it; say whether there was one to stop."""
        stopped = False
        deadline = time.monotonic() + timeout_s
        while self.home.alive():
            pid = self.status().supervisor_pid
            if pid:
                stopped = True
                self._terminate(pid)
            if (
                not wait_until(lambda: not self.home.alive(), min(1.0, timeout_s))
                and time.monotonic() > deadline
            ):
                raise EmbeddedServerError(
                    f"The embedded server in {self.home.path} did not stop within {timeout_s:.0f} s.",
                    advice=f"See {self.home.server_log}.",
                )
        return stopped

    def await_ready(self, timeout_s: float) -> ServerStatus:
        """Start the server if nobody has, and wait until it accepts connections.

        For those who hold ``users.lock``.
        """
        if self.home.answers():
            return self.status()
        deadline = time.monotonic() + timeout_s
        with Lock(self.home.starting) as starting:
            if not starting.wait(timeout_s):
                raise self._too_slow(timeout_s)
            deaths = 0
            while True:
                if not self.home.alive():
                    # It may be killed while it starts; one that dies each time has no room to say why.
                    if deaths == _DEATHS:
                        raise self._silent()
                    # Somebody's `logstore down` is no death.
                    deaths += not self.status().deliberate
                    self._spawn()
                left = deadline - time.monotonic()
                if left <= 0 or not wait_until(self._settled, left):
                    raise self._too_slow(timeout_s)
                found = self.status()
                if found.phase == "ready" and self.home.answers():
                    return found
                if found.phase == "failed":
                    raise EmbeddedServerError(found.message, advice=found.advice)

    def _settled(self) -> bool:
        return self.home.answers() or self.status().phase == "failed" or not self.home.alive()

    def _silent(self) -> EmbeddedServerError:
        if shutil.disk_usage(self.home.path).free < _FULL_BYTES:
            return unusable(self.home.path, OSError(errno.ENOSPC, ""))
        return EmbeddedServerError(
            f"The supervisor died {_DEATHS} times without a word: {tail(self.home.supervisor_log)}",
            advice=f"The whole log is {self.home.supervisor_log}.",
        )

    def _spawn(self) -> None:
        env = dict(os.environ)
        if env.get("LOGSTORE_PG_BIN"):
            # The supervisor works elsewhere.
            env["LOGSTORE_PG_BIN"] = str(Path(env["LOGSTORE_PG_BIN"]).absolute())
        package_root = Path(logstore.errors.__file__).parents[1]
        if package_root.name not in ("site-packages", "dist-packages"):
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root), env.get("PYTHONPATH")]))
        try:
            with self.home.supervisor_log.open("ab") as log:
                result = subprocess.run(
                    [sys.executable, "-P", "-m", "logstore.embedded.supervisor", self._orders.encode()],
                    env=env,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    check=False,
                )
        except OSError as exc:
            raise EmbeddedServerError(f"The supervisor could not be started: {exc}.") from exc
        if result.returncode != 0:
            raise EmbeddedServerError(
                f"The supervisor could not be started: {tail(self.home.supervisor_log)}",
                advice=f"The whole log is {self.home.supervisor_log}.",
            )

    def _terminate(self, pid: int) -> None:
        if sys.platform != "linux":
            os.kill(pid, signal.SIGTERM)
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if command == [b""]:
                # It ends just now: its locks go a moment after its memory.
                return
            # Seen from another container the number is somebody else's.
            if b"logstore.embedded.supervisor" not in command:
                raise EmbeddedServerError(
                    f"The embedded server in {self.home.path} was started in another container.",
                    advice="Stop it there.",
                )
            # The supervisor still lives, and the descriptor means it even if it dies now and its number is
            # reused.
            if self.home.alive():
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        except (ProcessLookupError, FileNotFoundError):
            pass
        finally:
            os.close(descriptor)

    def _too_slow(self, timeout_s: float) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"The embedded server in {self.home.path} was not ready within {timeout_s:.0f} s "
            f"(it is {self.status().phase}).",
            advice=f"See {self.home.server_log} and {self.home.supervisor_log}.",
        )


def run_in_foreground(
    on_ready: Callable[[ServerStatus], None],
    home: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """`logstore up`: start or join the server, call ``on_ready``, wait for Ctrl-C or SIGTERM, stop the
    server.

    Returns too when somebody else stops it.  A server that is killed is started again; raises
    :class:`EmbeddedServerError` when it cannot be.  Main thread only.
    """
    server = EmbeddedServer(home, settings)
    with server.start_or_join() as handle:
        # No event: a handler that sets one while the main thread is about to wait for it waits for ever.
        reading, writing = os.pipe()

        def tell(_number: int, _frame: FrameType | None) -> None:
            os.write(writing, b"x")

        before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            on_ready(handle.status)
            while not select.select([reading], [], [], 0.5)[0]:
                found = server.status()
                if found.phase == "failed":
                    raise EmbeddedServerError(found.message, advice=found.advice)
                if found.phase == "stopped" and found.deliberate:
                    return
                if found.phase == "stopped":
                    handle.revive()
            server.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writing)
            os.close(reading)


def down(home: Path | None = None) -> bool:
    """`logstore down`: stop the server, whoever uses it; say whether there was one to stop."""
    return EmbeddedServer(home).stop()


def status(home: Path | None = None) -> ServerStatus:
    """`logstore status`: what runs, where, and what it last said."""
    return EmbeddedServer(home).status()
