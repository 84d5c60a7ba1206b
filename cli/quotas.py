"""``logstore quota``: set, list, remove."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from logstore.cli.clients import open_admin
from logstore.cli.output import Column, print_json, print_rows
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.quotas import DEFAULT_ENTITY, ClientQuotaEntity

__all__ = ["quota"]

F = TypeVar("F", bound=Callable[..., Any])

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _rate(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kmg]i?|)b?(?:/s)?", text.strip().lower())
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not bytes a second, such as 500000, 500kB or 2MiB.", ctx, param
        )
    return round(float(found[1]) * UNITS[found[2]])


def _whom(command: F) -> F:
    for option in (
        click.option("--default-client-id", is_flag=True, help="Every client id without one of its own."),
        click.option("--client-id", metavar="ID", help="A client_id, the application_name of connections."),
        click.option("--default-role", is_flag=True, help="Every role without one of its own."),
        click.option("--role", metavar="NAME", help="A database role, as it connects."),
    ):
        command = option(command)
    return command


def _entity(
    role: str | None, default_role: bool, client_id: str | None, default_client_id: bool
) -> ClientQuotaEntity:
    if (role and default_role) or (client_id and default_client_id):
        raise click.UsageError("A name and the default contradict each other.", click.get_current_context())
    entity = ClientQuotaEntity(
        DEFAULT_ENTITY if default_role else role, DEFAULT_ENTITY if default_client_id else client_id
    )
    if not any(entity):
        raise click.UsageError(
            "Whom for?  Name a role, a client id or both, or a default.", click.get_current_context()
        )
    return entity


def _named(entity: ClientQuotaEntity) -> str:
    parts = []
    if entity.user is not None:
        parts.append("every role by itself" if entity.user == DEFAULT_ENTITY else f"role {entity.user}")
    if entity.client_id is not None:
        default = entity.client_id == DEFAULT_ENTITY
        parts.append("every client id by itself" if default else f"client id {entity.client_id}")
    return ", ".join(parts)


@click.group(
    cls=Group,
    examples=(
        "logstore quota set --client-id etl --produce 2MB --fetch 10MB",
        "logstore quota list",
        "logstore quota remove --client-id etl",
    ),
)
@connection_options
def quota() -> None:
    """Limit how many bytes a second clients produce and fetch.

    A quota is shared by all connections of whom it is for.  Of several that apply, the most specific counts:
    role and client id before role, role before client id, a name before a default.
    """


@quota.command(
    "set",
    examples=(
        "logstore quota set --role reports --fetch 5MB",
        "logstore quota set --role app --client-id etl --produce 500kB",
        "logstore quota set --default-client-id --produce 1MiB --fetch 1MiB",
    ),
)
@_whom
@click.option("--produce", metavar="RATE", callback=_rate, help="Bytes a second, such as 500000 or 2MB.")
@click.option("--fetch", metavar="RATE", callback=_rate, help="Bytes a second, such as 500000 or 2MB.")
@connection_options
def set_(
    role: str | None,
    default_role: bool,
    client_id: str | None,
    default_client_id: bool,
    produce: int | None,
    fetch: int | None,
) -> None:
    """Set a quota; running clients keep to it from their next request on.

    What is not named stays as it is.  k, M and G are thousands, Ki, Mi and Gi are 1024s.
    """
    entity = _entity(role, default_role, client_id, default_client_id)
    given = {"producer_byte_rate": produce, "consumer_byte_rate": fetch}
    rates = {name: rate for name, rate in given.items() if rate is not None}
    if not rates:
        raise click.UsageError("Give --produce, --fetch or both.", click.get_current_context())
    with open_admin() as admin:
        admin.alter_client_quotas({entity: rates})
        now = admin.describe_client_quotas([entity])[entity]
    click.echo(f"{_named(entity)}: {', '.join(f'{name}={rate}' for name, rate in now.items())}")


@quota.command("list", examples=("logstore quota list", "logstore quota list --usage -o json"))
@click.option("--usage", is_flag=True, help="Who has used one within the last hour, and is it used up?")
@output_option()
@connection_options
def list_(usage: bool) -> None:
    """List the quotas there are, or who uses them."""
    with open_admin() as admin:
        if usage:
            used = admin.describe_quota_usage()
        else:
            found = admin.describe_client_quotas()
    if usage:
        if settings().output == "json":
            print_json([each._asdict() for each in used])
            return
        print_rows(
            ["role", "client id", "quota", Column("bytes/s", number=True), Column("wait ms", number=True)],
            [tuple(each) for each in used],
            empty="Nobody has used a quota lately.",
        )
        return
    if settings().output == "json":
        print_json(
            [{"role": entity.user, "client_id": entity.client_id, **found[entity]} for entity in found]
        )
        return
    print_rows(
        ["role", "client id", Column("produce bytes/s", number=True), Column("fetch bytes/s", number=True)],
        [
            (*entity, rates.get("producer_byte_rate"), rates.get("consumer_byte_rate"))
            for entity, rates in found.items()
        ],
        empty="No quotas: everybody may use what there is.",
    )


@quota.command(
    examples=("logstore quota remove --client-id etl", "logstore quota remove --role app --only produce")
)
@_whom
@click.option("--only", type=click.Choice(["produce", "fetch"]), help="Leave the other one.")
@connection_options
def remove(
    role: str | None,
    default_role: bool,
    client_id: str | None,
    default_client_id: bool,
    only: str | None,
) -> None:
    """Take a quota away; harmless when there is none."""
    entity = _entity(role, default_role, client_id, default_client_id)
    names = {"produce": "producer_byte_rate", "fetch": "consumer_byte_rate"}
    gone = names.values() if only is None else [names[only]]
    with open_admin() as admin:
        admin.alter_client_quotas({entity: dict.fromkeys(gone)})
    click.echo(f"{_named(entity)}: no {' and no '.join(gone)}")
