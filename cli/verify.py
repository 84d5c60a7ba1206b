"""``logstore verify``: an auditor for a live log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from logstore.cli.arguments import topic_argument
from logstore.cli.clients import open_admin
from logstore.cli.display import escape_controls
from logstore.cli.failures import CheckFailed
from logstore.cli.output import Column, counted, human_count, print_json, print_rows, progress_bar
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.errors import UnknownTopicOrPartitionError

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

__all__ = ["verify"]

EXAMPLES: Final = 20
"""Findings of one check in one place that are shown; the rest is counted."""
FINDING: Final = '"check", topic, "partition", segment, "offset", "group", found, total'


class Check(NamedTuple):
    name: str
    warning: bool
    holds: str
    """What is true when it is green."""
    advice: str
    """What to do when it is red."""


class Finding(NamedTuple):
    check: str
    topic: str | None
    partition: int | None
    segment: int | None
    offset: int | None
    group: str | None
    found: str

    @property
    def where(self) -> str:
        words = [] if self.topic is None else [self.topic]
        if self.partition is not None:
            words = [f"{words[0]}-{self.partition}" if words else f"partition {self.partition}"]
        words += [] if self.segment is None else [f"segment {self.segment}"]
        words += [] if self.offset is None else [f"offset {self.offset}"]
        words += [] if self.group is None else [f"group {escape_controls(self.group)}"]
        return ", ".join(words) or "the log"


@dataclass
class Audit:
    """What was looked at, and what came out."""

    checks: list[Check]
    snapshot: str = ""
    topics: int = 0
    partitions: int = 0
    segments: int = 0
    records: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    """How many findings there are, by check: also those that were only counted."""

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        counted_already = set()
        for *finding, total in rows:
            found = Finding(*finding)
            self.findings.append(found)
            if found.check not in counted_already:
                counted_already.add(found.check)
                self.totals[found.check] = self.totals.get(found.check, 0) + total

    @property
    def red(self) -> list[Check]:
        return [check for check in self.checks if self.totals.get(check.name) and not check.warning]

    @property
    def ok(self) -> bool:
        return not self.red


@click.command(
    cls=Command,
    examples=(
        "logstore verify",
        "logstore verify orders --output json",
        "logstore verify --no-arrays",
    ),
)
@topic_argument(many=True, required=False)
@click.option(
    "--arrays/--no-arrays",
    default=True,
    help="Also compare the arrays of each batch with its columns, which reads all data.  [default: arrays]",
)
@output_option()
@connection_options
def verify(topics: Sequence[str], arrays: bool) -> None:
    """Check a log that is in use: is everything there, once, in order?

    Only reads, everything in one snapshot, and keeps nobody waiting; without topics it checks them all.
    Exits with 1 when something is wrong; a warning alone is no failure.  What it cannot see: records at the
    end of a partition that were deleted by hand, where no group has read them.
    """
    with _snapshot() as connection:
        audit = _audit(connection, list(dict.fromkeys(topics)), arrays=arrays)
    if settings().output == "json":
        _print_document(audit)
    else:
        _print_report(audit)
    if not audit.ok:
        names = ", ".join(check.name for check in audit.red)
        raise CheckFailed(f"{len(audit.red)} of {len(audit.checks)} checks failed: {names}.")


@contextmanager
def _snapshot() -> Iterator[Connection]:
    """A transaction that sees one state of the log, and could not change it."""
    from psycopg import IsolationLevel

    from logstore.cli.query import connected, search_path
    from logstore.embedded.dsn import resolve

    with open_admin() as admin:
        admin.list_topics()  # says what to do when there is no log, or an older one
        resolved = resolve(settings().dsn, settings().schema)
        try:
            with connected(resolved.dsn, settings().schema) as connection:
                connection.rollback()
                connection.isolation_level = IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                connection.execute(search_path(settings().schema, local=True))
                yield connection
        finally:
            if resolved.keep is not None:
                resolved.keep.close()


def _audit(connection: Connection, topics: list[str], *, arrays: bool) -> Audit:
    began = time.monotonic()
    checks = connection.execute(
        'SELECT "check", warning, holds, advice FROM verify_checks() ORDER BY ordinal'
    )
    audit = Audit([Check(*row) for row in checks])
    plan = connection.execute(
        "SELECT topic, topic_id, partitions, segment, bytes FROM verify_plan(%s)", [topics or None]
    ).fetchall()
    known = {topic: (topic_id, partitions) for topic, topic_id, partitions, _, _ in plan}
    for topic in topics:
        if topic not in known:
            raise UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    audit.snapshot, audit.records = connection.execute(
        "SELECT pg_current_snapshot()::text, coalesce(sum(records), 0)::int8 FROM partitions"
        " WHERE %s::text[] IS NULL OR topic = ANY (%s)",
        [topics or None, topics],
    ).fetchone() or ("", 0)
    audit.topics = len(known)
    audit.partitions = sum(partitions for _, partitions in known.values())
    audit.segments = sum(segment is not None for *_, segment, _ in plan)

    def look(function: str, *arguments: int | bool) -> None:
        marks = ", ".join(["%s"] * (len(arguments) + 1))
        rows = connection.execute(
            f"SELECT {FINDING} FROM {function}({marks})".encode(),  # noqa: S608 (our own names)
            [*arguments, EXAMPLES],
        )
        audit.add(rows.fetchall())

    if not topics:
        look("verify_strays")
    bar = progress_bar(unit="bytes")
    bar.disable = not bar.console.is_terminal
    with bar:
        task = bar.add_task("verify", total=sum(size for *_, size in plan))
        for topic_id, _ in known.values():
            look("verify_catalog", topic_id)
        for topic, topic_id, _, segment, size in plan:
            bar.update(task, description=escape_controls(topic)[:20])
            if segment is not None:
                look("verify_segment", topic_id, segment, arrays)
            bar.advance(task, size)
        for topic_id, _ in known.values():
            for function in ("verify_producers", "verify_groups", "verify_share", "verify_files"):
                look(function, topic_id)
    audit.seconds = time.monotonic() - began
    return audit


def _verdict(audit: Audit, check: Check) -> str:
    if not audit.totals.get(check.name):
        return "ok"
    return "warning" if check.warning else "FAILED"


def _print_report(audit: Audit) -> None:
    print_rows(
        ["check", "verdict", Column("findings", number=True), "what holds when it is ok"],
        [
            (check.name, _verdict(audit, check), human_count(audit.totals.get(check.name, 0)), check.holds)
            for check in audit.checks
        ],
    )
    for check in audit.checks:
        examples = [found for found in audit.findings if found.check == check.name]
        if not examples:
            continue
        click.echo(f"\n{check.name}: {_verdict(audit, check)}. {check.advice}")
        for each in examples:
            click.echo(f"  {each.where}: {escape_controls(each.found)}")
        more = audit.totals[check.name] - len(examples)
        if more > 0:
            click.echo(f"  … and {human_count(more)} more")
    parts = [
        counted(audit.topics, "topic"), counted(audit.partitions, "partition"),
        counted(audit.segments, "segment"), counted(audit.records, "record"),
    ]  # fmt: skip
    said = "everything holds" if audit.ok else f"{counted(len(audit.red), 'check')} failed"
    click.echo(f"\n{', '.join(parts)} in {audit.seconds:.1f} s: {said}")


def _print_document(audit: Audit) -> None:
    print_json(
        {
            "ok": audit.ok,
            "snapshot": audit.snapshot,
            "topics": audit.topics,
            "partitions": audit.partitions,
            "segments": audit.segments,
            "records": audit.records,
            "seconds": round(audit.seconds, 3),
            "checks": [
                {
                    **check._asdict(),
                    "verdict": _verdict(audit, check).lower(),
                    "findings": audit.totals.get(check.name, 0),
                }
                for check in audit.checks
            ],
            "findings": [found._asdict() for found in audit.findings],
        }
    )
