"""Runs the fenced blocks of a Markdown page.

A page is one story: its ``python`` blocks share a namespace (``await`` at the top level is allowed), its
``sh`` blocks a working directory, and all see the same log.  A ``text`` block that follows a ``python``,
``sh`` or ``sql`` block is what that block prints; in it ``…`` stands for anything, and runs of blanks, dashes
and box lines count as one.  Comments in the page say what is special::

    <!-- server: embedded -->        no DSN is given: the page's clients start the embedded server
    <!-- server: pgbouncer -->       the log is behind PgBouncer
    <!-- not run: reason -->         the next block is only looked at
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq.abc import PGresult

EXECUTED: Final = ("python", "sh", "sql")
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S
)
_COMMENT: Final = re.compile(r"<!-- (?P<name>server|not run): (?P<value>[^>]+?) -->")
_TIMEOUT_S: Final = 60


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int
    """The number of its first line in the page."""
    not_run: str | None
    """Why it is not executed."""
    output: str | None
    """What the page says that it prints."""


def blocks(text: str) -> list[Block]:
    """The page's blocks in order; what a block prints is part of it."""
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        between = text[end : match.start()]
        end = match.end()
        comments = {comment["name"]: comment["value"] for comment in _COMMENT.finditer(between)}
        body = _dedent(match["body"], len(match["indent"]))
        last = found[-1] if found else None
        is_output = match["language"] == "text" and "not run" not in comments
        if is_output and last and last.language in EXECUTED and last.output is None:
            found[-1] = Block(last.language, last.text, last.line, last.not_run, body)
            continue
        line = text.count("\n", 0, match.start("body")) + 1
        found.append(Block(match["language"], body, line, comments.get("not run"), None))
    return found


def kind_of_server(text: str) -> str:
    """``database``, ``embedded`` or ``pgbouncer``."""
    for comment in _COMMENT.finditer(text):
        if comment["name"] == "server":
            return comment["value"]
    return "database"


@dataclass
class Story:
    """A page being executed."""

    page: Path
    directory: Path
    """Where shell blocks run."""
    environment: dict[str, str]
    dsn: str | None
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> str:
        """Execute a block; what it printed."""
        if block.language == "python":
            return self._python(block)
        return self._shell(block) if block.language == "sh" else self._sql(block)

    def _python(self, block: Block) -> str:
        # The page's own line numbers, for tracebacks.
        source = "\n" * (block.line - 1) + block.text
        code = compile(
            source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        printed = io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.chdir(self.directory),
            _environment(self.environment),
        ):
            if code.co_flags & inspect.CO_COROUTINE:
                asyncio.run(eval(code, self.namespace))  # noqa: S307 (the page is ours)
            else:
                exec(code, self.namespace)  # noqa: S102 (the page is ours)
        return printed.getvalue()

    def _shell(self, block: Block) -> str:
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", block.text],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def _sql(self, block: Block) -> str:
        dsn = self.dsn
        if dsn is None:
            from logstore.embedded import EmbeddedServer

            dsn = EmbeddedServer(Path(self.environment["LOGSTORE_HOME"])).dsn
        printed = io.StringIO()
        with psycopg.connect(dsn, autocommit=True) as connection:
            cursor = connection.execute(block.text.encode())
            while True:
                if cursor.description and cursor.pgresult:
                    _print_table(printed, cursor.pgresult)
                if not cursor.nextset():
                    return printed.getvalue()


def same_output(promised: str, printed: str) -> bool:
    """What was printed is what the page shows, blanks and lines of tables aside."""
    pattern = ".*".join(map(re.escape, _plain(promised).split("…")))
    return re.fullmatch(pattern, _plain(printed), re.S) is not None


def _plain(text: str) -> str:
    return re.sub(r"[\s|+\-─━│┃┼╇┏┓┗┛┡┩└┘├┤┬┴╭╮╰╯]+", " ", text).strip()


def _print_table(printed: io.StringIO, result: PGresult) -> None:
    """The values as psql shows them; where columns end does not matter here."""
    columns = range(result.nfields)
    lines = [[result.fname(column) or b"" for column in columns]]
    lines += [[result.get_value(row, column) or b"" for column in columns] for row in range(result.ntuples)]
    printed.writelines(b"  ".join(line).decode() + "\n" for line in lines)


def _dedent(text: str, indent: int) -> str:
    return "\n".join(line[indent:] for line in text.split("\n"))


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
