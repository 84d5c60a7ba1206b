"""``logstore group``: list, describe, lag, reset-offsets, delete, delete-offsets, remove-member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import confirm, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.output import Column, counted, human_count, print_json, print_rows
from logstore.cli.reset import reset_offsets
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.scope import Scope, complete_group, group_argument, scope_option
from logstore.cli.timespec import format_time

if TYPE_CHECKING:
    from logstore import Admin
    from logstore.groups import GroupDescription, PartitionLag

__all__ = ["group"]

STATES = ("Empty", "Assigning", "Reconciling", "Stable")


@click.group(
    cls=Group,
    examples=(
        "logstore group list",
        "logstore group describe billing --members",
        "logstore group reset-offsets billing --topic orders --to-earliest",
    ),
)
@connection_options
def group() -> None:
    """List, describe, reset and delete consumer groups."""


@group.command("list", examples=("logstore group list", "logstore group list --state empty --output json"))
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only groups in this state.  Repeatable.",
)
@click.option("--type", "kinds", type=click.Choice(["consumer", "share"]), multiple=True, help="Only these.")
@output_option()
@connection_options
def list_(states: Sequence[str], kinds: Sequence[str]) -> None:
    """List the groups."""
    with open_admin() as admin:
        found = admin.list_groups(states=states or None, kinds=kinds or None)
    if settings().output == "json":
        print_json([each._asdict() for each in found])
        return
    print_rows(
        [
            "group",
            "type",
            "state",
            "assignor",
            Column("members", number=True),
            Column("partitions", number=True),
            Column("epoch", number=True),
        ],
        [(g.group, g.kind, g.state, g.assignor, g.members, g.partitions, g.assigned_epoch) for g in found],
        empty="No groups: a consumer with a group_id makes one.",
    )


@group.command(
    examples=(
        "logstore group describe billing",
        "logstore group describe billing --members",
        "logstore group describe billing --state --output json",
    ),
)
@group_argument(many=True)
@click.option("--offsets", "what", flag_value="offsets", default=True, help="Offsets and lag (default).")
@click.option("--members", "what", flag_value="members", help="Members and what they own.")
@click.option("--state", "what", flag_value="state", help="State, assignor and epochs.")
@output_option()
@connection_options
def describe(groups: Sequence[str], what: str) -> None:
    """Show the offsets, the members or the state of groups."""
    with open_admin() as admin:
        if what == "offsets":
            _show_lag(admin, groups)
            return
        described = admin.describe_groups(groups)
    if settings().output == "json":
        print_json([_document(each, members=what == "members") for each in described])
    elif what == "members":
        _print_members(described)
    else:
        print_rows(
            [
                "group",
                "type",
                "state",
                "assignor",
                Column("members", number=True),
                Column("epoch", number=True),
                Column("assigned", number=True),
            ],
            [
                (g.group, g.kind, g.state, g.assignor, len(g.members), g.group_epoch, g.assigned_epoch)
                for g in described
            ],
        )


@group.command(examples=("logstore group lag billing", "logstore group lag billing --output json"))
@group_argument(many=True)
@output_option()
@connection_options
def lag(groups: Sequence[str]) -> None:
    """Show how far groups are behind, in records and in seconds."""
    with open_admin() as admin:
        _show_lag(admin, groups)


def _show_lag(admin: Admin, groups: Sequence[str]) -> None:
    found = [(name, each) for name in groups for each in admin.group_lag(name)]
    if settings().output == "json":
        print_json([_lag_document(name, each) for name, each in found])
        return
    print_rows(
        [
            "group",
            "topic",
            Column("partition", number=True),
            Column("committed", number=True),
            Column("end", number=True),
            Column("lag", number=True),
            Column("seconds behind", number=True),
            "member",
        ],
        [
            (
                name,
                each.topic,
                each.partition,
                each.committed_offset,
                each.end_offset,
                None if each.lag is None else human_count(each.lag),
                None if each.seconds_behind is None else f"{each.seconds_behind:,.1f}",
                each.instance_id or each.member_id,
            )
            for name, each in found
        ],
        empty="Nothing is committed and nobody reads.",
    )


def _print_members(described: Sequence[GroupDescription]) -> None:
    rows = [
        (
            each.group,
            member.instance_id or member.member_id,
            member.host,
            member.subscription,
            len(member.assignment),
            _spans(member.assignment),
            None if member.lease_until is None else format_time(member.lease_until),
        )
        for each in described
        for member in each.members
    ]
    print_rows(
        ["group", "member", "host", "subscription", Column("owns", number=True), "partitions", "lease until"],
        rows,
        empty="No members.",
    )


def _spans(assignment: Any) -> str:
    """``orders:0-3,7 audit:0``."""
    by_topic: dict[str, list[int]] = {}
    for tp in sorted(assignment):
        by_topic.setdefault(tp.topic, []).append(tp.partition)
    words = []
    for topic, numbers in by_topic.items():
        spans: list[list[int]] = []
        for number in numbers:
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        words.append(f"{topic}:" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans))
    return " ".join(words)


def _document(described: GroupDescription, *, members: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "group": described.group,
        "type": described.kind,
        "state": described.state,
        "assignor": described.assignor,
        "group_epoch": described.group_epoch,
        "assigned_epoch": described.assigned_epoch,
    }
    if members:
        document["members"] = [
            {
                **asdict(member),
                "assignment": [
                    {"topic": tp.topic, "partition": tp.partition, "claim_epoch": epoch}
                    for tp, epoch in member.assignment.items()
                ],
            }
            for member in described.members
        ]
    return document


def _lag_document(name: str, each: PartitionLag) -> dict[str, Any]:
    document = {"group": name, **asdict(each)}
    del document["topic_id"]
    return document


group.add_command(reset_offsets)


@group.command(examples=("logstore group delete billing", "logstore group delete billing --yes"))
@group_argument(many=True)
@yes_option
@output_option()
@connection_options
def delete(groups: Sequence[str], yes: bool) -> None:
    """Delete groups and what they have committed."""
    groups = list(dict.fromkeys(groups))
    with open_admin() as admin:
        admin.describe_groups(groups)
        confirm(f"Delete {', '.join(groups)} with all committed offsets?", yes=yes)
        admin.delete_groups(groups)
    if settings().output == "json":
        print_json({"deleted": groups})
        return
    for name in groups:
        click.echo(f"{name}: deleted")


@group.command("delete-offsets", examples=("logstore group delete-offsets billing --topic orders",))
@group_argument()
@scope_option(required=True)
@yes_option
@output_option()
@connection_options
def delete_offsets(group: str, scope: Scope, yes: bool) -> None:
    """Forget what a group has committed for some topics or partitions."""
    with open_admin() as admin:
        there = admin.list_group_offsets(group)
        wanted = [tp for tp in scope.partitions(admin) if tp in there]
        confirm(f"Forget {counted(len(wanted), 'committed offset')} of {group}?", yes=yes)
        deleted = admin.delete_group_offsets(group, wanted)
    if settings().output == "json":
        print_json({"deleted": deleted})
        return
    click.echo(f"{group}: {counted(deleted, 'offset')} forgotten")


@group.command(
    "remove-member",
    examples=("logstore group remove-member billing worker-3",),
)
@click.argument("group", metavar="GROUP", shell_complete=complete_group)
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@output_option()
@connection_options
def remove_member(group: str, members: Sequence[str]) -> None:
    """Throw members out of a group, by member id or instance id.

    Their partitions go to the others at once.  A program that still runs joins again by itself.
    """
    with open_admin() as admin:
        for member in members:
            admin.remove_group_member(group, member)
    if settings().output == "json":
        print_json({"group": group, "removed": list(members)})
        return
    for member in members:
        click.echo(f"{member}: removed")
