"""The example with eight processes does what it says, on a smaller scale."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.programs import REPOSITORY

pytestmark = pytest.mark.long


def test_group_of_eight(database: str) -> None:
    command = [
        sys.executable,
        "examples/group_of_eight.py",
        "--dsn",
        database,
        "--seconds",
        "4",
        "--kills",
        "1",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10,000 requests sent, 10,000 read" in done.stdout
    assert "1 members killed; owned twice: never" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line[:9].strip().isdigit()]
    assert len(rows) == 16
    assert {letter for row in rows for letter in row[10:]} >= set("ABCDEFGH")
    assert any(line.split() == ["started", "I"] for line in done.stdout.splitlines())
