"""``logstore db``: the log's schema in a database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from logstore.cli.arguments import confirm, yes_option
from logstore.cli.failures import SCHEMA
from logstore.cli.output import counted, print_json
from logstore.cli.root import Group, connection_options, output_option, settings

__all__ = ["db"]


@click.group(
    cls=Group, examples=("logstore db upgrade --dsn postgresql://localhost/app", "logstore db status")
)
@connection_options
def db() -> None:
    """Install, upgrade or downgrade the log's schema."""


@db.command(
    examples=(
        "logstore db upgrade",
        "logstore db upgrade --dsn postgresql://localhost/app --schema orders_log",
    )
)
@click.option("--revision", default="head", show_default=True, help="Stop at this revision.")
@output_option("text", "json")
@connection_options
def upgrade(revision: str) -> None:
    """Install the log's schema, or bring it up to this version.

    Safe to run again, and from several places at once.  Needs the right to create schemas in the
    database; not superuser.
    """
    from logstore import migrations

    with _target() as dsn:
        migrations.upgrade(dsn, settings().schema, revision)
        _show(dsn)


@db.command(examples=("logstore db status", "logstore db status --output json"))
@click.option("--check", is_flag=True, help=f"Exit with {SCHEMA} unless the schema is current.")
@output_option("text", "json")
@connection_options
def status(check: bool) -> None:
    """Show which version of the schema is installed."""
    with _target() as dsn:
        current = _show(dsn)
    if check and not current:
        raise click.exceptions.Exit(SCHEMA)


@db.command(examples=("logstore db downgrade --revision base --yes",))
@click.option(
    "--revision", required=True, help="Go back to this revision; base removes the log with every record."
)
@yes_option
@output_option("text", "json")
@connection_options
def downgrade(revision: str, yes: bool) -> None:
    """Go back to an earlier version of the schema."""
    from logstore import migrations

    what = "Remove the log with every record in it" if revision == "base" else f"Downgrade to {revision}"
    confirm(f"{what} (schema {settings().schema})?", yes=yes)
    with _target() as dsn:
        migrations.downgrade(dsn, settings().schema, revision)
        _show(dsn)


@db.command(examples=("logstore db recovered",))
@output_option("text", "json")
@connection_options
def recovered() -> None:
    """Say that the log was restored: from a backup, to a point in time, out of a dump.

    To be run once, before anybody writes.  Every partition goes on under a leader epoch that nobody has
    seen, and whoever held a transactional id is fenced.  Does no harm when it is run again.
    """
    from logstore.workers.connections import Limits, opened

    # It may have to look at every batch, and everything waits for it.
    limits = Limits(statement_timeout_ms=0, lock_timeout_ms=10_000)
    with _target() as dsn, opened(dsn, settings().schema, "db recovered", limits) as connection:
        partitions, producers = connection.rows("SELECT partitions, producers FROM {}.recovered()")[0]
    if settings().output == "json":
        print_json({"schema": settings().schema, "partitions": partitions, "transactional_ids": producers})
        return
    click.echo(
        f"{counted(partitions, 'partition')} under newer leader epochs, "
        f"{counted(producers, 'transactional id')} fenced"
    )


@contextmanager
def _target() -> Iterator[str]:
    """The DSN; an embedded server is started or joined, but its schema is left as it is."""
    given = settings().dsn or os.environ.get("LOGSTORE_DSN")
    if given:
        yield given
        return
    from logstore.embedded.server import EmbeddedServer

    with EmbeddedServer().start_or_join() as handle:
        yield handle.dsn


def _show(dsn: str) -> bool:
    """Prints the state; True if nothing needs doing."""
    from logstore import migrations

    state = migrations.status(dsn, settings().schema)
    current = state.up_to_date
    if settings().output == "json":
        document: dict[str, Any] = {
            "schema": settings().schema,
            "revision": state.current,
            "head": state.head,
            "functions_current": state.functions_current,
            "is_current": current,
        }
        print_json(document)
        return current
    if state.current is None:
        click.echo(f"schema {settings().schema}: not installed; `logstore db upgrade` installs {state.head}")
    elif current:
        click.echo(f"schema {settings().schema}: {state.current}, current")
    else:
        stale = "" if state.functions_current else "; its functions are of another version"
        click.echo(
            f"schema {settings().schema}: {state.current}, this logstore has {state.head}{stale}; "
            "run `logstore db upgrade`"
        )
    return current
