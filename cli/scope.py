"""Which group, and which of its partitions: what the commands of groups have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from logstore.cli.nearest import asked
from logstore.records import TopicPartition

if TYPE_CHECKING:
    from logstore import Admin

__all__ = ["Scope", "complete_group", "group_argument", "scope_option"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Scope:
    """``--topic`` options: topic name -> partitions; None: all of them."""

    topics: dict[str, tuple[int, ...] | None]

    def __bool__(self) -> bool:
        return bool(self.topics)

    def partitions(self, admin: Admin) -> list[TopicPartition]:
        """The partitions meant; a topic or partition that does not exist raises."""
        from logstore.cli.extent import chosen, partitions_of

        found: list[TopicPartition] = []
        for topic, numbers in self.topics.items():
            found += chosen(partitions_of(admin, [topic]), [topic], numbers or ())
        return found


def scope_option(*, required: bool = False) -> Callable[[F], F]:
    return click.option(
        "-t", "--topic", "scope", metavar="TOPIC[:P,...]", multiple=True, required=required, callback=_scope,
        help="A topic, or some of its partitions: orders or orders:0,3.  Repeatable.",
    )  # fmt: skip


def _scope(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> Scope:
    topics: dict[str, tuple[int, ...] | None] = {}
    for text in given:
        topic, colon, numbers = text.partition(":")
        if not topic or (colon and not re.fullmatch(r"\d{1,9}(,\d{1,9})*", numbers)):
            raise click.BadParameter(f"{text!r} is not TOPIC or TOPIC:0,1,2.", ctx, param)
        if topic in topics:
            raise click.BadParameter(f"{topic!r} is given twice.", ctx, param)
        topics[topic] = tuple(sorted(set(map(int, numbers.split(","))))) if colon else None
    return Scope(topics)


def group_argument(*, many: bool = False) -> Callable[[F], F]:
    """``GROUP``, completed by the shell from the groups there are."""
    if many:
        return click.argument(
            "groups", metavar="GROUP...", nargs=-1, required=True, shell_complete=complete_group
        )
    return click.argument("group", metavar="GROUP", shell_complete=complete_group)


def complete_group(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of groups that begin so."""
    names = asked(ctx, lambda admin: [each.group for each in admin.list_groups()])
    return [name for name in names if name.startswith(incomplete)]
