"""Data directories that are made once a run, and copied by all its processes.

Making one takes a second of work, and copying one a tenth of that: there are ``initdb``, the migrations, and
cleaning the catalogs, of which each test's database is a copy.  The process that runs the tests calls
:func:`place` and so says where they are; programs that run by themselves find nothing, and make theirs as
users do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from logstore import migrations
from logstore.embedded import EmbeddedServer
from logstore.embedded.home import make_dsn

__all__ = ["TEMPLATE", "VARIABLE", "copied", "data_directory", "once", "place"]

VARIABLE: Final = "LOGSTORE_TEST_PREPARED"
TEMPLATE: Final = "logstore_template"
"""The database with an empty log in it, the embedded server's owner's."""


@contextlib.contextmanager
def place(directory: Path) -> Iterator[None]:
    """What this process and those that it starts prepare is in ``directory``, and gone afterwards."""
    # While it is held, nobody takes the directory for a leftover.
    with (directory / "supervisor.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(directory)
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            if before is not None:
                os.environ[VARIABLE] = before
            shutil.rmtree(directory, ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path | None:
    """The directory ``name``, which the first who asks has ``make`` fill; None: there is no place for it."""
    directory = Path(os.environ.get(VARIABLE, "/nowhere"))
    if not os.access(directory, os.W_OK):
        return None
    made, done = directory / name, directory / f"{name}.done"
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            made.mkdir()
            make(made)
            done.touch()
    return made


def copied(home: Path, settings: Mapping[str, str], programs: Path | None = None) -> bool:
    """Put a data directory into ``home``, and say whether there was one to copy."""
    source = data_directory(settings, programs)
    if source is None:
        return False
    subprocess.run(["cp", "-R", "-p", source, home / "data"], check=True)
    return True


def data_directory(settings: Mapping[str, str], programs: Path | None = None) -> Path | None:
    """The data directory of a stopped embedded server with database :data:`TEMPLATE`; None: make your own."""

    def make(home: Path) -> None:
        _prepare(EmbeddedServer(home, {**settings, "min_wal_size": "32MB"}, idle_s=60, programs=programs))

    home = once("embedded" if programs is None else "-".join(programs.parts[1:]), make)
    # It is elsewhere if the account that runs PostgreSQL for root does not reach this one.
    return home / "data" if home and (home / "data" / "PG_VERSION").exists() else None


def _prepare(server: EmbeddedServer) -> None:
    with server.start_or_join() as handle:
        with psycopg.connect(handle.dsn, autocommit=True) as owner:
            owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        sockets = handle.status.socket_directory
        migrations.upgrade(make_dsn(sockets, database=TEMPLATE))
        with psycopg.connect(make_dsn(sockets, "postgres", TEMPLATE), autocommit=True) as superuser:
            # Without what the migrations left in them they are fewer and smaller files.  The log's own tables
            # stay as the migrations made them: the planner takes those that were never cleaned for larger.
            catalogs = superuser.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace"
                " AND relkind = 'r' AND NOT relisshared"
            ).fetchall()
            for (name,) in catalogs:
                superuser.execute(sql.SQL("VACUUM (FULL) {}").format(sql.SQL(name)))
    server.stop()
    # Maps of free space and of visibility, which PostgreSQL does without: a sixth of the files.
    for pattern in ("*_fsm", "*_vm"):
        for file in server.home.path.glob(f"data/base/*/{pattern}"):
            file.unlink()
