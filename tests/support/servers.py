"""Servers for tests: the embedded one, one that a DSN names, one in a container; databases on them."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from logstore import migrations
from logstore.embedded import EmbeddedServer
from tests.support import prepared

PREFIX: Final = "logstore-test-"
SETTINGS: Final = {
    # Tests do not crash the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "min_wal_size": "80MB",
    "max_prepared_transactions": "8",
}
YOUNG_S: Final = 600
"""A directory changed so recently may be about to get its server."""
MEMORY: Final = Path("/dev/shm")
PATIENCE_S: Final = 30
ROOM: Final = 4 << 30
"""Free bytes with which the file system in memory is used: databases are made ten times as fast there."""
_numbers = itertools.count(1)


@dataclass
class Server:
    """A server that databases can be made on."""

    dsn: str
    """Of a role that may create databases, and need not be a superuser; a URI."""
    superuser_dsn: str | None = None
    home: Path | None = None
    """Its directory, if it is an embedded one."""
    _template: str = field(default="", init=False)
    _filled: dict[Callable[[str], object], str] = field(default_factory=dict, init=False)
    """Names of databases to copy, by what has put something into them."""
    _sessions: dict[str, psycopg.Connection[TupleRow]] = field(default_factory=dict, init=False)
    """By DSN.  Kept: a third of the time that a database takes would go into connecting."""

    def database(self, name: str) -> str:
        """The DSN of database ``name``."""
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))

    def as_superuser(self, dsn: str) -> str:
        """The DSN of the same database for a superuser; only where there is a ``superuser_dsn``."""
        assert self.superuser_dsn is not None
        return urlunsplit(urlsplit(self.superuser_dsn)._replace(path=urlsplit(dsn).path))

    def create(self, *, migrated: bool = True, like: str = "template1") -> str:
        """Make a database, with the schema in it or a copy of database ``like``; answer its DSN."""
        if migrated and not self._template:
            template = f"logstore_template_{os.getpid()}"
            self._execute("DROP DATABASE IF EXISTS {}", template)
            self._execute("CREATE DATABASE {}", template)
            migrations.upgrade(self.database(template))
            self._template = template
        name = f"logstore_test_{os.getpid()}_{next(_numbers)}"
        # Copying files takes two checkpoints: half the time on servers of our own, where fsync is off.
        strategy = "FILE_COPY" if self.superuser_dsn else "WAL_LOG"
        source = self._template if migrated else like
        self._execute(f"CREATE DATABASE {{}} TEMPLATE {{}} STRATEGY {strategy}", name, source)
        return self.database(name)

    def take_template(self, name: str) -> None:
        """There is a database ``name`` with the schema in it already."""
        # The first connection after a start leaves a file that spares those to the copies half their time.
        psycopg.connect(self.database(name)).close()
        self._template = name

    def filled(self, fill: Callable[[str], object]) -> str:
        """The name of a database to copy, into which ``fill``, given its DSN, has put something, once."""
        if fill not in self._filled:
            dsn = self.create()
            fill(dsn)
            self._filled[fill] = urlsplit(dsn).path[1:]
        return self._filled[fill]

    def drop(self, dsn: str) -> None:
        """Remove a database and whoever is connected to it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                name = urlsplit(dsn).path[1:]
                self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name, by=self.superuser_dsn)
                return
            except psycopg.errors.InsufficientPrivilege:
                # An autovacuum worker is in it, which is a superuser's to stop; it ends by itself.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        for name in (self._template, *self._filled.values()):
            if name:
                self.drop(self.database(name))
        self.disconnect()

    def disconnect(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _execute(self, text: str, *names: str, by: str | None = None) -> None:
        dsn, statement = by or self.dsn, sql.SQL(text).format(*map(sql.Identifier, names))
        session = self._sessions.pop(dsn, None) or psycopg.connect(dsn, autocommit=True)
        try:
            session.execute(statement)
        except psycopg.OperationalError:
            # A test had the server end its sessions.
            if not session.closed:
                raise
            session = psycopg.connect(dsn, autocommit=True)
            session.execute(statement)
        finally:
            self._sessions[dsn] = session


@contextlib.contextmanager
def embedded(programs: Path | None = None, *, stranger: bool = False) -> Iterator[Server]:
    """A server of its own in a temporary directory, which is gone afterwards, however this process ends.

    Servers are copies of one cluster, and have its system identifier, unless they are to be strangers.
    """
    remove_leftovers()
    home = make_directory()
    ready_made = not stranger and prepared.copied(home, SETTINGS, programs)
    server = EmbeddedServer(home, SETTINGS, idle_s=1, throw_away=True, programs=programs)
    with server.start_or_join() as handle:
        made = Server(handle.dsn, handle.superuser_dsn, home)
        if ready_made:
            made.take_template(prepared.TEMPLATE)
        try:
            yield made
        finally:
            made.disconnect()
            server.stop()
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def named(dsn: str) -> Iterator[Server]:
    """The server that ``dsn`` names; only databases made here are touched."""
    server = Server(dsn)
    with contextlib.closing(server):
        yield server


@contextlib.contextmanager
def container(image: str) -> Iterator[Server]:
    """A PostgreSQL in a container, by testcontainers."""
    from testcontainers.community.postgres import PostgresContainer

    # In a process of its own: where no Docker answers, its client leaves a socket open.
    probe = [sys.executable, "-c", "import docker; docker.from_env().ping()"]
    answer = subprocess.run(probe, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no Docker answers: {answer.stderr.splitlines()[-1]}")
    # In memory: databases are made ten times as fast there.
    with PostgresContainer(image, driver=None).with_tmpfs_mount("/var/lib/postgresql") as postgres:
        superuser = postgres.get_connection_url()
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute(
                "CREATE ROLE logstore LOGIN CREATEDB CREATEROLE PASSWORD 'logstore' IN ROLE pg_monitor"
            )
        parts = urlsplit(superuser)
        owner = parts._replace(netloc=f"logstore:logstore@{parts.hostname}:{parts.port}", path="/postgres")
        made = Server(urlunsplit(owner), superuser)
        try:
            yield made
        finally:
            made.disconnect()


def make_directory() -> Path:
    """A directory for a server, in memory if there is room."""
    place = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))


def remove_leftovers() -> None:
    """Remove the directories of test servers whose supervisor was killed before it could do so."""
    places = {Path(tempfile.gettempdir()), MEMORY}
    for home in (home for place in places for home in place.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if time.time() - home.stat().st_mtime < YOUNG_S:
                continue
            # A server's, and that of a replicated group.
            for lock in (home / "supervisor.lock", home / "cluster" / "supervisor.lock"):
                with contextlib.suppress(FileNotFoundError), lock.open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)
