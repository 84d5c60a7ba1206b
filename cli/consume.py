"""``logstore consume``: the records of a topic, to a terminal, a file or a program."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from logstore.cli import display
from logstore.cli.arguments import property_option, topic_argument
from logstore.cli.clients import POLL_MS, open_consumer, polls
from logstore.cli.extent import all_partitions, chosen
from logstore.cli.failures import told_when_interrupted
from logstore.cli.output import counted, note
from logstore.cli.root import Command, connection_options
from logstore.cli.timespec import TIME
from logstore.errors import OffsetOutOfRangeError
from logstore.records import LOG_APPEND_TIME, ConsumerRecord, TopicPartition

if TYPE_CHECKING:
    from logstore import Consumer

__all__ = ["consume"]


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
    "-o",
    "--format",
    "--output",
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
@click.option(
    "--read-from",
    type=click.Choice(["leader", "follower", "nearest"]),
    help="Which of the hosts in the DSN to read from.  [default: leader]",
)
@click.option(
    "--client-rack", metavar="RACK", help="With --read-from: where this runs; servers there come first."
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
    read_from: str | None,
    client_rack: str | None,
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
    if since is not None and until is not None and since >= until:
        raise click.UsageError(
            "There is nothing between --since and --until: the later one comes second.", context
        )
    if follow and until is not None:
        raise click.UsageError("--follow has no end: leave out --until.", context)
    formatter = _formatter(form, template, show, context)
    given = {"read_from": read_from, "client_rack": client_rack}
    source = {name: value for name, value in given.items() if value is not None}
    with open_consumer(
        **{"auto_offset_reset": "earliest", "max_poll_records": 5000, **client_properties, **source}
    ) as consumer:
        reader = _Reader(consumer, chosen(all_partitions(consumer, topic), [topic], partitions), follow)
        if from_beginning:
            consumer.seek_to_beginning()
        elif offset is not None:
            reader.start_at(offset)
        reader.only(since, until)
        with told_when_interrupted(lambda: note(f"stopped: {counted(reader.printed, 'record')} of {topic}")):
            reader.run(formatter, max_messages)


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

    def __init__(self, consumer: Consumer, partitions: list[TopicPartition], follow: bool) -> None:
        self._consumer = consumer
        self._all = partitions
        self._open = set(partitions)
        self._follow = follow
        self._since: int | None = None
        self._until: int | None = None
        self.printed = 0
        # A reader that does not follow reads no further than the log reached when it began.
        self._ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        if follow:
            for tp, end in self._ends.items():
                consumer.seek(tp, end)
        else:
            consumer.seek_to_beginning()

    def start_at(self, offset: int) -> None:
        starts = self._consumer.beginning_offsets(self._all)
        for tp in self._all:
            self._consumer.seek(tp, _start(tp, offset, starts[tp], self._ends[tp]))

    def only(self, since: int | None, until: int | None) -> None:
        """Only records with a time stamp in the span; starts at the first of them."""
        self._since, self._until = since, until
        if since is not None:
            found = self._consumer.offsets_for_times(dict.fromkeys(self._all, since))
            for tp in self._all:
                at = found.get(tp)
                self._consumer.seek(tp, self._ends[tp] if at is None else at.offset)

    def run(self, formatter: display.Formatter, limit: int | None) -> None:
        """Prints until the end, ``limit`` records, or for ever."""
        out = sys.stdout.buffer
        polled = self._polls_for_ever() if self._follow else polls(self._consumer)
        while self._follow or self._more_to_read():
            for tp, records in next(polled).items():
                if tp not in self._open:
                    continue
                records = self._wanted(tp, records)
                if limit is not None:
                    records = records[: limit - self.printed]
                # Counted first: Ctrl-C may come as soon as they can be seen.
                self.printed += len(records)
                out.write(b"".join(map(formatter, records)))
            out.flush()
            if self.printed == limit:
                return

    def _polls_for_ever(self) -> Iterator[dict[TopicPartition, list[ConsumerRecord]]]:
        while True:
            yield self._consumer.poll(timeout_ms=POLL_MS)

    def _more_to_read(self) -> bool:
        for tp in list(self._open):
            if self._consumer.position(tp) >= self._ends[tp]:
                self._open.discard(tp)
                self._consumer.pause(tp)
        return bool(self._open)

    def _wanted(self, tp: TopicPartition, records: list[ConsumerRecord]) -> list[ConsumerRecord]:
        """Those before the end, with a time stamp in the span."""
        if not self._follow and records[-1].offset >= self._ends[tp]:
            records = [record for record in records if record.offset < self._ends[tp]]
        if self._since is not None:
            records = [record for record in records if record.timestamp >= self._since]
        if self._until is not None:
            late = next((record for record in records if record.timestamp >= self._until), None)
            if late is not None and late.timestamp_type == LOG_APPEND_TIME:
                # The server's time stamps never go back: nothing that follows can be in the span.  A
                # producer's own may, so that there everything has to be looked at.
                self._ends[tp] = min(self._ends[tp], late.offset)
            records = [record for record in records if record.timestamp < self._until]
        return records


def _start(tp: TopicPartition, offset: int, start: int, end: int) -> int:
    """The offset to start at; a negative one counts from the end and stops at the start."""
    if offset < 0:
        return max(start, end + offset)
    if not start <= offset <= end:
        raise OffsetOutOfRangeError(
            f"Offset {offset} is not in partition {tp.partition} of {tp.topic!r}, which "
            + (f"holds {start} to {end - 1}." if end > start else f"is empty at {end}."),
            advice="Give an offset in the range, or --from-beginning.",
        )
    return offset
