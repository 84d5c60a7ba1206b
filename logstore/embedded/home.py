"""The embedded server's directory, its locks and what is written about its state.

::

    <home>/data/            PostgreSQL's data directory (elsewhere for root where a user namespace is refused)
    <home>/run/             the socket (elsewhere when this path is too long for one)
    <home>/users.lock       shared: somebody uses the server;   exclusive: it stops, because nobody does
    <home>/starting.lock    exclusive: somebody starts the supervisor
    <home>/supervisor.lock  exclusive: the supervisor lives
    <home>/postgres.lock    exclusive: some process of PostgreSQL lives (all inherit the descriptor)
    <home>/status.json      what the supervisor last said of itself
    <home>/logs.json        the schemas that have a log, for the worker that the supervisor runs
    <home>/server.log       PostgreSQL's log;   supervisor.log, worker.log: the supervisor's, the worker's

Every lock is an ``flock``: the kernel lets go of it when its last holder dies, however it dies, so nothing
has to be inferred from process numbers, which are used again.  Users give a lock back by closing its file
only: unlocking would also unlock it for a process that was forked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import quote

import platformdirs

from logstore.errors import EmbeddedServerError

__all__ = [
    "DATABASE",
    "OWNER",
    "SUPERUSER",
    "WORKER",
    "Home",
    "Lock",
    "Phase",
    "ServerStatus",
    "make_dsn",
    "tail",
    "unusable",
    "wait_until",
]

SUPERUSER: Final = "postgres"
OWNER: Final = "logstore"
DATABASE: Final = "logstore"
WORKER: Final = "logstore embedded worker"
"""The application name of the connections that the server's own worker has."""
POLL_S: Final = 0.02

Phase = Literal["stopped", "starting", "ready", "recovering", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The embedded server, as its supervisor last described it."""

    phase: Phase
    home: str
    dsn: str = ""
    """As the log's owner, who is no superuser."""
    superuser_dsn: str = ""
    data_directory: str = ""
    socket_directory: str = ""
    version: str = ""
    """PostgreSQL's, such as ``18.6``."""
    supervisor_pid: int = 0
    postmaster_pid: int = 0
    started_at_ms: int = 0
    """Milliseconds since the epoch; 0 when it does not run."""
    message: str = ""
    advice: str = ""
    deliberate: bool = False
    """It was stopped by `logstore down` (or Ctrl-C in `logstore up`), not for want of users."""

    @property
    def running(self) -> bool:
        return self.phase == "ready"


class Lock:
    """An ``flock`` on a file of its own."""

    def __init__(self, path: Path, *, inheritable: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | (0 if inheritable else os.O_CLOEXEC), 0o600)
        os.set_inheritable(self._fd, inheritable)

    def fileno(self) -> int:
        return self._fd

    def take(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody is in the way; say whether it was taken."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def wait(self, timeout_s: float, *, shared: bool = False) -> bool:
        """Take the lock within ``timeout_s``; say whether it was taken.  Ctrl-C interrupts."""
        return wait_until(lambda: self.take(shared=shared), timeout_s)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def unlock(self) -> None:
        """Give the lock back, and keep the file: for those who share it with no other process."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def touch(self) -> None:
        """Note on the file that somebody came or went."""
        os.utime(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask ``condition`` every 20 ms until it holds or ``timeout_s`` have passed; say whether it held."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def make_dsn(socket_directory: str, user: str = OWNER, database: str = DATABASE) -> str:
    return f"postgresql://{user}@/{database}?host={quote(socket_directory, safe='/')}&port=5432"


@dataclass(frozen=True)
class Home:
    """The directory that an embedded server lives in."""

    path: Path
    users: Path = field(init=False)
    starting: Path = field(init=False)
    supervisor: Path = field(init=False)
    postgres: Path = field(init=False)
    status_file: Path = field(init=False)
    server_log: Path = field(init=False)
    supervisor_log: Path = field(init=False)
    worker_log: Path = field(init=False)
    logs_file: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, file in {
            "users": "users.lock",
            "starting": "starting.lock",
            "supervisor": "supervisor.lock",
            "postgres": "postgres.lock",
            "status_file": "status.json",
            "server_log": "server.log",
            "supervisor_log": "supervisor.log",
            "worker_log": "worker.log",
            "logs_file": "logs.json",
        }.items():
            object.__setattr__(self, name, self.path / file)

    @classmethod
    def default(cls) -> Home:
        """``LOGSTORE_HOME``, else the user's data directory."""
        chosen = os.environ.get("LOGSTORE_HOME")
        if not chosen:
            return cls(Path(platformdirs.user_data_dir("logstore")))
        try:
            return cls(Path(chosen).expanduser().absolute())
        except RuntimeError as exc:
            raise EmbeddedServerError(
                f"LOGSTORE_HOME is {chosen}, and there is no such user.",
                advice="Set it to a directory you may write to, or give a DSN.",
            ) from exc

    def create(self) -> None:
        """Make the directory, or raise :class:`EmbeddedServerError` saying why it cannot be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Lock(self.users):
                pass
        except OSError as exc:
            raise unusable(self.path, exc) from exc

    def alive(self) -> bool:
        """A supervisor lives.

        (Asking holds its lock for an instant; a supervisor that starts allows for that.)
        """
        if not self.supervisor.exists():
            return False
        with Lock(self.supervisor) as lock:
            return not lock.take(shared=True)

    def status(self) -> ServerStatus:
        """What the supervisor last said; ``stopped`` if it died without a word."""
        try:
            known = {field.name for field in fields(ServerStatus)}
            words = json.loads(self.status_file.read_text())
            # Another release may say more, or less.
            said = ServerStatus(**{name: word for name, word in words.items() if name in known})
        except (FileNotFoundError, NotADirectoryError):
            return ServerStatus("stopped", str(self.path))
        except (ValueError, TypeError, AttributeError):
            said = ServerStatus("starting", str(self.path))
        except OSError as exc:
            raise unusable(self.path, exc) from exc
        if said.phase in ("stopped", "failed") or self.alive():
            return said
        return replace(said, phase="stopped", supervisor_pid=0, postmaster_pid=0, started_at_ms=0)

    def answers(self) -> bool:
        """The server accepts connections: its supervisor says so, and its socket too."""
        found = self.status()
        if found.phase != "ready":
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(f"{found.socket_directory}/.s.PGSQL.5432")
            except OSError:
                return False
        return True

    def logs(self) -> list[str]:
        """The schemas that have a log, as far as they were noted here."""
        try:
            found = json.loads(self.logs_file.read_text())
        except (OSError, ValueError):
            return []
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    def note_log(self, schema: str) -> None:
        """Note that there is a log in ``schema``, for the worker that the supervisor runs."""
        known = self.logs()
        if schema not in known:
            draft = self.logs_file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            # If somebody notes another one at the same time, the one that is lost is noted by its next user.
            with contextlib.suppress(OSError):
                draft.write_text(json.dumps(sorted([*known, schema])) + "\n")
                draft.replace(self.logs_file)

    def write_status(self, status: ServerStatus) -> None:
        draft = self.status_file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(status), indent=1) + "\n")
        draft.replace(self.status_file)


def unusable(path: Path, exc: OSError) -> EmbeddedServerError:
    """The typed error for a directory that cannot be read or written."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return EmbeddedServerError(
            f"The disk of the embedded server's directory {path} is full.",
            advice="Free some space, or set LOGSTORE_HOME to a directory on another disk.",
        )
    return EmbeddedServerError(
        f"The embedded server's directory {path} cannot be used: {exc.strerror or exc}.",
        advice="Set LOGSTORE_HOME to a directory you may write to, or give a DSN.",
    )


def tail(log: Path, lines: int = 4) -> str:
    """The last lines of a log, as one."""
    try:
        return " / ".join(log.read_text(errors="replace").splitlines()[-lines:]) or "(none)"
    except OSError:
        return "(no log)"
