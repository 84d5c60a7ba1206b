"""The command that pages run behaves as the one that users start."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def run(command: Path, database: str, tmp_path: Path) -> list[str]:
    """What runs the rest of a command line, in an environment and a directory of its own."""
    settings = {"LOGSTORE_DSN": database, "LOGSTORE_HOME": str(tmp_path)}
    words = [f"{name}={text}" for name, text in settings.items()]
    return ["env", "-C", str(tmp_path), *words, str(command / "logstore")]


def test_streams_directory_and_exit_code_are_its_own(run: list[str], tmp_path: Path) -> None:
    subprocess.run([*run, "topic", "create", "orders"], check=True, capture_output=True)
    (tmp_path / "lines").write_text("one\nä\n")
    subprocess.run([*run, "produce", "orders"], check=True, capture_output=True, input=b"zero\n")
    subprocess.run([*run, "produce", "orders", "--file", "lines"], check=True, capture_output=True)
    got = subprocess.run([*run, "consume", "orders", "--from-beginning"], check=True, capture_output=True)
    assert got.stdout.decode() == "zero\none\nä\n"
    lost = subprocess.run([*run, "topic", "describe", "nothing"], check=False, capture_output=True)
    assert (lost.returncode, lost.stdout) == (3, b"")
    assert b"nothing" in lost.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_gets_the_signals_of_its_caller(run: list[str], number: int, code: int) -> None:
    subprocess.run([*run, "topic", "create", "orders"], check=True, capture_output=True)
    subprocess.run([*run, "produce", "orders"], check=True, capture_output=True, input=b"old\n")
    with subprocess.Popen(
        [*run, "consume", "orders", "--follow", "--from-beginning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"old\n"
        process.send_signal(number)
        assert process.stdout.read() == b""
    assert process.returncode == code
