"""A server whose write-ahead log is archived, and which is made again from a backup, in its own place."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from logstore import migrations
from logstore.cli.root import root
from logstore.embedded import EmbeddedServer, binaries
from logstore.embedded.server import Handle
from tests.support.programs import eventually
from tests.support.servers import SETTINGS, make_directory

__all__ = ["Archived", "archived", "command", "dump", "execute", "restore_dump", "verified"]

ARCHIVING: Final = "test ! -f {archive}/%f && cp %p {archive}/%f"


class Archived:
    """The server, its archive and its base backup.  A restore keeps the place, and so the DSN."""

    def __init__(self, programs: Path | None = None) -> None:
        """``programs``: PostgreSQL's, where it is not to be the newest."""
        self.programs = programs
        self.home = make_directory()
        self.archive = self.home / "archive"
        self.archive.mkdir()
        self.base = self.home / "base"
        self._settings = {
            **SETTINGS,
            "full_page_writes": "on",
            "archive_mode": "on",
            "archive_command": ARCHIVING.format(archive=self.archive),
        }
        self._server: EmbeddedServer
        self._handle: Handle
        self._start({})
        migrations.upgrade(self.dsn)

    @property
    def dsn(self) -> str:
        return self._handle.dsn

    @property
    def superuser_dsn(self) -> str:
        return self._handle.superuser_dsn

    @property
    def data(self) -> Path:
        return self.home / "data"

    def _start(self, settings: dict[str, str]) -> None:
        self._server = EmbeddedServer(
            self.home, {**self._settings, **settings}, idle_s=60, programs=self.programs
        )
        self._handle = self._server.start_or_join()

    def _stop(self) -> None:
        self._handle.close()
        self._server.stop()

    def back_up(self, into: Path | None = None) -> Path:
        """Make a base backup."""
        target = into or self.base
        program(self.superuser_dsn, "pg_basebackup", "--pgdata", target, "--checkpoint=fast", "--no-sync")
        return target

    def name(self, moment: str) -> None:
        """Give this moment a name, and let the archive have everything up to it."""
        execute(self.superuser_dsn, "SELECT pg_create_restore_point(%s)", moment)
        self.switch()

    def moment(self, by: str) -> dict[str, str]:
        """What :meth:`restore` needs to come back to now, ``by`` name, time or lsn."""
        if by == "name":
            self.name("good")
            return {"recovery_target_name": "good"}
        ((time, lsn),) = execute(
            self.superuser_dsn, "SELECT clock_timestamp()::text, pg_current_wal_insert_lsn()::text"
        )
        if by == "time":
            return {"recovery_target_time": time}
        # It is where the next record begins, which is of what comes later.
        return {"recovery_target_lsn": lsn, "recovery_target_inclusive": "off"}

    def switch(self) -> None:
        """Let the archive have everything there is."""
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            found = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert found is not None
        eventually((self.archive / found[0]).exists, "the archive has it")

    def restore(self, **target: str) -> None:
        """Make the server again: recovery_target_name, _time or _lsn; none: as far as the archive goes."""
        self._stop()
        shutil.rmtree(self.data)
        shutil.copytree(self.base, self.data)
        (self.data / "recovery.signal").touch()
        self._start(
            {
                "restore_command": f"cp {self.archive}/%f %p",
                "recovery_target_action": "promote",
                # Nobody is let in before it is there.
                "hot_standby": "off",
                **target,
            }
        )

    def copy_back(self, base: Path) -> None:
        """Make the server again from a backup alone, as from a snapshot of its disk: no new timeline."""
        self._stop()
        shutil.rmtree(self.data)
        shutil.copytree(base, self.data)
        self._start({})

    def restart(self) -> None:
        self._stop()
        self._start({})

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def archived(programs: Path | None = None) -> Iterator[Archived]:
    """A server of its own that archives, with a log in it."""
    made = Archived(programs)
    try:
        yield made
    finally:
        made.close()


def program(dsn: str, name: str, *arguments: object) -> None:
    """Run one of PostgreSQL's programs on the server that ``dsn`` names."""
    place = conninfo_to_dict(dsn)
    found = binaries.find()
    done = subprocess.run(
        [
            found.directory / name,
            *(f"--{option}={place[key]}" for option, key in (("host", "host"), ("port", "port"),
                                                             ("username", "user")) if place.get(key)),
            *map(str, arguments),
        ],
        check=False, capture_output=True, text=True, env=found.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def dump(dsn: str, file: Path, *options: str) -> None:
    """What the page on backups says: the whole database, which is more than the log's own schema."""
    name = conninfo_to_dict(dsn)["dbname"]
    program(dsn, "pg_dump", "--format=custom", "--file", file, "--dbname", name, *options)


def restore_dump(dsn: str, file: Path) -> None:
    """Into an empty database."""
    name = conninfo_to_dict(dsn)["dbname"]
    program(dsn, "pg_restore", "--exit-on-error", "--no-owner", "--dbname", name, file)


def command(dsn: str, *words: str) -> tuple[int, str]:
    """A command about the log: its exit code and what it prints."""
    done = CliRunner().invoke(root, [*words, "--dsn", dsn])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def verified(dsn: str) -> None:
    """`logstore verify` finds nothing."""
    code, printed = command(dsn, "verify")
    assert code == 0, printed


def execute(dsn: str, text: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """The rows that a statement answers, in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []
