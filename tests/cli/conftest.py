"""Runs commands as `logstore` would, here or, where signals and pipes matter, in a process of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from logstore.cli.failures import guarded
from logstore.cli.root import root


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Stream(io.TextIOWrapper):
    """A standard input with something in it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


class Keyboard(Stream):
    """A standard input at which somebody sits."""

    def isatty(self) -> bool:
        return True


class Cli:
    """`cli("topic", "list")` runs a command on the test's database and checks its exit code."""

    def __init__(
        self, dsn: str, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.dsn = dsn
        self._capture = capture
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("LOGSTORE_DSN", dsn)
        monkeypatch.setenv("LOGSTORE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *argv: str, stdin: bytes | str = b"", code: int = 0, tty: bool = False) -> Answer:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._capture.readouterr()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Keyboard(data) if tty else Stream(data))
            got = guarded(root, argv)
        out, err = self._capture.readouterr()
        assert got == code, f"{argv} exited with {got}\n{out}\n{err}"
        assert "Traceback" not in err
        return Answer(got, out, err)

    def json(self, *argv: str, stdin: bytes | str = b"", code: int = 0) -> Any:
        return json.loads(self(*argv, "--output", "json", stdin=stdin, code=code).out)

    def values(self, topic: str, *options: str) -> list[str]:
        return sorted(self("consume", topic, "--from-beginning", *options).lines)


@pytest.fixture
def cli(
    database: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Cli:
    return Cli(database, capfd, monkeypatch, tmp_path)


class Process(subprocess.Popen[str]):
    """A `logstore` of its own, whose output is read a line at a time."""

    out: IO[str]
    err: IO[str]

    def __init__(self, argv: Sequence[str], dsn: str, *, stdin: int = subprocess.PIPE) -> None:
        super().__init__(
            [sys.executable, "-m", "logstore.cli", *argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOGSTORE_DSN": dsn, "COLUMNS": "200"},
        )
        assert self.stdout is not None and self.stderr is not None
        self.out, self.err = self.stdout, self.stderr


@pytest.fixture
def start(database: str) -> Iterator[Any]:
    """`start("consume", "orders", "--follow")` -> Process; ended with the test, whatever happens."""
    started: list[Process] = []

    def run(*argv: str, stdin: int = subprocess.PIPE) -> Process:
        started.append(Process(argv, database, stdin=stdin))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()
