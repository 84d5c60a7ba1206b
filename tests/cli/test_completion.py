"""`logstore completion` and what shells ask of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).out
    assert f"_LOGSTORE_COMPLETE={shell}_complete" in script
    assert 'split ","' not in script  # a description may have commas
    if found := shutil.which(shell):
        checked = subprocess.run([found, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_a_usage_error(cli: Cli) -> None:
    assert "'bash', 'zsh', 'fish'" in cli("completion", "tcsh", code=2).err


def complete(words: str, dsn: str | None, home: Path) -> list[str]:
    """What bash would offer for the last word."""
    environment = {name: value for name, value in os.environ.items() if name != "LOGSTORE_DSN"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment |= {"_LOGSTORE_COMPLETE": "bash_complete", "LOGSTORE_HOME": str(home)}
    if dsn is not None:
        environment["LOGSTORE_DSN"] = dsn
    answer = subprocess.run(
        [sys.executable, "-m", "logstore.cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.stderr == ""
    return [line.partition(",")[2] for line in answer.stdout.splitlines() if line]


def test_commands_options_and_topics_are_completed(cli: Cli, database: str, tmp_path: Path) -> None:
    cli("topic", "create", "orders", "orders.audit", "payments")
    assert complete("logstore con", database, tmp_path) == ["consume"]
    assert complete("logstore topic de", database, tmp_path) == ["describe", "delete"]
    assert complete("logstore consume --from", database, tmp_path) == ["--from-beginning"]
    assert complete("logstore consume ord", database, tmp_path) == ["orders", "orders.audit"]
    assert complete(f"logstore consume --dsn {database} pay", None, tmp_path) == ["payments"]


def test_completing_never_starts_a_server_or_fails(tmp_path: Path) -> None:
    assert complete("logstore consume ord", None, tmp_path / "home") == []
    assert not (tmp_path / "home").exists()
    assert complete("logstore consume ord", "postgresql://127.0.0.1:1/x", tmp_path) == []
