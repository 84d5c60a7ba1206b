"""``logstore produce``: records from a file or stdin to a topic."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import IO, TYPE_CHECKING, Any, Final

import click

from logstore.cli.arguments import ACKS, property_option, topic_argument
from logstore.cli.clients import open_producer
from logstore.cli.lines import Line, Parser, json_parser, line_parser
from logstore.cli.output import counted, human_bytes, human_count, note, print_json
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.errors import LogstoreError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from logstore import Producer, SendFuture

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
    "--acks", type=ACKS, default="all", show_default=True, help="What acknowledged means; see docs/cli.md."
)
@click.option(
    "--linger-ms", metavar="N", type=click.IntRange(0), help="How long a record may wait for company."
)
@property_option("producer")
@click.option("--progress/--no-progress", default=None, help="[default: on a terminal, when reading a file]")
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
    defaults = Line(None, key, headers or None, partition)
    with open_producer(**options) as producer:
        run = _Run(producer, topic)
        try:
            with _progress(source, progress) as lines:
                for number, line in enumerate(lines, 1):
                    run.send(_completed(parse, line, number, defaults), number)
            run.finish(None)
        except BaseException:
            # Whatever ends it, say how far it came; the error itself is told by whoever catches it.
            run.finish(DRAIN_SECONDS)
            run.report(complete=False)
            raise
        run.report(complete=True)


def _completed(parse: Parser, line: bytes, number: int, defaults: Line) -> Line:
    record = parse(line[:-1] if line.endswith(b"\n") else line, number)
    return Line(
        record.value,
        defaults.key if record.key is None else record.key,
        [*(defaults.headers or ()), *record.headers] if record.headers else defaults.headers,
        defaults.partition if record.partition is None else record.partition,
        record.timestamp_ms,
    )


class _Run:
    """Records on their way and what became of them; raises the first failure."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._waiting: deque[tuple[int, int, SendFuture]] = deque()
        self._began = time.perf_counter()
        self._partitions: dict[int, list[int]] = {}
        self.acknowledged = 0
        self.bytes = 0
        self.unknown = 0

    def send(self, record: Line, number: int) -> None:
        if not self.acknowledged and not self._waiting:
            self._began = time.perf_counter()
        try:
            future = self._producer.send(
                self._topic,
                value=record.value,
                key=record.key,
                headers=record.headers,
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
        except LogstoreError as error:
            raise _of_line(error, number) from error
        self._waiting.append((number, len(record.value or b"") + len(record.key or b""), future))
        self._settle()

    def _settle(self) -> None:
        """Counts what has been answered, from the oldest on."""
        while self._waiting and self._waiting[0][2].done():
            number, size, future = self._waiting.popleft()
            metadata = future.outcome()
            if isinstance(metadata, LogstoreError):
                raise _of_line(metadata, number)
            self.acknowledged += 1
            self.bytes += size
            seen = self._partitions.setdefault(metadata.partition, [0, metadata.offset, metadata.offset])
            seen[0] += 1
            seen[2] = metadata.offset

    def finish(self, timeout_s: float | None) -> None:
        """Waits for every answer.  With a time, gives up after it and raises nothing."""
        if timeout_s is None:
            self._producer.flush()
            self._settle()
            return
        with suppress(Exception):
            self._producer.flush(timeout_s)
        for _, size, future in self._waiting:
            if future.succeeded():
                self.acknowledged += 1
                self.bytes += size
            else:
                self.unknown += 1
        self._waiting.clear()

    def report(self, *, complete: bool) -> None:
        seconds = time.perf_counter() - self._began
        if settings().output == "json":
            print_json(self._document(seconds, complete))
            return
        records = counted(self.acknowledged, "record")
        rate = ""
        if self.acknowledged >= 1000 and seconds > 0:
            rate = (
                f": {human_count(self.acknowledged / seconds)} rec/s, {human_bytes(self.bytes / seconds)}/s"
            )
        if complete:
            note(f"{records} to {self._topic} in {seconds:.2f} s{rate}")
        else:
            lost = f", {human_count(self.unknown)} not acknowledged" if self.unknown else ""
            note(f"stopped: {records} acknowledged by {self._topic}{lost}")

    def _document(self, seconds: float, complete: bool) -> Mapping[str, Any]:
        return {
            "topic": self._topic,
            "complete": complete,
            "records": self.acknowledged,
            "not_acknowledged": self.unknown,
            "bytes": self.bytes,
            "seconds": round(seconds, 6),
            "partitions": [
                {"partition": partition, "records": count, "first_offset": first, "last_offset": last}
                for partition, (count, first, last) in sorted(self._partitions.items())
            ],
        }


def _of_line(error: LogstoreError, number: int) -> LogstoreError:
    """The same error, saying which line of the input it is about."""
    return type(error)(f"Line {number}: {error.message}", advice=error.advice, details=error.details)


def _progress(source: IO[bytes], wanted: bool | None) -> AbstractContextManager[Iterator[bytes]]:
    """The lines of the input, with a bar on stderr where there is somebody to see it."""
    size = _size(source)
    if wanted is None:
        wanted = size is not None and sys.stderr.isatty()
    if not wanted:
        return nullcontext(iter(source))
    return _Bar(source, size)


def _size(source: IO[bytes]) -> int | None:
    """Bytes of a regular file; None for a pipe or terminal."""
    try:
        info = os.fstat(source.fileno())
    except (OSError, ValueError):
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


class _Bar:
    """A progress bar by bytes read."""

    EVERY: Final = 256

    def __init__(self, source: IO[bytes], size: int | None) -> None:
        self._source = source
        self._size = size

    def __enter__(self) -> Iterator[bytes]:
        from logstore.cli.output import progress_bar

        self._progress = progress_bar(unit="bytes")
        self._progress.start()
        self._task = self._progress.add_task("producing", total=self._size)
        return self._lines()

    def _lines(self) -> Iterator[bytes]:
        read = 0
        for number, line in enumerate(self._source):
            read += len(line)
            if number % self.EVERY == 0:
                self._progress.update(self._task, completed=read)
            yield line
        self._progress.update(self._task, completed=read)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
