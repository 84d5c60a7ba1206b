"""``logstore up``, ``down`` and ``status``: the embedded server, and how the log does wherever it is."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import assignments
from logstore.cli.failures import UNAVAILABLE, redact
from logstore.cli.output import human_count, print_json
from logstore.cli.root import Command, connection_options, output_option, settings

if TYPE_CHECKING:
    from logstore.embedded import ServerStatus

__all__ = ["down", "running_dsn", "status", "up"]


def running_dsn() -> str | None:
    """The embedded server's DSN if it runs; never starts it."""
    from logstore.embedded import status as embedded_status

    found = embedded_status()
    return found.dsn if found.running else None


@click.command(
    cls=Command,
    examples=("logstore up", "logstore up --setting shared_buffers=1GB"),
)
@click.option(
    "--setting",
    "server_settings",
    metavar="NAME=VALUE",
    multiple=True,
    callback=assignments,
    help="A PostgreSQL setting, if this command is the one that starts the server.  Repeatable.",
)
@output_option("text", "json")
@connection_options
def up(server_settings: dict[str, str]) -> None:
    """Run the embedded PostgreSQL in the foreground.

    Prints its DSN when it is ready and keeps it running until Ctrl-C.  Its data is in LOGSTORE_HOME, or
    the user's data directory, and stays there.  Every command and client without a DSN uses this server.
    """
    from logstore.embedded import run_in_foreground

    if settings().dsn:
        raise click.UsageError("`up` runs a server of its own: leave out --dsn.", click.get_current_context())

    def ready(found: ServerStatus) -> None:
        from logstore.embedded.dsn import open_log

        open_log(found, settings().schema)
        if settings().output == "json":
            print_json(_document(found))
        else:
            click.echo(f"PostgreSQL {found.version} is ready; its data is in {found.home}")
            click.echo()
            click.echo(f"  export LOGSTORE_DSN='{found.dsn}'")
            click.echo()
            click.echo("Ctrl-C stops it.")
        sys.stdout.flush()

    if server_settings and running_dsn() is not None:
        click.echo(
            "warning: the server runs already, so --setting has no effect; `logstore down` stops it", err=True
        )
    run_in_foreground(ready, settings=server_settings)
    click.echo("stopped", err=True)


@click.command(cls=Command, examples=("logstore down",))
@output_option("text", "json")
@connection_options
def down() -> None:
    """Stop the embedded PostgreSQL.

    Whoever uses it loses the connection; no acknowledged record is lost.
    """
    from logstore.embedded import down as stop

    if settings().dsn:
        raise click.UsageError(
            "`down` stops the embedded server: leave out --dsn.", click.get_current_context()
        )
    stopped = stop()
    if settings().output == "json":
        print_json({"stopped": stopped})
    else:
        click.echo("stopped" if stopped else "it was not running")


@click.command(cls=Command, examples=("logstore status", "logstore status --output json"))
@output_option("text", "json")
@connection_options
def status() -> None:
    """Show where the log is and how it does.

    Starts nothing.  Exits with 5 when the server does not run or does not answer.
    """
    dsn = settings().dsn or os.environ.get("LOGSTORE_DSN")
    document: dict[str, Any] = {"embedded": dsn is None, "running": True}
    if dsn is None:
        from logstore.embedded import status as embedded_status

        found = embedded_status()
        document |= _document(found)
        dsn = found.dsn if found.running else None
    else:
        document["dsn"] = redact(dsn)
    if dsn is not None:
        document |= _log(dsn)
    if settings().output == "json":
        print_json(document)
    else:
        _print_status(document)
    if not document["running"]:
        raise click.exceptions.Exit(UNAVAILABLE)


def _document(found: ServerStatus) -> dict[str, Any]:
    return {
        "running": found.running,
        "phase": found.phase,
        "dsn": found.dsn or None,
        "home": str(found.home),
        "server_version": found.version or None,
        "pid": found.postmaster_pid or None,
        "started_at": found.started_at_ms or None,
        "message": found.message or None,
    }


def _log(dsn: str) -> dict[str, Any]:
    from logstore import Admin

    began = time.perf_counter()
    with Admin(dsn, schema=settings().schema) as admin:
        from logstore.cli.extent import extents, partitions_of

        topics = admin.list_topics()
        reach = extents(admin, partitions_of(admin, topics)) if topics else []
    return {
        "schema": settings().schema,
        "answered_in_ms": round((time.perf_counter() - began) * 1000, 1),
        "topics": len(topics),
        "partitions": len(reach),
        "records": sum(extent.records for extent in reach),
    }


def _print_status(document: dict[str, Any]) -> None:
    lines: list[tuple[str, Any]] = []
    if document["embedded"]:
        lines.append(("embedded server", document["phase"]))
        if document["running"]:
            lines.append(("PostgreSQL", f"{document['server_version']}, process {document['pid']}"))
        lines.append(("data", document["home"]))
        if document["message"]:
            lines.append(("message", document["message"]))
    if document["running"]:
        lines += [
            ("DSN", document["dsn"]),
            ("schema", document["schema"]),
            ("topics", human_count(document["topics"])),
            ("partitions", human_count(document["partitions"])),
            ("records", human_count(document["records"])),
        ]
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        click.echo(f"{name:<{width}}{value}")
    if not document["running"]:
        click.echo("\nAny command starts it; `logstore up` keeps it running.")
