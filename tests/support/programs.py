"""Python programs run beside a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

REPOSITORY: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 30.0


@contextlib.contextmanager
def program(
    text: str, *arguments: object, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run the Python program ``text``; killed at the end if it still runs then."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=REPOSITORY,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(stream: IO[str] | None) -> str:
    """The next line that a program prints."""
    assert stream is not None
    return stream.readline().strip()


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until ``condition`` holds; fail with ``what`` if it does not within ``patience_s``."""
    began = time.monotonic()
    deadline = began + patience_s
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"still not: {what}"
        # Looking may mean connecting: that is not to take the processor from what is waited for.
        time.sleep(min(max(0.005, 3 * (now - began)), 0.2))
        began = time.monotonic()


def lives(pid: int) -> bool:
    """Process ``pid`` runs: it is there and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def kill(pid: int) -> None:
    """kill -9."""
    assert pid > 0, "0 would be all processes of the tests"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
