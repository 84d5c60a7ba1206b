"""``logstore tier``: the files of sealed segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from logstore.cli.arguments import topic_argument
from logstore.cli.clients import open_admin
from logstore.cli.failures import CheckFailed
from logstore.cli.output import Column, counted, human_bytes, human_count, note, print_json, print_rows
from logstore.cli.reset import Duration
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time
from logstore.errors import LogstoreError, UnknownTopicOrPartitionError

if TYPE_CHECKING:
    from logstore.workers.connections import Connection

__all__ = ["tier"]

LISTED: Final = (
    "topic", "partition", "first_offset", "last_offset", "records", "bytes", "state", "also_local", "url",
    "sha256", "min_timestamp", "max_timestamp", "verified_at", "keep_until",
)  # fmt: skip


@click.group(
    cls=Group,
    examples=("logstore tier list orders", "logstore tier verify", "logstore tier restore orders"),
)
@connection_options
def tier() -> None:
    """List, check and bring back segments that are kept as Parquet files."""


@tier.command("list", examples=("logstore tier list", "logstore tier list orders --output json"))
@topic_argument(many=True, required=False)
@output_option()
@connection_options
def list_files(topics: Sequence[str]) -> None:
    """Show what is in files, and where."""
    documents = [
        document for document in _documents(_dsn(topics)) if not topics or document["topic"] in topics
    ]
    if settings().output == "json":
        print_json(documents)
        return
    print_rows(
        [
            "topic",
            Column("partition", number=True),
            Column("first", number=True),
            Column("last", number=True),
            Column("records", number=True),
            Column("size", number=True),
            "newest record",
            "state",
            "file",
        ],
        [
            (
                document["topic"],
                document["partition"],
                document["first_offset"],
                document["last_offset"],
                None if document["records"] is None else human_count(document["records"]),
                None if document["bytes"] is None else human_bytes(document["bytes"]),
                document["max_timestamp"],
                "in both" if document["state"] == "copied" and document["also_local"] else document["state"],
                document["url"],
            )
            for document in documents
        ],
        empty="Nothing is in files.",
    )


@tier.command(
    examples=("logstore tier verify", "logstore tier verify orders", "logstore tier verify --unknown")
)
@topic_argument(many=True, required=False)
@click.option(
    "--unknown",
    is_flag=True,
    help="Also name the files that are there and not this log's: another log's, or written after the "
    "moment that a backup restored.",
)
@output_option()
@connection_options
def verify(topics: Sequence[str], unknown: bool) -> None:
    """Read every file and compare it with its checksums; exit 1 when one is not what was written."""
    from logstore.tier.files import check
    from logstore.workers.connections import opened
    from logstore.workers.tier import FILE_COLUMNS, file_of

    dsn = _dsn(topics)
    with opened(dsn, settings().schema, "tier verify") as connection:
        names: dict[int, str] = dict(connection.rows("SELECT topic_id, name FROM {}.topic"))
        files = [
            file_of(row)
            for row in connection.rows(
                f"SELECT {FILE_COLUMNS} FROM {{}}.remote_file ORDER BY topic_id, partition, last_offset"  # noqa: S608
            )
            if not topics or names.get(row[1], "") in topics
        ]
        strange = _unknown(connection) if unknown else []
    results: list[dict[str, Any]] = []
    for file in files:
        fault = None
        try:
            check(file)
        except LogstoreError as error:
            fault = error
        results.append(
            {
                "topic": names.get(file.topic_id),
                "partition": file.partition,
                "first_offset": file.first_offset,
                "last_offset": file.last_offset,
                "records": file.records,
                "url": file.url,
                "ok": fault is None,
                "error": None if fault is None else type(fault).__name__,
                "message": None if fault is None else str(fault),
            }
        )
    bad = [result for result in results if not result["ok"]]
    if settings().output == "json":
        document: dict[str, Any] = {"files": len(results), "bad": len(bad), "results": results}
        print_json({**document, "unknown": strange} if unknown else document)
    else:
        for result in bad:
            click.echo(f"{result['topic']}-{result['partition']}: {result['message']}")
        click.echo(
            f"{counted(len(results), 'file')} with {counted(sum(file.records for file in files), 'record')}: "
            + (
                "all as they were written."
                if not bad
                else f"{human_count(len(bad))} not as they were written."
            )
        )
        for url in strange:
            click.echo(f"not this log's: {url}")
    if bad:
        raise CheckFailed(f"{len(bad)} of {counted(len(results), 'file')} cannot be relied upon.")


@tier.command(
    examples=(
        "logstore tier restore orders",
        "logstore tier restore orders --partition 0 --from-offset 120000 --keep 7d",
    ),
)
@topic_argument()
@click.option("-p", "--partition", metavar="N", type=click.IntRange(0), help="Only this partition.")
@click.option(
    "--from-offset",
    metavar="OFFSET",
    type=click.IntRange(0),
    default=0,
    help="Only files with this offset or later ones.",
)
@click.option(
    "--keep",
    metavar="DURATION",
    default="1d",
    type=Duration(),
    show_default=True,
    help="For how long the records stay at least: 90s, 12h, 7d.",
)
@output_option()
@connection_options
def restore(topic: str, partition: int | None, from_offset: int, keep: int) -> None:
    """Bring the records of files back into PostgreSQL.

    The files stay; after --keep, local.retention.ms and local.retention.bytes apply again.
    """
    from logstore.workers.tier_restore import restore as bring_back

    came_to = bring_back(
        _dsn([topic]),
        topic,
        schema=settings().schema,
        partition=partition,
        from_offset=from_offset,
        keep_ms=keep,
    )
    if settings().output == "json":
        print_json({"topic": topic, "files": came_to.files, "records": came_to.records})
        return
    click.echo(f"{topic}: {came_to.summary()}")


@tier.command(examples=("logstore tier run", "logstore tier run orders"))
@click.argument("topic", metavar="[TOPIC]", required=False)
@output_option()
@connection_options
def run(topic: str | None) -> None:
    """Copy, release and delete now what the worker would some time."""
    from logstore.workers import roll
    from logstore.workers import tier as job
    from logstore.workers.job import words

    dsn = _dsn([topic] if topic else [])
    # What is full or old enough is sealed first.
    roll.run_once(dsn, settings().schema)
    came_to = job.run_once(dsn, settings().schema, topic=topic)
    if settings().output == "json":
        print_json(words(came_to))
        return
    click.echo(came_to.summary())


@tier.command(examples=("logstore tier location", "logstore tier location s3://bucket/log"))
@click.argument("url", metavar="[URL]", required=False)
@output_option()
@connection_options
def location(url: str | None) -> None:
    """Show or set where new files go, for topics whose remote.storage.url does not say otherwise.

    Any URL that fsspec knows; the credentials come from the environment of those who read and write.  Files
    that are there already stay where they are.
    """
    from logstore.tier.store import default_location, display

    with _connected(_dsn([])) as connection:
        if url is not None:
            connection.rows("SELECT {}.set_tier_location(%s)", url)
        found = connection.value("SELECT url FROM {}.tier_location")
    if settings().output == "json":
        print_json({"url": found})
        return
    click.echo(display(found) if found else f"{default_location()} (by default)")
    if url is not None and url.startswith(("file:", "local:")):
        note("Every machine that reads or writes these files has to reach them under this path.")


def _dsn(topics: Sequence[str | None]) -> str:
    """Where the log is, its schema having been checked; an unknown topic raises."""
    with open_admin() as admin:
        there = set(admin.list_topics())
        for name in topics:
            if name is not None and name not in there:
                raise UnknownTopicOrPartitionError(f"There is no topic {name!r}.", details={"topic": name})
        assert admin.dsn is not None
        return admin.dsn


def _unknown(connection: Connection) -> list[str]:
    """The files that are where this log's are, and that its catalog does not name."""
    from logstore.tier.store import display, files_below

    known = {url for (url,) in connection.rows("SELECT url FROM {}.remote_segment")}
    places = {url.rsplit("/topic=", 1)[0] for url in known}
    places |= {url for (url,) in connection.rows("SELECT url FROM {}.tier_location")}
    places |= {
        url
        for (url,) in connection.rows(
            "SELECT DISTINCT configs ->> 'remote.storage.url' FROM {}.topic "
            "WHERE configs ? 'remote.storage.url'"
        )
    }
    found = {url for place in places for url in files_below(place.rstrip("/"))}
    return [display(url) for url in sorted(found - known)]


def _connected(dsn: str) -> Any:
    from logstore.workers.connections import opened

    return opened(dsn, settings().schema, "tier")


def _documents(dsn: str) -> list[dict[str, Any]]:
    connection: Connection
    with _connected(dsn) as connection:
        rows = connection.rows(
            f"SELECT {', '.join(LISTED)} FROM {{}}.remote_segments "  # noqa: S608 (our own names)
            "ORDER BY topic, partition, last_offset, file_id"
        )
    documents = [dict(zip(LISTED, row, strict=True)) for row in rows]
    for document in documents:
        for name in ("min_timestamp", "max_timestamp", "verified_at", "keep_until"):
            at = document[name]
            document[name] = None if at is None else format_time(round(at.timestamp() * 1000))
    return documents
