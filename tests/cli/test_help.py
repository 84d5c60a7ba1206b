"""Every command explains itself, quickly."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from logstore.cli.root import Command, Group, root


def commands(
    group: click.Group = root, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below ``group``."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = [pytest.param(path, command, id=" ".join(path)) for path, command in commands()]
EXPECTED = {
    "quota set", "quota list", "quota remove",
    "topic create", "topic list", "topic describe", "topic alter", "topic add-partitions",
    "topic delete", "topic erase", "latest",
    "group list", "group describe", "group lag", "group reset-offsets", "group delete",
    "group delete-offsets", "group remove-member", "produce", "consume", "offsets", "delete-records",
    "sql", "perf produce", "perf consume", "perf e2e", "share list", "share describe", "share alter",
    "share reset-offsets", "share delete-offsets", "share delete", "db upgrade", "db status",
    "db downgrade", "db recovered", "transaction list",
    "cluster up", "cluster status", "cluster kill", "cluster switchover", "cluster down",
    "retention show", "retention run", "mirror run", "mirror status", "mirror promote",
    "tier list", "tier verify", "tier restore", "tier run", "tier location",
    "transaction describe", "transaction fence", "worker run", "worker jobs", "worker status", "verify",
    "up", "down", "status", "replicas", "demo", "completion",
}  # fmt: skip


def test_the_commands_that_are_promised_are_there() -> None:
    assert {
        " ".join(path) for path, command in commands() if not isinstance(command, click.Group)
    } == EXPECTED


@pytest.mark.parametrize(("path", "command"), ALL)
def test_help_ends_with_an_example_of_this_command(path: tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, Command | Group)
    assert command.examples
    with click.Context(command, info_name="logstore " + " ".join(path)) as context:
        text = command.get_help(context)
    for example in command.examples:
        assert f"logstore {' '.join(path)}" in example
        assert f"  {example}\n" in text + "\n"
        shlex.split(example, comments=True)
    arguments = [each.make_metavar(context) for each in command.params if isinstance(each, click.Argument)]
    assert not {line.strip() for line in text.splitlines()}.intersection(arguments)


@pytest.mark.parametrize(("path", "command"), ALL)
def test_help_fits_a_terminal(path: tuple[str, ...], command: click.Command) -> None:
    with click.Context(command, info_name="logstore", terminal_width=80, max_content_width=80) as context:
        lines = command.get_help(context).splitlines()
    too_long = [
        line for line in lines if len(line) > 80 and line.strip() not in getattr(command, "examples", ())
    ]
    assert not too_long


def test_the_short_helps_of_the_root_are_those_of_its_commands() -> None:
    context = click.Context(root)
    for name, (_, text) in root.lazy.items():
        command = root.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == text


def test_help_imports_neither_clients_nor_drivers() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['logstore', '--help']\n"
        "import logstore.cli\n"
        "try:\n"
        "    logstore.cli.main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'psycopg', 'asyncpg', 'sqlalchemy', 'alembic', 'rich', 'asyncio'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stderr.strip() == "[]"
    assert "Usage: logstore" in answer.stdout
