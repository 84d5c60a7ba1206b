"""``logstore produce``: records from a file or stdin to a topic."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from logstore.cli.arguments import ACKS, ACKS_HELP, LINGER_HELP, property_option, topic_argument
from logstore.cli.clients import open_producer
from logstore.cli.failures import told_when_interrupted
from logstore.cli.feed import Feed, chunks
from logstore.cli.lines import Line, json_parser, line_parser
from logstore.cli.output import counted, human_count, note, print_json, progress_bar
from logstore.cli.root import Command, connection_options, output_option, settings

__all__ = ["produce"]

DRAIN_SECONDS: Final = 2.0
"""After Ctrl-C: how long records that are on their way may take to be acknowledged."""


def _header(
    ctx: click.Context, param: click.Parameter, pairs: Sequence[str]
) -> list[tuple[str, bytes | None]]:
    headers: list[tuple[str, bytes | None]] = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.", ctx, param)
        headers.append((name, os.fsencode(value) if equals else None))
    return headers


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> bytes | None:
    r"""What was typed as bytes; ``\t`` is a tab."""
    return None if text is None else os.fsencode(text.replace("\\t", "\t"))


def _separator(ctx: click.Context, param: click.Parameter, text: str | None) -> bytes | None:
    if text == "":
        raise click.BadParameter("a separator cannot be empty.", ctx, param)
    return _bytes(ctx, param, text)


@click.command(
    cls=Command,
    examples=(
        "echo hello | logstore produce orders",
        "echo 'alice:hello' | logstore produce orders --key-separator : --header source=shell",
        """echo '{"key": "alice", "value": {"total": 12}}' | logstore produce orders --format jsonl""",
        "logstore produce orders --file orders.jsonl --format jsonl --acks all",
    ),
)
@topic_argument()
@click.option(
    "-f",
    "--file",
    "source",
    type=click.File("rb"),
    default="-",
    metavar="PATH",
    help="Read this file.  [default: stdin]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["line", "jsonl"]),
    default="line",
    show_default=True,
    help="A line is a value, or a JSON object with key, value, headers, partition and timestamp.",
)
@click.option(
    "-k",
    "--key-separator",
    callback=_separator,
    metavar="TEXT",
    help=r"In a line, what ends the key and begins the value; \t is a tab.",
)
@click.option("--key", callback=_bytes, metavar="TEXT", help="The key of every record that brings none.")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    callback=_header,
    metavar="NAME=VALUE",
    help="A header for every record.  Repeatable; NAME alone is a header without a value.",
)
@click.option(
    "--null-value", callback=_bytes, metavar="TEXT", help="A line's value that stands for a tombstone."
)
@click.option(
    "-p",
    "--partition",
    metavar="N",
    type=click.IntRange(0),
    help="The partition of every record.  [default: by key]",
)
@click.option("--repartition", is_flag=True, help="Ignore the partition field of JSON lines.")
@click.option(
    "--acks",
    type=ACKS,
    default="all",
    show_default=True,
    help=ACKS_HELP,
)
@click.option(
    "--linger-ms",
    metavar="N",
    type=click.IntRange(0),
    help=f"{LINGER_HELP}  [default: 5]",
)
@property_option("producer")
@click.option(
    "--progress/--no-progress", default=None, help="Show a bar.  [default: on a terminal, for a file]"
)
@output_option("text", "json")
@connection_options
def produce(
    topic: str,
    source: IO[bytes],
    form: str,
    key_separator: bytes | None,
    key: bytes | None,
    headers: list[tuple[str, bytes | None]],
    null_value: bytes | None,
    partition: int | None,
    repartition: bool,
    acks: str,
    linger_ms: int | None,
    client_properties: dict[str, Any],
    progress: bool | None,
) -> None:
    """Write records from a file or stdin to a topic.

    A line is a record.  Ends with the input; Ctrl-C stops reading, waits a moment for what is on its way
    and says how far it came.
    """
    if form == "jsonl" and (key_separator is not None or null_value is not None):
        raise click.UsageError(
            "--key-separator and --null-value are for --format line: JSON has its own key and null.",
            click.get_current_context(),
        )
    parse = (
        json_parser(keep_partition=not repartition)
        if form == "jsonl"
        else line_parser(key_separator, null_value)
    )
    options: dict[str, Any] = {"acks": acks if acks == "all" else int(acks), **client_properties}
    if linger_ms is not None:
        options["linger_ms"] = linger_ms
    with open_producer(**options) as producer, _watched(source, progress) as seen:
        # A topic that does not exist is told before anything is read.
        producer.partitions_for(topic)
        feed = Feed(producer, topic, parse, Line(None, key, headers or None, partition))

        def tell() -> None:
            feed.give_up(DRAIN_SECONDS)
            _report(feed, topic, complete=False)

        try:
            if source.isatty():
                note("A line is a record; Ctrl-D ends.")
            with told_when_interrupted(tell):
                for lines in chunks(source, seen):
                    feed.send(lines)
                feed.finish()
        except Exception:
            tell()
            raise
    _report(feed, topic, complete=True)


def _report(feed: Feed, topic: str, *, complete: bool) -> None:
    if settings().output == "json":
        print_json(feed.document(complete=complete))
        return
    records = counted(feed.acknowledged, "record")
    if not complete:
        lost = f", {human_count(feed.unknown)} not acknowledged" if feed.unknown else ""
        note(f"stopped: {records} acknowledged by {topic}{lost}")
        return
    seconds = feed.seconds()
    rate = ""
    if feed.acknowledged >= 1000 and seconds > 0:
        rate = f": {human_count(feed.acknowledged / seconds)} rec/s, {feed.bytes / seconds / 1e6:,.1f} MB/s"
    note(f"{records} to {topic} in {seconds:.2f} s{rate}")


@contextmanager
def _watched(source: IO[bytes], wanted: bool | None) -> Iterator[Callable[[int], object]]:
    """A function that takes how many bytes were read, and a bar where there is somebody to see it."""
    size = _size(source)
    if wanted is None:
        wanted = size is not None and sys.stderr.isatty()
    if not wanted:
        yield lambda read: None
        return
    with progress_bar(unit="bytes") as progress:
        task = progress.add_task("producing", total=size)
        yield lambda read: progress.update(task, completed=read)


def _size(source: IO[bytes]) -> int | None:
    """Bytes of a regular file; None for a pipe or terminal."""
    try:
        info = os.fstat(source.fileno())
    except (OSError, ValueError):
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None
