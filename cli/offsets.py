"""``logstore offsets``: where partitions begin and end, and the offset of a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from logstore.cli.arguments import topic_argument
from logstore.cli.clients import open_admin
from logstore.cli.extent import chosen, extents, partitions_of
from logstore.cli.output import Column, human_count, print_json, print_rows
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.cli.timespec import Time, format_time
from logstore.topics import EARLIEST, LATEST, MAX_TIMESTAMP

__all__ = ["offsets"]

NAMED = {"earliest": EARLIEST, "latest": LATEST, "max-timestamp": MAX_TIMESTAMP}


class Moment(Time):
    """earliest, latest, max-timestamp or a time, as ``list_offsets`` takes it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and value in NAMED:
            return NAMED[value]
        return super().convert(value, param, ctx)


@click.command(
    cls=Command,
    examples=(
        "logstore offsets orders",
        "logstore offsets orders --time 2h",
        "logstore offsets orders --time max-timestamp --partition 0 --output json",
    ),
)
@topic_argument(many=True)
@click.option(
    "-p",
    "--partition",
    "partitions",
    metavar="N",
    type=click.IntRange(0),
    multiple=True,
    help="Only this partition.  Repeatable.",
)
@click.option(
    "-t",
    "--time",
    "moment",
    type=Moment(),
    metavar="TIME",
    help="earliest, latest, max-timestamp, or the first record at or after a time: 2026-11-22T10:00:00Z, 2h.",
)
@output_option()
@connection_options
def offsets(topics: Sequence[str], partitions: Sequence[int], moment: int | None) -> None:
    """Show where partitions begin and end, or the offset of a time.

    Without --time: start, end, number of records and newest time stamp of each partition.
    """
    with open_admin() as admin:
        wanted = chosen(partitions_of(admin, topics), topics, partitions)
        if moment is not None:
            found = admin.list_offsets(dict.fromkeys(wanted, moment))
            rows = [(tp, found[tp]) for tp in wanted]
        else:
            reach = extents(admin, wanted)
    if moment is None:
        if settings().output == "json":
            print_json([{"topic": extent.topic, **extent.document()} for extent in reach])
            return
        print_rows(
            [
                "topic",
                Column("partition", number=True),
                Column("start", number=True),
                Column("end", number=True),
                Column("records", number=True),
                "newest record",
            ],
            [(e.topic, e.partition, e.start, e.end, human_count(e.records), _time(e.newest)) for e in reach],
        )
        return
    answers = [
        (
            tp,
            at.offset if at is not None and at.offset >= 0 else None,
            at.timestamp if at is not None else None,
        )
        for tp, at in rows
    ]
    if settings().output == "json":
        print_json(
            [
                {
                    "topic": tp.topic,
                    "partition": tp.partition,
                    "offset": offset,
                    "timestamp": stamp if stamp is not None and stamp >= 0 else None,
                }
                for tp, offset, stamp in answers
            ]
        )
        return
    print_rows(
        ["topic", Column("partition", number=True), Column("offset", number=True), "timestamp"],
        [(tp.topic, tp.partition, offset, _time(stamp)) for tp, offset, stamp in answers],
    )


def _time(stamp: int | None) -> str | None:
    return format_time(stamp) if stamp is not None and stamp >= 0 else None
