"""``logstore delete-records``: moves the start of partitions forward."""

from __future__ import annotations

from collections.abc import Sequence

import click

from logstore.cli.arguments import confirm, topic_argument, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.extent import Extent, chosen, extents, partitions_of
from logstore.cli.output import Column, human_count, print_json, print_rows
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.cli.timespec import TIME
from logstore.records import TopicPartition

__all__ = ["delete_records"]


@click.command(
    "delete-records",
    cls=Command,
    examples=(
        "logstore delete-records orders --partition 0 --before-offset 100",
        "logstore delete-records orders --before-time 7d --yes",
        "logstore delete-records orders --all",
    ),
)
@topic_argument()
@click.option(
    "-p",
    "--partition",
    "partitions",
    metavar="N",
    type=click.IntRange(0),
    multiple=True,
    help="Only this partition.  Repeatable.",
)
@click.option("--before-offset", type=click.IntRange(0), metavar="N", help="Delete what is below offset N.")
@click.option(
    "--before-time",
    type=TIME,
    metavar="TIME",
    help="Delete what is before the first record of this time: 2026-11-22T10:00:00Z, 7d.",
)
@click.option("--all", "everything", is_flag=True, help="Delete every record there is now.")
@yes_option
@output_option()
@connection_options
def delete_records(
    topic: str,
    partitions: Sequence[int],
    before_offset: int | None,
    before_time: int | None,
    everything: bool,
    yes: bool,
) -> None:
    """Delete the oldest records of a topic.

    Moves the start of the log: the records are gone for every reader at once, offsets never change, and
    the space is freed a segment at a time.
    """
    if sum((before_offset is not None, before_time is not None, everything)) != 1:
        raise click.UsageError(
            "Give one of --before-offset, --before-time and --all.", click.get_current_context()
        )
    with open_admin() as admin:
        wanted = chosen(partitions_of(admin, [topic]), [topic], partitions)
        before = extents(admin, wanted)
        cuts: dict[TopicPartition, int] = {}
        at_time = admin.list_offsets(dict.fromkeys(wanted, before_time)) if before_time is not None else {}
        for extent in before:
            tp = TopicPartition(topic, extent.partition)
            if before_offset is not None:
                cuts[tp] = before_offset
            elif before_time is not None:
                found = at_time[tp]
                cuts[tp] = found.offset if found is not None and found.offset >= 0 else extent.end
            else:
                cuts[tp] = extent.end
        doomed = sum(max(0, min(cuts[TopicPartition(topic, e.partition)], e.end) - e.start) for e in before)
        cuts = {tp: cut for (tp, cut), extent in zip(cuts.items(), before, strict=True) if cut > extent.start}
        if cuts:
            confirm(f"Delete {human_count(doomed)} records of {topic} for good?", yes=yes)
            admin.delete_records(cuts)
        after = extents(admin, wanted)
    _show(topic, before, after)


def _show(topic: str, before: Sequence[Extent], after: Sequence[Extent]) -> None:
    pairs = list(zip(before, after, strict=True))
    if settings().output == "json":
        print_json(
            [
                {
                    "topic": topic,
                    "partition": new.partition,
                    "deleted": new.start - old.start,
                    "start_offset": new.start,
                    "end_offset": new.end,
                }
                for old, new in pairs
            ]
        )
        return
    print_rows(
        [
            Column("partition", number=True),
            Column("deleted", number=True),
            Column("start", number=True),
            Column("end", number=True),
        ],
        [(new.partition, human_count(new.start - old.start), new.start, new.end) for old, new in pairs],
    )
