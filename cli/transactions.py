"""``logstore transaction``: list, describe, fence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from logstore.cli.arguments import confirm, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.output import Column, print_json, print_rows
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time

__all__ = ["transaction"]

F = TypeVar("F", bound=Callable[..., Any])

STATES = ("Empty", "Ongoing")


def _ids_argument(command: F) -> F:
    return click.argument("transactional_ids", metavar="TRANSACTIONAL-ID...", nargs=-1, required=True)(
        command
    )


@click.group(
    cls=Group,
    examples=("logstore transaction list", "logstore transaction fence payments-1"),
)
@connection_options
def transaction() -> None:
    """List, describe and fence transactional producers."""


@transaction.command(
    "list", examples=("logstore transaction list", "logstore transaction list --state ongoing -o json")
)
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only those in this state.  Repeatable.",
)
@output_option()
@connection_options
def list_(states: Sequence[str]) -> None:
    """List the transactional ids.

    Ongoing: its transaction is being written now.  What a producer has not committed yet is still with it.
    """
    with open_admin() as admin:
        found = admin.list_transactions(states=states or None)
    if settings().output == "json":
        print_json([each._asdict() for each in found])
        return
    print_rows(
        ["transactional id", Column("producer id", number=True), "state"],
        [tuple(each) for each in found],
        empty="No transactional ids: a producer with a transactional_id makes one.",
    )


@transaction.command(
    examples=("logstore transaction describe payments-1", "logstore transaction describe payments-1 -o json")
)
@_ids_argument
@output_option()
@connection_options
def describe(transactional_ids: Sequence[str]) -> None:
    """Show who holds transactional ids and what they are doing."""
    with open_admin() as admin:
        found = admin.describe_transactions(transactional_ids)
    if settings().output == "json":
        print_json([each._asdict() for each in found])
        return
    print_rows(
        [
            "transactional id",
            Column("producer id", number=True),
            Column("epoch", number=True),
            "state",
            Column("timeout ms", number=True),
            "client",
            "held since",
            "written since",
            "by",
        ],
        [
            (
                each.transactional_id,
                each.producer_id,
                each.producer_epoch,
                each.state,
                each.transaction_timeout_ms,
                each.client_id,
                format_time(each.initialised_at),
                None if each.since is None else format_time(each.since),
                None if each.pid is None else f"{each.host} pid {each.pid}",
            )
            for each in found
        ],
    )


@transaction.command(
    examples=("logstore transaction fence payments-1", "logstore transaction fence payments-1 --yes")
)
@_ids_argument
@yes_option
@output_option()
@connection_options
def fence(transactional_ids: Sequence[str], yes: bool) -> None:
    """Keep the producers that hold these ids from committing anything more.

    What they are just committing is finished first; afterwards their next step raises ProducerFencedError.  A
    new producer with the same id goes on.
    """
    with open_admin() as admin:
        admin.describe_transactions(transactional_ids)
        confirm(f"Fence the producers that hold {', '.join(transactional_ids)}?", yes=yes)
        epochs = admin.fence_producers(transactional_ids)
    if settings().output == "json":
        print_json([{"transactional_id": name, "epoch": epoch} for name, epoch in epochs.items()])
        return
    for name, epoch in epochs.items():
        click.echo(f"{name}: fenced, the epoch is {epoch} now")
