"""``logstore latest``: the last record of a key."""

from __future__ import annotations

import os
import sys

import click

from logstore.cli.arguments import topic_argument
from logstore.cli.clients import open_consumer
from logstore.cli.display import json_formatter, safe, text_formatter
from logstore.cli.failures import CheckFailed
from logstore.cli.root import Command, connection_options, output_option, settings

__all__ = ["latest"]


@click.command(
    cls=Command,
    examples=("logstore latest customers alice", "logstore latest customers alice --output json"),
)
@topic_argument()
@click.argument("key", callback=lambda ctx, param, text: os.fsencode(text))
@click.option(
    "-p", "--partition", metavar="N", type=click.IntRange(0), default=None, help="Only in this partition."
)
@output_option("text", "json")
@connection_options
def latest(topic: str, key: bytes, partition: int | None) -> None:
    """Show the last record of KEY in a compacted topic.

    An index finds it, whatever the size of the topic.  Exit code 1: there is none, or it is a tombstone.
    """
    with open_consumer() as consumer:
        record = consumer.latest(topic, key, partition)
    if record is None:
        raise CheckFailed(f"{topic} has no record with the key {safe(key)}.")
    if settings().output == "json":
        _write(json_formatter(record))
    elif record.value is not None:
        _write(text_formatter(("partition", "offset", "key"))(record))
    if record.value is None:
        raise CheckFailed(
            f"The key was deleted: offset {record.offset} of partition {record.partition} is a tombstone."
        )


def _write(line: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
