"""The root of the command tree: global options, and commands that are imported only when they run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, TypeVar, cast

import click

__all__ = ["Command", "Group", "Settings", "connection_options", "output_option", "root", "settings"]

F = TypeVar("F", bound=Callable[..., Any])

COMMON: Final = frozenset({"--dsn", "--schema", "--debug", "--output", "--help"})
"""Options that every command has."""
NAMES: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(slots=True)
class Settings:
    """What the global options say."""

    dsn: str | None = None
    """libpq URI or key=value string; None: LOGSTORE_DSN, then the embedded server."""
    schema: str = "logstore"
    debug: bool = False
    output: str = "table"
    """``table`` for people; ``json`` (and, where it makes sense, ``csv``) for programs."""


def settings(context: click.Context | None = None) -> Settings:
    """The settings of the command that runs."""
    return (context or click.get_current_context()).ensure_object(Settings)


class Command(click.Command):
    """A command whose help ends with examples that can be copied."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs["context_settings"] = {**NAMES, **(kwargs.get("context_settings") or {})}
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


class Group(click.Group):
    """A group that knows the names and one-line helps of its commands and imports one when it is asked for.

    ``sections``: title -> command -> (``module:attribute`` below this package, one-line help).
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, tuple[str, str]]] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        kwargs["context_settings"] = {**NAMES, **(kwargs.get("context_settings") or {})}
        super().__init__(*args, **kwargs)
        self.sections = sections or {}
        self.examples = tuple(examples)

    @property
    def lazy(self) -> dict[str, tuple[str, str]]:
        return {name: entry for section in self.sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            found = getattr(importlib.import_module(f"logstore.cli.{module}"), attribute)
            return cast(click.Command, found)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.sections:
            super().format_commands(ctx, formatter)
            return
        width = max(map(len, self.lazy))
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in section.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """A command's own options first, those that every command has apart."""
    own: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    for parameter in command.get_params(ctx):
        line = parameter.get_help_record(ctx)
        # An argument says nothing that the usage above does not say.
        if line is not None and isinstance(parameter, click.Option):
            (common if COMMON.intersection(parameter.opts) else own).append(line)
    for title, lines in (("Options", own), ("Common options", common)):
        if lines:
            with formatter.section(title):
                formatter.write_dl(lines)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if not examples:
        return
    formatter.write_paragraph()
    formatter.write("Examples:\n" if len(examples) > 1 else "Example:\n")
    for example in examples:
        formatter.write(f"  {example}\n")


def connection_options(command: F) -> F:
    """``--dsn``, ``--schema`` and ``--debug``; after a command they win over the same before it."""
    for option in (
        click.option("--debug", is_flag=True, default=None, expose_value=False, callback=_keep,
                     help="Show the traceback of an error."),
        click.option("--schema", metavar="NAME", default=None, expose_value=False, callback=_keep,
                     help="Schema that holds the log.  [default: logstore]"),
        click.option("--dsn", metavar="DSN", default=None, expose_value=False, callback=_keep,
                     help="PostgreSQL to use.  [default: $LOGSTORE_DSN, else the embedded server]"),
    ):  # fmt: skip
        command = option(command)
    return command


def output_option(*formats: str) -> Callable[[F], F]:
    """``--output``: how the answer is printed; ``table`` first, unless said otherwise."""
    choices = formats or ("table", "json")
    return click.option(
        "-o", "--output", type=click.Choice(choices), default=None, expose_value=False, callback=_keep,
        help=f"How to print the answer.  [default: {choices[0]}]",
    )  # fmt: skip


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(settings(ctx), param.name, value)


@click.group(
    name="logstore",
    cls=Group,
    sections={
        "Records": {
            "produce": ("produce:produce", "Write records from a file or stdin to a topic."),
            "consume": ("consume:consume", "Print the records of a topic."),
            "topic": ("topic:topic", "Create, list, describe, alter and delete topics."),
            "latest": ("latest:latest", "Show the last record of KEY in a compacted topic."),
            "offsets": ("offsets:offsets", "Show where partitions begin and end, or the offset of a time."),
            "group": ("groups:group", "List, describe, reset and delete consumer groups."),
            "share": ("share:share", "List, describe, configure, reset and delete share groups."),
            "transaction": ("transactions:transaction", "List, describe and fence transactional producers."),
            "verify": ("verify:verify", "Check a log that is in use: is everything there, once, in order?"),
            "retention": ("retention:retention", "See what becomes of old records, and let them go now."),
            "delete-records": ("delete_records:delete_records", "Delete the oldest records of a topic."),
            "tier": ("tier:tier", "List, check and bring back segments that are kept as Parquet files."),
            "quota": ("quotas:quota", "Limit how many bytes a second clients produce and fetch."),
            "sql": ("sql:sql", "Query the log with SQL."),
        },
        "Server": {
            "up": ("server:up", "Run the embedded PostgreSQL in the foreground."),
            "down": ("server:down", "Stop the embedded PostgreSQL."),
            "status": ("server:status", "Show where the log is and how it does."),
            "replicas": (
                "replicas:replicas",
                "Show the servers that have a copy of the log, or should have.",
            ),
            "cluster": ("cluster:cluster", "Run a replicated log on this machine: etcd and a Patroni group."),
            "mirror": (
                "mirror:mirror",
                "Keep a copy of topics in another log, record for record, under the same offsets.",
            ),
            "worker": ("worker:worker", "Run the jobs that keep a log in order, and see what they come to."),
            "db": ("db:db", "Install, upgrade or downgrade the log's schema."),
        },
        "See for yourself": {
            "demo": ("demo:demo", "Run 10,000 real HTTP requests through the log and check every one."),
            "perf": ("perf:perf", "Measure throughput and latency."),
            "completion": ("completion:completion", "Print the completion script of a shell."),
        },
    },
    examples=(
        "logstore topic create orders --partitions 4",
        "echo 'alice:hello' | logstore produce orders --key-separator :",
        "logstore consume orders --from-beginning",
    ),
)
@click.version_option(version("logstore-pg"), prog_name="logstore", message="%(prog)s %(version)s")
@connection_options
def root() -> None:
    """A Kafka-like commit log whose broker is PostgreSQL.

    Without --dsn and without LOGSTORE_DSN it starts, or joins, a PostgreSQL of its own (see `logstore up`).
    """
