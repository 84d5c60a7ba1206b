"""``logstore topic erase``: the right to erasure."""

from __future__ import annotations

import os
import time

import click

from logstore.cli.arguments import confirm, topic_argument, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.display import safe
from logstore.cli.output import Column, human_count, print_json, print_rows
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.cli.timespec import format_time
from logstore.erasures import Erasure

__all__ = ["erase"]

CANNOT_REACH = "It cannot reach the write-ahead log, backups, and copies in other topics."


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


@click.command(
    cls=Command,
    examples=(
        "logstore topic erase customers --key alice",
        "logstore topic erase customers --key alice --now --yes",
        "logstore topic erase customers --list",
    ),
)
@topic_argument()
@click.option("-k", "--key", metavar="KEY", callback=_bytes, help="The key.")
@click.option("--list", "listing", is_flag=True, help="Show what was to be erased, and how far that is.")
@click.option("--now", is_flag=True, help="Do it now, instead of leaving it to a worker.")
@yes_option
@output_option()
@connection_options
def erase(topic: str, key: bytes | None, listing: bool, now: bool, yes: bool) -> None:
    """Erase every record of a key from a topic.

    A worker writes the segments that have the key anew, without it; offsets stay valid, records with the key
    that come later stay, and a row for the audit stays (with the key's SHA-256).  It cannot reach the
    server's write-ahead log, backups, and copies in other topics, such as dead letters.
    """
    if listing == (key is not None):
        raise click.UsageError("Give one of --key and --list.", click.get_current_context())
    with open_admin() as admin:
        if key is not None:
            admin.describe_topic(topic)
            confirm(
                f"Erase every record with the key {safe(key)} from {topic} for good?  {CANNOT_REACH}", yes=yes
            )
            erasure_id = admin.erase_key(topic, key)
            if now and admin.dsn is not None:
                _do_it(admin.dsn)
            erasures = [each for each in admin.list_erasures(topic) if each.erasure_id == erasure_id]
        else:
            erasures = admin.list_erasures(topic)
    if settings().output == "json":
        print_json([{**each._asdict(), "state": _state(each)} for each in erasures])
        return
    print_rows(
        [
            Column("erasure", number=True),
            "state",
            Column("records", number=True),
            "asked at",
            "by",
            "removed at",
            "SHA-256 of the key",
        ],
        [
            (
                each.erasure_id,
                _state(each),
                human_count(each.records),
                format_time(each.requested_at),
                each.requested_by,
                None if each.removed_at is None else format_time(each.removed_at),
                each.key_sha256[:16],
            )
            for each in erasures
        ],
        empty=f"Nothing was to be erased from {topic}.",
    )


def _do_it(dsn: str) -> None:
    from logstore.workers import erasure

    while erasure.run_once(dsn, settings().schema, duty=1.0).more:
        # It may be a worker's turn.
        time.sleep(0.1)


def _state(erasure: Erasure) -> str:
    if erasure.finished_at is not None:
        return "finished"
    return "pending" if erasure.removed_at is None else "removed"
