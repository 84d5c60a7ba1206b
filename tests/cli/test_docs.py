"""Every example of docs/cli.md and of every --help is executed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from logstore import Producer
from tests.cli.conftest import Cli
from tests.cli.test_help import commands
from tests.docs.snippets import EXECUTED, Story, blocks, same_output

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
NOT_RUN = {
    "logstore up": "runs until it is stopped",
    "logstore up --setting shared_buffers=1GB": "runs until it is stopped",
    "logstore worker run": "runs until it is stopped",
    "logstore worker run --dsn postgresql://localhost/app": "runs until it is stopped",
    "logstore worker run --log json --health-port 9108": "runs until it is stopped",
    "logstore worker status": "needs a worker; tests/cli/test_worker_commands.py runs it",
    "logstore worker status --output json": "needs a worker; tests/cli/test_worker_commands.py runs it",
    "logstore consume orders --follow --show timestamp,key": "runs until it is stopped",
    'eval "$(logstore completion zsh)"                      # in ~/.zshrc, after compinit': "is for zsh",
    "logstore group remove-member billing worker-3": "needs a member; tests/cli/test_groups.py runs it",
    "logstore demo": "tests/cli/test_demo.py runs it",
    "logstore demo --output json": "tests/cli/test_demo.py runs it",
}
EXAMPLES = list(
    dict.fromkeys(
        example
        for _, command in commands()
        for example in getattr(command, "examples", ())
        # What hurts a cluster is run by tests/cluster, and what needs a second log by tests/mirror.
        if example not in NOT_RUN and not example.startswith(("logstore cluster ", "logstore mirror "))
    )
)
# What removes the log comes last.
EXAMPLES.sort(
    key=lambda example: (
        "downgrade" in example,
        "topic erase" in example,
        "topic delete" in example,
        "group delete " in example,
        "share delete " in example,
    )
)


def environment(command: Path, dsn: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOGSTORE_", "PG"))}
    path = os.pathsep.join([str(command), str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "LOGSTORE_DSN": dsn, "LOGSTORE_HOME": str(home / "log"), "HOME": str(home)}


@pytest.mark.timeout(300)
@pytest.mark.long
def test_every_example_of_the_page_prints_what_the_page_says(
    database: str, command: Path, tmp_path: Path
) -> None:
    story = Story(PAGE, tmp_path, environment(command, database, tmp_path), database)
    executed = [
        block for block in blocks(PAGE.read_text()) if block.language in EXECUTED and not block.not_run
    ]
    assert len(executed) >= 15
    for block in executed:
        printed = story.run(block)
        if block.output is not None:
            assert same_output(block.output, printed), f"line {block.line} printed\n{printed}"


def test_the_page_shows_every_command(database: str) -> None:
    page = PAGE.read_text()
    for path, command in commands():
        if not isinstance(command, click.Group):
            assert f"logstore {' '.join(path)}" in page or f"`{path[-1]}`" in page, path


def test_the_examples_that_are_not_run_are_still_there() -> None:
    everything = {example for _, command in commands() for example in getattr(command, "examples", ())}
    assert NOT_RUN.keys() <= everything


@pytest.mark.timeout(300)
@pytest.mark.long
def test_every_example_of_a_help_runs(
    cli: Cli, command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("topic", "create", "orders", "--partitions", "3")
    for partition in range(3):
        cli("produce", "orders", "-p", str(partition), stdin="".join(f"{n}\n" for n in range(200)))
    cli("group", "reset-offsets", "billing", "--topic", "orders", "--to-earliest", "--execute")
    cli("topic", "create", "dlq.shipping")
    cli("topic", "create", "customers", "--config", "cleanup.policy=compact")
    cli("produce", "customers", "--key-separator", ":", stdin="alice:1\n")
    cli("share", "reset-offsets", "shipping", "--topic", "orders", "--to-latest", "--execute")
    with Producer(cli.dsn, transactional_id="payments-1") as producer:
        producer.init_transactions()
    Path("orders.jsonl").write_text('{"key": "alice", "value": "1"}\n')
    Path("report.sql").write_text("SELECT count(*) FROM records")
    Path(".config/fish/completions").mkdir(parents=True)
    for example in EXAMPLES:
        text = adapted(example)
        words = shlex.split(text, comments=True)
        if words[0] == "logstore" and not {"|", ">", ";"} & set(text):
            assert "error" not in cli(*words[1:]).err, example
            continue
        answer = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            env=environment(command, cli.dsn, tmp_path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, f"{example}\n{answer.stderr}"
        assert "error" not in answer.stderr, example


def adapted(example: str) -> str:
    """The example on the test's log: what it creates may be there, nobody can be asked, time is short."""
    if "topic create" in example:
        return f"{example} --if-not-exists"
    if "topic delete" in example:
        # Both of them delete the same topic.
        create = "logstore topic create orders --partitions 3 --if-not-exists"
        return f"{create}; {example.removesuffix(' --yes')} --yes"
    if "group delete" in example:
        # Both of them delete the same group.
        create = "logstore group reset-offsets billing --topic orders --to-latest --execute"
        return f"{create}; {example.removesuffix(' --yes')} --yes"
    if "share delete" in example:
        # Both of them delete the same group.
        create = "logstore share reset-offsets shipping --topic orders --to-latest --execute"
        return f"{create}; {example.removesuffix(' --yes')} --yes"
    if (
        "delete-records" in example
        or "transaction fence" in example
        or ("erase" in example and "--key" in example)
    ):
        return f"{example.removesuffix(' --yes')} --yes"
    if "perf" in example:
        return re.sub(r"--records \d+", "--records 300", example)
    return example.replace("--dsn postgresql://localhost/app", "")
