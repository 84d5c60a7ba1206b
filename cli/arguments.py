"""Arguments that several commands take, and the question before something is deleted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from logstore.cli.nearest import topic_names

__all__ = [
    "ACKS",
    "ACKS_HELP",
    "LINGER_HELP",
    "assignments",
    "complete_topic",
    "confirm",
    "properties",
    "property_option",
    "topic_argument",
    "yes_option",
]

F = TypeVar("F", bound=Callable[..., Any])

ACKS: Final = click.Choice(["0", "1", "all"])
ACKS_HELP: Final = (
    "Acknowledged are records that are 0: sent; 1: on the server's disk; all: on its followers', too."
)
LINGER_HELP: Final = "How long, in ms, a record may wait for others to be sent with."


def property_option(kind: str) -> Callable[[F], F]:
    """``-X name=value``: any option of the client, by Kafka's name or ours."""
    return click.option(
        "-X", "--property", "client_properties", metavar="NAME=VALUE", multiple=True, callback=properties,
        help=f"Any other option of the {kind}, such as request_timeout_ms=5000.  Repeatable.",
    )  # fmt: skip


def properties(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; numbers and booleans become what they look like."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.", ctx, param)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice.", ctx, param)
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def assignments(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` pairs, kept as text."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.", ctx, param)
        found[name] = value
    return found


def topic_argument(*, many: bool = False, required: bool = True) -> Callable[[F], F]:
    """``TOPIC``, completed by the shell from the topics there are."""
    if many:
        return click.argument(
            "topics", metavar="TOPIC..." if required else "[TOPIC]...", nargs=-1, required=required,
            shell_complete=complete_topic,
        )  # fmt: skip
    return click.argument("topic", metavar="TOPIC", shell_complete=complete_topic)


def complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of topics that begin so."""
    return [name for name in topic_names(ctx) if name.startswith(incomplete)]


def yes_option(command: F) -> F:
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, *, yes: bool) -> None:
    """Asks on the terminal; anything but yes aborts.  Without a terminal ``--yes`` must say it."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{question} Nobody can be asked here: add --yes.", click.get_current_context()
        )
    click.confirm(question, abort=True, err=True)
