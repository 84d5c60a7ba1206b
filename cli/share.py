"""``logstore share``: list, describe, alter, reset-offsets, delete-offsets, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import assignments, confirm, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.output import Column, counted, human_count, note, print_json, print_rows
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.scope import Scope, group_argument, scope_option
from logstore.cli.timespec import TIME, format_time

if TYPE_CHECKING:
    from logstore import Admin
    from logstore.records import TopicPartition
    from logstore.share import SharePartition

__all__ = ["share"]


@click.group(
    cls=Group,
    examples=(
        "logstore share list",
        "logstore share alter shipping --config share.delivery.count.limit=10",
        "logstore share describe shipping --configs",
    ),
)
@connection_options
def share() -> None:
    """List, describe, configure, reset and delete share groups."""


@share.command("list", examples=("logstore share list", "logstore share list --output json"))
@output_option()
@connection_options
def list_() -> None:
    """List the share groups and what they have left to do."""
    with open_admin() as admin:
        names = [each.group for each in admin.list_groups(kinds=["share"])]
        found = admin.list_share_groups()
    rows = [_total(name, [each for each in found if each.group == name]) for name in names]
    if settings().output == "json":
        print_json(rows)
        return
    print_rows(
        [
            "group",
            "topics",
            *(
                Column(name, number=True)
                for name in ("partitions", "in flight", "available", "delayed", "lag")
            ),
            Column("members", number=True),
        ],
        [
            (
                row["group"],
                " ".join(row["topics"]),
                row["partitions"],
                *(human_count(row[name]) for name in ("in_flight", "available", "delayed", "lag")),
                len(row["members"]),
            )
            for row in rows
        ],
        empty="No share groups: a ShareConsumer makes one, and so does `logstore share alter`.",
    )


def _total(group: str, partitions: Sequence[SharePartition]) -> dict[str, Any]:
    return {
        "group": group,
        "topics": sorted({each.topic for each in partitions}),
        "partitions": len(partitions),
        "in_flight": sum(each.in_flight for each in partitions),
        "available": sum(each.available for each in partitions),
        "delayed": sum(each.delayed for each in partitions),
        "lag": sum(each.lag for each in partitions),
        "members": sorted({member for each in partitions for member in each.members}),
    }


@share.command(
    examples=(
        "logstore share describe shipping",
        "logstore share describe shipping --members",
        "logstore share describe shipping --configs",
    ),
)
@group_argument()
@click.option("--offsets", "what", flag_value="offsets", default=True, help="Its partitions (default).")
@click.option("--members", "what", flag_value="members", help="Who has records in flight.")
@click.option("--configs", "what", flag_value="configs", help="Its configs.")
@output_option()
@connection_options
def describe(group: str, what: str) -> None:
    """Show where a share group is, who works for it, or how it is configured."""
    with open_admin() as admin:
        if what == "configs":
            _show_configs(admin, group)
            return
        found = admin.describe_share_group(group)
    if what == "members":
        _show_members(found)
        return
    if settings().output == "json":
        print_json([each._asdict() for each in found])
        return
    numbers = ("partition", "start", "end", "in flight", "available", "delayed", "lag")
    print_rows(
        ["topic", *(Column(name, number=True) for name in numbers), "next due"],
        [
            (
                each.topic,
                each.partition,
                each.start_offset,
                each.end_offset,
                *map(human_count, (each.in_flight, each.available, each.delayed, each.lag)),
                None if each.next_due_at is None else format_time(each.next_due_at),
            )
            for each in found
        ],
        empty="It has not taken anything from any topic yet.",
    )


def _show_members(found: Sequence[SharePartition]) -> None:
    topics: dict[str, list[str]] = {}
    for each in found:
        for member in each.members:
            topics.setdefault(member, []).append(f"{each.topic}:{each.partition}")
    if settings().output == "json":
        print_json([{"member": member, "partitions": places} for member, places in sorted(topics.items())])
        return
    print_rows(
        ["member", "has records of"],
        [(member, " ".join(places)) for member, places in sorted(topics.items())],
        empty="Nobody has records in flight.",
    )


def _show_configs(admin: Admin, group: str) -> None:
    configs = admin.describe_share_configs(group)
    if settings().output == "json":
        print_json({name: each._asdict() for name, each in configs.items()})
        return
    print_rows(
        ["config", "value", "default", "meaning"],
        [
            (each.name, each.value, None if each.is_default else each.default, each.doc)
            for each in configs.values()
        ],
    )


@share.command(
    examples=(
        "logstore share alter shipping --config share.auto.offset.reset=earliest",
        "logstore share alter shipping --config errors.deadletterqueue.topic.name=dlq.shipping",
        "logstore share alter shipping --unset share.delivery.count.limit",
    ),
)
@group_argument()
@click.option(
    "-c", "--config", "configs", metavar="NAME=VALUE", multiple=True, callback=assignments,
    help="Set a config.  Repeatable.",
)  # fmt: skip
@click.option("--unset", metavar="NAME", multiple=True, help="Set a config back to its default.  Repeatable.")
@output_option()
@connection_options
def alter(group: str, configs: Mapping[str, str], unset: Sequence[str]) -> None:
    """Configure a share group; one that does not exist is made."""
    if both := set(configs) & set(unset):
        raise click.UsageError(f"{sorted(both)[0]!r} is both set and unset.")
    with open_admin() as admin:
        admin.alter_share_configs(group, {**configs, **dict.fromkeys(unset)})
        changed = {name: each.value for name, each in admin.describe_share_configs(group).items()}
    shown = {name: changed[name] for name in (*configs, *unset)}
    if settings().output == "json":
        print_json({"group": group, "configs": shown})
        return
    for name, value in shown.items():
        click.echo(f"{name}={value}")


@share.command(
    "reset-offsets",
    examples=(
        "logstore share reset-offsets shipping --topic orders --to-earliest",
        "logstore share reset-offsets shipping --topic orders:0 --to-datetime 2h --execute",
    ),
)
@group_argument()
@scope_option(required=True)
@click.option("--to-earliest", is_flag=True, help="The first record there is.")
@click.option("--to-latest", is_flag=True, help="Behind the last record.")
@click.option("--to-offset", type=click.IntRange(0), metavar="N", help="This offset.")
@click.option("--to-datetime", type=TIME, metavar="TIME", help="The first record at or after a time.")
@click.option("--execute", is_flag=True, help="Do it.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done (default).")
@output_option()
@connection_options
def reset_offsets(
    group: str,
    scope: Scope,
    to_earliest: bool,
    to_latest: bool,
    to_offset: int | None,
    to_datetime: int | None,
    execute: bool,
    dry_run: bool,
) -> None:
    """Have a share group begin elsewhere, whatever it has finished.

    Shows what would be done; --execute does it, unless members have records in flight: stop them first.
    Records that wait to be delivered again are forgotten.  An offset outside of the log is moved to the
    nearest one there is.
    """
    if execute and dry_run:
        raise click.UsageError("--execute and --dry-run contradict each other.")
    if to_earliest + to_latest + (to_offset is not None) + (to_datetime is not None) != 1:
        raise click.UsageError("Say where to: --to-earliest, --to-latest, --to-offset or --to-datetime.")
    with open_admin() as admin:
        tps = scope.partitions(admin)
        found = admin.list_share_groups()
        before = {each.topic_partition: each.start_offset for each in found if each.group == group}
        offsets = _places(admin, tps, to_latest=to_latest, offset=to_offset, time_ms=to_datetime)
        if execute:
            offsets = admin.alter_share_group_offsets(group, offsets)
    rows = [(tp.topic, tp.partition, before.get(tp), offset) for tp, offset in offsets.items()]
    if settings().output == "json":
        names = ("topic", "partition", "start_offset", "new_start_offset")
        print_json([{**dict(zip(names, row, strict=True)), "executed": execute} for row in rows])
        return
    print_rows(["topic", *(Column(name, number=True) for name in ("partition", "start", "new start"))], rows)
    if not execute:
        note("Nothing has been changed: add --execute to do it.")


def _places(
    admin: Admin, tps: Sequence[TopicPartition], *, to_latest: bool, offset: int | None, time_ms: int | None
) -> dict[TopicPartition, int]:
    """Where each partition is to begin, within its log."""
    first = {tp: at.offset for tp, at in admin.list_offsets(dict.fromkeys(tps, -2)).items() if at}
    last = {tp: at.offset for tp, at in admin.list_offsets(dict.fromkeys(tps, -1)).items() if at}
    if to_latest:
        return last
    if offset is not None:
        return {tp: min(max(offset, first[tp]), last[tp]) for tp in tps}
    if time_ms is not None:
        found = admin.list_offsets(dict.fromkeys(tps, time_ms))
        return {tp: at.offset if (at := found[tp]) is not None else last[tp] for tp in tps}
    return first


@share.command("delete-offsets", examples=("logstore share delete-offsets shipping --topic orders",))
@group_argument()
@scope_option(required=True)
@yes_option
@output_option()
@connection_options
def delete_offsets(group: str, scope: Scope, yes: bool) -> None:
    """Forget where a share group is in some topics or partitions: it begins there again."""
    with open_admin() as admin:
        known = {each.topic_partition for each in admin.describe_share_group(group)}
        wanted = [tp for tp in scope.partitions(admin) if tp in known]
        confirm(f"Forget where {group} is in {counted(len(wanted), 'partition')}?", yes=yes)
        deleted = admin.delete_share_group_offsets(group, wanted)
    if settings().output == "json":
        print_json({"deleted": deleted})
        return
    click.echo(f"{group}: {counted(deleted, 'partition')} forgotten")


@share.command(examples=("logstore share delete shipping", "logstore share delete shipping --yes"))
@group_argument()
@yes_option
@output_option()
@connection_options
def delete(group: str, yes: bool) -> None:
    """Delete a share group: what it has finished is forgotten."""
    with open_admin() as admin:
        admin.describe_share_configs(group)
        confirm(f"Delete {group} and forget what it has finished?", yes=yes)
        admin.delete_share_group(group)
    if settings().output == "json":
        print_json({"deleted": group})
        return
    click.echo(f"{group}: deleted")
