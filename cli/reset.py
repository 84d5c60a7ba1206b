"""``logstore group reset-offsets``: in all of Kafka's modes, and without doing it unless told to."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.clients import open_admin
from logstore.cli.failures import InputError
from logstore.cli.output import Column, note, print_json, print_rows
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.cli.scope import Scope, group_argument, scope_option
from logstore.cli.timespec import TIME
from logstore.records import TopicPartition

if TYPE_CHECKING:
    from logstore.groups import OffsetReset

__all__ = ["reset_offsets"]


class Duration(click.ParamType[int]):
    """How long: ``90s``, ``1h30m``, or Kafka's ISO 8601 ``P1DT2H``; milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from logstore._core.reset import duration_ms
        from logstore.cli.timespec import parse_time_ms
        from logstore.errors import ConfigurationError

        if isinstance(value, int):
            return value
        text = str(value).strip()
        found = -1
        try:
            if text[:1].upper() == "P":
                found = duration_ms(text)
            elif not text.isdigit():
                found = -parse_time_ms(text, 0)
        except (ValueError, ConfigurationError):
            pass
        if found < 0:
            self.fail(f"{value!r} is not a duration. Write 90s, 15m, 2h, 7d, 1h30m or P1DT2H.", param, ctx)
        return found


@click.command(
    "reset-offsets",
    cls=Command,
    examples=(
        "logstore group reset-offsets billing --topic orders --to-earliest",
        "logstore group reset-offsets billing --topic orders:0,1 --shift-by=-100 --execute",
        "logstore group reset-offsets billing --all-topics --by-duration 2h --export > plan.csv",
        "logstore group reset-offsets billing --from-file plan.csv --execute",
    ),
)
@group_argument()
@scope_option()
@click.option("--all-topics", is_flag=True, help="Every topic that the group has committed offsets for.")
@click.option("--to-earliest", is_flag=True, help="The first record there is.")
@click.option("--to-latest", is_flag=True, help="Behind the last record.")
@click.option(
    "--to-current", is_flag=True, help="What is committed; where nothing is, behind the last record."
)
@click.option("--to-offset", type=click.IntRange(0), metavar="N", help="This offset.")
@click.option("--to-datetime", type=TIME, metavar="TIME", help="The first record at or after a time.")
@click.option(
    "--by-duration",
    type=Duration(),
    metavar="DURATION",
    help="The first record no older than 2h, P1DT2H, ...",
)
@click.option("--shift-by", type=int, metavar="N", help="So many offsets on; back with --shift-by=-N.")
@click.option(
    "--from-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Lines of topic,partition,offset, as --export writes them; - is stdin.",
)
@click.option("--execute", is_flag=True, help="Do it.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done (default).")
@click.option("--export", is_flag=True, help="Print the new offsets as CSV for --from-file.")
@output_option()
@connection_options
def reset_offsets(
    group: str,
    scope: Scope,
    all_topics: bool,
    execute: bool,
    dry_run: bool,
    export: bool,
    **modes: Any,
) -> None:
    """Put the committed offsets of a group elsewhere.

    Shows what would be done; --execute does it, unless the group has members: stop them first.  An
    offset outside of the log is moved to the nearest one there is.  All offsets are set, or none.
    """
    ctx = click.get_current_context()
    if execute and dry_run:
        raise click.UsageError("--execute and --dry-run contradict each other.", ctx)
    if modes["from_file"] is not None:
        if scope or all_topics:
            raise click.UsageError("--from-file says itself which partitions it is about.", ctx)
    elif bool(scope) == all_topics:
        raise click.UsageError("Say which partitions: either --topic TOPIC[:P,...] or --all-topics.", ctx)
    reset = _reset(ctx, **modes)
    with open_admin() as admin:
        wanted = scope.partitions(admin) if scope else None
        perform = admin.reset_group_offsets if execute else admin.plan_offset_reset
        planned = perform(group, reset, wanted)
    if export:
        # Without a header line, as Kafka's tool writes and reads it.
        for each in planned:
            csv.writer(sys.stdout, lineterminator="\n").writerow((each.topic, each.partition, each.target))
    elif settings().output == "json":
        print_json(
            {
                "group": group,
                "executed": execute,
                "offsets": [
                    {
                        "topic": each.topic,
                        "partition": each.partition,
                        "current_offset": each.current,
                        "new_offset": each.target,
                    }
                    for each in planned
                ],
            }
        )
    else:
        print_rows(
            [
                "topic",
                Column("partition", number=True),
                Column("current", number=True),
                Column("new", number=True),
            ],
            [(each.topic, each.partition, each.current, each.target) for each in planned],
            empty="The group has committed nothing.",
        )
    if not execute and planned:
        note("Nothing was changed: add --execute to do it.")


def _reset(ctx: click.Context, **modes: Any) -> OffsetReset:
    from logstore.groups import OffsetReset

    given = {name: value for name, value in modes.items() if value is not None and value is not False}
    if len(given) != 1:
        raise click.UsageError(
            "Say where to, once: --to-earliest, --to-latest, --to-current, --to-offset, --to-datetime, "
            "--by-duration, --shift-by or --from-file.",
            ctx,
        )
    ((mode, value),) = given.items()
    match mode:
        case "to_offset":
            return OffsetReset.to_offset(value)
        case "to_datetime":
            return OffsetReset.to_timestamp(value)
        case "by_duration":
            return OffsetReset.by_duration(value)
        case "shift_by":
            return OffsetReset.shift_by(value)
        case "from_file":
            return OffsetReset.to_offsets(_from_file(value))
        case "to_earliest":
            return OffsetReset.to_earliest()
        case "to_latest":
            return OffsetReset.to_latest()
        case _:
            return OffsetReset.to_current()


def _from_file(path: Path) -> dict[TopicPartition, int]:
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    found: dict[TopicPartition, int] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        if not row or row == ["topic", "partition", "offset"]:
            continue
        if (
            len(row) != 3
            or not row[0]
            or not all(re.fullmatch(r"\d{1,18}", cell.strip()) for cell in row[1:])
        ):
            raise InputError(f"{path}:{number}: {','.join(row)!r} is not topic,partition,offset.")
        tp = TopicPartition(row[0], int(row[1]))
        if tp in found:
            raise InputError(f"{path}:{number}: partition {tp.partition} of {tp.topic!r} is there twice.")
        found[tp] = int(row[2])
    if not found:
        raise InputError(f"{path}: there is nothing in it.")
    return found
