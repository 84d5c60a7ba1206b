"""``logstore mirror``: keep a copy of topics in another log, see how far it is, let it take their place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from logstore.cli.failures import CheckFailed, redact
from logstore.cli.output import Column, counted, human_count, note, print_json, print_rows
from logstore.cli.reset import Duration
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time
from logstore.errors import LogstoreError

if TYPE_CHECKING:
    from logstore.workers.mirroring import Link

__all__ = ["mirror"]

F = TypeVar("F", bound=Callable[..., Any])

SOURCE: Final = "LOGSTORE_MIRROR_FROM"
PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0)
"""Between attempts while a server does not answer."""


def _ends(command: F) -> F:
    for option in (
        click.option(
            "--topics", metavar="NAMES", default="",
            help="Only these, separated by commas; * and ? stand for any characters.  [default: all]",
        ),
        click.option(
            "--from-schema", metavar="NAME", help="Schema of the log to copy from.  [default: --schema]"
        ),
        click.option("--to", metavar="DSN", help="The log with the copies.  [default: --dsn]"),
        click.option(
            "--from", "source", metavar="DSN", envvar=SOURCE, show_envvar=True,
            help="The log to copy from.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(
    cls=Group,
    examples=(
        "logstore mirror run --from postgresql://old/app --to postgresql://new/app",
        "logstore mirror status --from postgresql://old/app --to postgresql://new/app",
        "logstore mirror promote --from postgresql://old/app --to postgresql://new/app",
    ),
)
@connection_options
def mirror() -> None:
    """Keep a copy of topics in another log, record for record, under the same offsets.

    In the other log a mirrored topic is read-only until it is promoted.
    """


@mirror.command(
    examples=(
        "logstore mirror run --from postgresql://old/app --to postgresql://new/app",
        "logstore mirror run --from postgresql://old/app --to postgresql://new/app --once",
    ),
)
@_ends
@click.option("--once", is_flag=True, help="Copy what is there now, and exit.")
@click.option(
    "--interval", metavar="DURATION", type=Duration(), default="1s", show_default=True,
    help="How often to look for something new: 500ms, 5s, 1m.",
)  # fmt: skip
@click.option(
    "--parallel", metavar="N", type=click.IntRange(1, 64), default=4, show_default=True,
    help="How many partitions to copy at once.",
)  # fmt: skip
@click.option("--no-groups", is_flag=True, help="Leave the committed offsets of groups alone.")
@output_option()
@connection_options
def run(
    source: str | None,
    to: str | None,
    from_schema: str | None,
    topics: str,
    once: bool,
    interval: int,
    parallel: int,
    no_groups: bool,
) -> None:
    """Copy topics, and go on copying what is new, until Ctrl-C or SIGTERM.

    Offsets, time stamps, headers, keys, configs, partitions, leader epochs and the committed offsets of
    consumer groups come as they are.  It may be killed at any moment and started again, or run twice.
    """
    from logstore.workers.mirroring import Mirror

    with _both(source, to, from_schema) as link, _told_to_stop() as stop:
        failures = 0
        while not stop.is_set():
            try:
                with Mirror(link, _names(topics), parallel=parallel, groups=not no_groups) as copying:
                    while not stop.is_set():
                        cycle = copying.cycle(stop)
                        failures = 0
                        _show(cycle, always=once)
                        if once:
                            if cycle.refused:
                                raise CheckFailed(
                                    f"{counted(len(cycle.refused), 'topic')} not mirrored: "
                                    + ", ".join(sorted(cycle.refused))
                                )
                            return
                        stop.wait(interval / 1000)
            except LogstoreError as error:
                if once or not error.retriable:
                    raise
                failures += 1
                if failures == 1:
                    note(f"{redact(str(error))} Trying again.")
                stop.wait(PAUSES_S[min(failures, len(PAUSES_S)) - 1])


_said: dict[str, str] = {}


def _show(cycle: Any, *, always: bool) -> None:
    from logstore.workers.job import idle, words
    from logstore.workers.mirror import came_to

    result = came_to(cycle)
    troubles = {name: str(error) for name, error in cycle.refused.items()}
    troubles |= dict.fromkeys(cycle.missing, "gone from the source; its mirror stays")
    troubles |= {f"group {name}": "in use at the mirror; its offsets stay" for name in cycle.groups_left}
    if settings().output == "json":
        if always or not idle(result):
            print_json({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **words(result)})
        return
    for name, trouble in sorted(troubles.items()):
        if _said.get(name) != trouble:
            note(f"{name}: {redact(trouble)}")
    _said.clear()
    _said.update(troubles)
    if always or result.records or result.offsets:
        click.echo(
            f"{counted(result.records, 'record')} of {counted(len(result.topics), 'topic')} copied, "
            f"{counted(result.offsets, 'group offset')}"
            + (f"; {human_count(result.behind)} behind" if result.behind else "")
        )


@mirror.command(
    examples=(
        "logstore mirror status --from postgresql://old/app --to postgresql://new/app",
        "logstore mirror status --to postgresql://new/app --output json",
    ),
)
@_ends
@output_option()
@connection_options
def status(source: str | None, to: str | None, from_schema: str | None, topics: str) -> None:
    """Show how far each mirrored partition is behind its source.

    Without --from, or when the source cannot be reached, what was last seen of it is shown, and since when.
    Exit code 1: a topic has parted from its mirror.
    """
    from logstore.workers.mirror_status import report

    with _log(to or settings().dsn) as target:
        documents, trouble = report(
            target,
            settings().schema,
            source=source,
            source_schema=from_schema or settings().schema,
            topics=_names(topics),
        )
    for document in documents:
        for name in ("changed_at", "seen_at"):
            at = document[name]
            document[name] = None if at is None else format_time(round(at.timestamp() * 1000))
    if settings().output == "json":
        print_json(documents)
    else:
        print_rows(
            [
                "topic",
                Column("partition", number=True),
                "state",
                Column("source end", number=True),
                Column("mirror end", number=True),
                Column("behind", number=True),
                Column("seconds", number=True),
                Column("epoch", number=True),
                "seen",
                "peer",
            ],
            [
                (
                    each["topic"],
                    each["partition"],
                    each["state"],
                    each["source_end"],
                    each["mirror_end"],
                    None if each["records_behind"] is None else human_count(each["records_behind"]),
                    each["seconds_behind"],
                    each["leader_epoch"],
                    "now" if each["live"] else each["seen_at"],
                    each["peer"],
                )
                for each in documents
            ],
            empty="No topic is mirrored here.",
        )
    if trouble is not None:
        note(f"The source is shown as it was last seen: {redact(trouble)}")
    parted = sorted({each["topic"] for each in documents if each["parted"]})
    if parted:
        raise CheckFailed(f"The source has lost records that its mirror has: {', '.join(parted)}.")


@mirror.command(
    examples=(
        "logstore mirror promote --from postgresql://old/app --to postgresql://new/app",
        "logstore mirror promote --to postgresql://new/app --topics orders --force",
    ),
)
@_ends
@click.option(
    "--force",
    is_flag=True,
    help="Also if the source cannot be fenced: records may be lost, and both may lead.",
)
@click.option(
    "--timeout", metavar="DURATION", type=Duration(), default="1m", show_default=True,
    help="How long to wait for open transactions at the source, and for the last records.",
)  # fmt: skip
@output_option()
@connection_options
def promote(
    source: str | None, to: str | None, from_schema: str | None, topics: str, force: bool, timeout: int
) -> None:
    """Let mirrors take the place of the topics that they mirror.

    The source is fenced: it refuses records from then on.  What it has is copied, and then the mirror takes
    records, under a newer leader epoch.  A source that cannot be reached is fenced by nobody: stop its
    writers yourself and use --force; what may be missing is told.  With --force and without --from, a topic
    that is named and fenced takes records again.
    """
    from logstore.workers.mirroring import Link
    from logstore.workers.promotion import promote as let_lead

    schema = settings().schema
    as_table = settings().output != "json"
    with _log(to or settings().dsn) as target, _told_to_stop() as stop:
        came_to = let_lead(
            None if source is None else Link(_parsed(source), target, from_schema or schema, schema),
            target,
            _names(topics),
            schema=schema,
            force=force,
            timeout_s=timeout / 1000,
            say=note if as_table else (lambda _text: None),
            stop=stop,
        )
    if not as_table:
        print_json(
            {
                "topics": list(came_to.topics),
                "fenced": came_to.fenced,
                "epochs": came_to.epochs,
                "ends": came_to.ends,
                "groups_left": list(came_to.groups_left),
                "lacking": [
                    {
                        "topic": each.topic,
                        "partition": each.partition,
                        "mirror_end": each.end,
                        "records": each.records,
                        "seen_at": None if each.seen_at is None else each.seen_at.isoformat(),
                    }
                    for each in came_to.lacking
                ],
            }
        )
        return
    click.echo(
        f"{', '.join(came_to.topics)}: {'leads' if len(came_to.topics) == 1 else 'lead'} from now on; "
        + ("the source is fenced, and nothing is missing." if came_to.fenced else "the source is not fenced.")
    )
    for group in came_to.groups_left:
        note(f"Group {group} is in use here: it goes on from its own offsets.")
    if came_to.lacking:
        print_rows(
            ["topic", Column("partition", number=True), Column("ends at", number=True),
             Column("missing at least", number=True), "and all since"],
            [
                (
                    each.topic, each.partition, each.end,
                    "unknown" if each.records is None else human_count(each.records),
                    None if each.seen_at is None else format_time(round(each.seen_at.timestamp() * 1000)),
                )
                for each in came_to.lacking
            ],
        )  # fmt: skip


def _names(topics: str) -> list[str]:
    return [name.strip() for name in topics.split(",") if name.strip()]


def _parsed(dsn: str) -> str:
    from logstore.conninfo import parameters_of

    parameters_of(dsn)
    return dsn


@contextlib.contextmanager
def _both(source: str | None, to: str | None, from_schema: str | None) -> Iterator[Link]:
    from logstore.workers.mirroring import Link

    if source is None:
        raise click.UsageError(f"Say where to copy from: --from DSN (or {SOURCE}).")
    schema = settings().schema
    with _log(to or settings().dsn) as target, _log(source, from_schema) as checked:
        yield Link(checked, target, from_schema or schema, schema)


@contextlib.contextmanager
def _log(dsn: str | None, schema: str | None = None) -> Iterator[str]:
    """The DSN of a log whose schema is there and new enough; an embedded server is kept running meanwhile."""
    from logstore import migrations
    from logstore.embedded.dsn import resolve
    from logstore.errors import SchemaMissingError, SchemaVersionError

    schema = schema or settings().schema
    resolved = resolve(_parsed(dsn) if dsn else dsn, schema)
    try:
        found = migrations.status(resolved.dsn, schema)
        command = f"logstore db upgrade --dsn '{redact(resolved.dsn)}' --schema {schema}"
        where = redact(resolved.dsn)
        if found.current is None:
            raise SchemaMissingError(f"{where} has no log in schema {schema}.", advice=f"Run `{command}`.")
        if found.current != found.head:
            raise SchemaVersionError(
                f"The log of {where} has revision {found.current}; this release needs {found.head}.",
                advice=f"Run `{command}`." if found.current < found.head else "Install a newer release.",
            )
        yield resolved.dsn
    finally:
        if resolved.keep is not None:
            resolved.keep.close()


def _told_to_stop() -> contextlib.AbstractContextManager[threading.Event]:
    """Set by Ctrl-C and by SIGTERM; a second one ends the process."""
    from logstore.workers.stopping import stopped_by

    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext(threading.Event())
    return stopped_by(signal.SIGINT, signal.SIGTERM, twice_ends=True)
