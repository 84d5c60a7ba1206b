"""``logstore consume``: the records of a topic, to a terminal, a file or a program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from logstore.cli import display
from logstore.cli.arguments import property_option, topic_argument
from logstore.cli.clients import open_consumer
from logstore.cli.extent import all_partitions, chosen
from logstore.cli.output import counted, note
from logstore.cli.root import Command, connection_options
from logstore.cli.timespec import TIME
from logstore.records import LOG_APPEND_TIME, TopicPartition

if TYPE_CHECKING:
    from logstore import Consumer

__all__ = ["consume"]

POLL_MS: Final = 500
"""How long one poll waits; Ctrl-C does not wait for it."""


def _shown_fields(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    fields = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in fields:
        if name not in display.FIELDS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(display.FIELDS)}.", ctx, param)
    return fields


@click.command(
    cls=Command,
    examples=(
        "logstore consume orders --from-beginning --max-messages 10",
        "logstore consume orders --follow --show timestamp,key",
        "logstore consume orders --partition 2 --offset 100 --format json",
        "logstore consume orders --since 1h --template '{partition}:{offset} {key} {value}'",
    ),
)
@topic_argument()
@click.option("-b", "--from-beginning", is_flag=True, help="Start at the first record there is.")
@click.option("--offset", type=int, metavar="N", help="Start at offset N; -N is N before the end.")
@click.option("--since", type=TIME, metavar="TIME", help="Records with this time stamp or a later one.")
@click.option("--until", type=TIME, metavar="TIME", help="Records with an earlier time stamp.")
@click.option(
    "-p",
    "--partition",
    "partitions",
    metavar="N",
    type=click.IntRange(0),
    multiple=True,
    help="Only this partition.  Repeatable.",
)
@click.option("-n", "--max-messages", type=click.IntRange(1), metavar="N", help="Stop after N records.")
@click.option("-F", "--follow", is_flag=True, help="Wait for new records until Ctrl-C.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "raw", "template"]),
    default=None,
    help="text: a line each, control characters escaped; json: an object each, nothing lost; raw: the "
    "bytes of the values.  [default: text]",
)
@click.option(
    "--template",
    metavar="TEXT",
    help="A line of your own, of {topic} {partition} {offset} {timestamp} {time} {key} {value} {headers} "
    "{size}.",
)
@click.option(
    "--show",
    callback=_shown_fields,
    metavar="FIELDS",
    help="With text: fields before the value, such as timestamp,key; of timestamp, partition, "
    "offset, key, headers, topic.",
)
@property_option("consumer")
@connection_options
def consume(
    topic: str,
    from_beginning: bool,
    offset: int | None,
    since: int | None,
    until: int | None,
    partitions: Sequence[int],
    max_messages: int | None,
    follow: bool,
    form: str | None,
    template: str | None,
    show: tuple[str, ...],
    client_properties: dict[str, Any],
) -> None:
    """Print the records of a topic.

    Reads what is there and ends; with --follow it goes on with what comes.  It starts at the beginning,
    or with --follow at the end, unless one of --from-beginning, --offset and --since says otherwise.
    Order holds within a partition, not between them.  TIME is 2026-11-22T10:00:00Z, or how long ago: 90s,
    15m, 2h, 7d.
    """
    context = click.get_current_context()
    if sum((from_beginning, offset is not None, since is not None)) > 1:
        raise click.UsageError("Give one of --from-beginning, --offset and --since.", context)
    if follow and until is not None:
        raise click.UsageError("--follow has no end: leave out --until.", context)
    formatter = _formatter(form, template, show, context)
    with open_consumer(**{"auto_offset_reset": "earliest", **client_properties}) as consumer:
        reader = _Reader(consumer, topic, partitions)
        reader.start(from_beginning, offset, since, follow)
        try:
            reader.run(formatter, max_messages, since, until, follow)
        except KeyboardInterrupt:
            note(f"stopped: {counted(reader.printed, 'record')} of {topic}")
            raise


def _formatter(
    form: str | None, template: str | None, show: tuple[str, ...], context: click.Context
) -> display.Formatter:
    if form is None:
        form = "template" if template is not None else "text"
    if (form == "template") != (template is not None):
        raise click.UsageError("--format template and --template TEXT go together.", context)
    if show and form != "text":
        raise click.UsageError(f"--show is for --format text, not {form}.", context)
    if template is not None:
        return display.template_formatter(template)
    return {"json": display.json_formatter, "raw": display.raw_formatter}.get(
        form, display.text_formatter(show)
    )


class _Reader:
    """Some partitions of one topic, from a start to an end."""

    def __init__(self, consumer: Consumer, topic: str, partitions: Sequence[int]) -> None:
        self._consumer = consumer
        self.printed = 0
        self._all = chosen(all_partitions(consumer, topic), [topic], partitions)
        consumer.assign(self._all)

    def start(self, from_beginning: bool, offset: int | None, since: int | None, follow: bool) -> None:
        """Seeks, and remembers the end of the log: a reader that does not follow reads no further."""
        consumer, everything = self._consumer, self._all
        self._ends = consumer.end_offsets(everything)
        if since is not None:
            found = consumer.offsets_for_times(dict.fromkeys(everything, since))
            for tp in everything:
                at = found.get(tp)
                consumer.seek(tp, at.offset if at is not None else self._ends[tp])
        elif offset is not None:
            starts = consumer.beginning_offsets(everything)
            for tp in everything:
                consumer.seek(tp, _chosen(tp, offset, starts[tp], self._ends[tp]))
        elif follow and not from_beginning:
            for tp in everything:
                consumer.seek(tp, self._ends[tp])
        else:
            consumer.seek_to_beginning(*everything)

    def run(
        self,
        formatter: display.Formatter,
        limit: int | None,
        since: int | None,
        until: int | None,
        follow: bool,
    ) -> None:
        consumer = self._consumer
        out = sys.stdout.buffer
        open_partitions = set(self._all)
        while follow or open_partitions:
            if not follow:
                self._close_finished(open_partitions)
                if not open_partitions:
                    break
            for tp, records in consumer.poll(timeout_ms=POLL_MS).items():
                if tp not in open_partitions:
                    continue
                for record in records:
                    if not follow and record.offset >= self._ends[tp]:
                        break
                    if until is not None and record.timestamp >= until:
                        # A producer's own time stamps may go back and forth; the server's only go on.
                        if record.timestamp_type == LOG_APPEND_TIME:
                            self._ends[tp] = record.offset
                            break
                        continue
                    if since is not None and record.timestamp < since:
                        continue
                    out.write(formatter(record))
                    self.printed += 1
                    if self.printed == limit:
                        out.flush()
                        return
            out.flush()

    def _close_finished(self, open_partitions: set[TopicPartition]) -> None:
        for tp in list(open_partitions):
            if self._consumer.position(tp) >= self._ends[tp]:
                open_partitions.discard(tp)
                self._consumer.pause(tp)


def _chosen(tp: TopicPartition, offset: int, start: int, end: int) -> int:
    """The offset to start at; a negative one counts from the end and stops at the start."""
    from logstore.errors import OffsetOutOfRangeError

    if offset < 0:
        return max(start, end + offset)
    if not start <= offset <= end:
        raise OffsetOutOfRangeError(
            f"Offset {offset} is not in partition {tp.partition} of {tp.topic!r}, which "
            + (f"holds {start} to {end - 1}." if end > start else f"is empty at {end}."),
            advice="Give an offset in the range, or --from-beginning.",
        )
    return offset
