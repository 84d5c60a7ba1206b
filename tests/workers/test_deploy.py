"""What is in ``deploy`` fits the command line, the repository and systemd."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from logstore.cli.worker import run
from tests.support.programs import REPOSITORY

UNIT = REPOSITORY / "deploy" / "logstore-worker.service"
CONTAINER = REPOSITORY / "deploy" / "Containerfile"


def options(words: list[str]) -> dict[str, object]:
    """What ``logstore worker run`` makes of a command line."""
    assert [Path(word).name for word in words[:1]] == ["logstore"]
    assert words[1:3] == ["worker", "run"]
    with run.make_context("run", words[3:]) as context:
        return context.params


def test_the_unit_starts_a_worker() -> None:
    (command,) = re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.M)
    assert options(shlex.split(command))["health_port"] == "127.0.0.1:9108"


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = UNIT.read_text().replace(
        "/opt/logstore/bin/logstore", str(Path(sys.executable).parent / "logstore")
    )
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    answer = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_container_starts_a_worker_that_is_not_root() -> None:
    text = CONTAINER.read_text()
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.M)
    assert options(json.loads(entrypoint))["health_port"] == "0.0.0.0:9108"
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.M)
    assert int(user) > 0
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for name in line.split():
            assert (REPOSITORY / name).exists(), name
