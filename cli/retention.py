"""``logstore retention``: what becomes of old records, and why; let them go now."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import topic_argument
from logstore.cli.output import Column, counted, human_bytes, human_count, note, print_json, print_rows
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logstore.cli.retention_plan import Holder, Part, Segment, TopicPlan, Waiting

__all__ = ["retention"]


@click.group(
    cls=Group,
    examples=("logstore retention show", "logstore retention run --dry-run", "logstore retention run"),
)
@connection_options
def retention() -> None:
    """See what becomes of old records, and let them go now.

    A worker does so by itself; see `logstore worker`.
    """


@retention.command(examples=("logstore retention show", "logstore retention show orders --output json"))
@topic_argument(many=True, required=False)
@output_option()
@connection_options
def show(topics: Sequence[str]) -> None:
    """Show the policy of topics, what they keep, and what waits to be freed."""
    from logstore.cli.retention_plan import holders, plans, snapshot, waiting

    with snapshot() as connection:
        found = plans(connection, topics)
        left = waiting(connection)
        overdue = any(each.due_ms <= each.now_ms for each in left)
        held = holders(connection) if overdue else []
    if settings().output == "json":
        print_json({"topics": [_policy(plan) for plan in found], "waiting": _waiting(left, held)})
        return
    print_rows(
        [
            "topic",
            "cleanup.policy",
            Column("retention.ms", number=True),
            Column("retention.bytes", number=True),
            Column("segments", number=True),
            Column("on disk", number=True),
            "oldest segment ends",
        ],
        [
            (
                plan.topic,
                plan.configs["cleanup.policy"] or "(for ever)",
                _limit(plan.configs["retention.ms"]),
                _limit(plan.configs["retention.bytes"]),
                human_count(len(plan.segments)),
                human_bytes(sum(segment.disk_bytes for segment in plan.segments)),
                None if plan.oldest is None else format_time(plan.oldest),
            )
            for plan in found
        ],
        empty="No topics yet: logstore topic create NAME",
    )
    for plan in found:
        for config, warning in plan.warnings:
            click.echo(f"{plan.topic}: {config} {warning}.")
    _print_waiting(left, held)


@retention.command(
    examples=(
        "logstore retention run --dry-run",
        "logstore retention run --dry-run orders --output json",
        "logstore retention run",
    )
)
@topic_argument(many=True, required=False)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go, and why.")
@output_option()
@connection_options
def run(topics: Sequence[str], dry_run: bool) -> None:
    """Let go what has expired, and give the space back.

    Closes segments that are old, moves the starts of partitions forward, drops segments that have nothing
    left, and frees their tables once file.delete.delay.ms has passed.  Keeps no append or fetch waiting.
    """
    from logstore.cli.retention_plan import plans, snapshot

    if dry_run:
        with snapshot() as connection:
            found = plans(connection, topics)
        if settings().output == "json":
            print_json(_dry_run(found))
        else:
            _print_dry_run(found)
        return
    with snapshot() as connection:
        plans(connection, topics)  # an unknown topic is an error
    _run(topics)


def _run(topics: Sequence[str]) -> None:
    from logstore.workers import job, reclaim, roll
    from logstore.workers import retention as retention_job

    schema = settings().schema
    stop = threading.Event()
    with _dsn() as dsn:
        rolled = roll.run_once(dsn, schema, topics=topics, stop=stop)
        expired = retention_job.run_once(dsn, schema, topics=topics, stop=stop)
        freed = reclaim.run_once(dsn, schema, stop=stop)
    if settings().output == "json":
        print_json({"roll": job.words(rolled), "retention": job.words(expired), "reclaim": job.words(freed)})
        return
    click.echo(
        f"{counted(len(rolled.topics), 'topic')} rolled, {counted(rolled.partitions, 'partition')} moved on."
    )
    click.echo(
        f"{counted(expired.records, 'record')} of {counted(expired.partitions, 'partition')} expired"
        f" ({human_bytes(expired.bytes)})."
    )
    click.echo(
        f"{counted(expired.segments, 'segment')} dropped ({human_bytes(expired.segment_bytes)} on disk),"
        f" {counted(freed.segments, 'table')} freed ({human_bytes(freed.bytes)})."
    )
    if expired.evacuations:
        click.echo(f"{counted(expired.evacuations, 'topic')} with mostly expired segments written anew.")
    if freed.segments_waiting:
        note("Somebody has a transaction open that dropped segments wait for: see `logstore retention show`.")


@contextmanager
def _dsn() -> Iterator[str]:
    from logstore.embedded.dsn import resolve

    resolved = resolve(settings().dsn, settings().schema)
    try:
        yield resolved.dsn
    finally:
        if resolved.keep is not None:
            resolved.keep.close()


def _print_dry_run(found: Sequence[TopicPlan]) -> None:
    going = [(plan, part) for plan in found for part in plan.going]
    print_rows(
        [
            "topic",
            Column("partition", number=True),
            Column("segment", number=True),
            "offsets",
            Column("records", number=True),
            Column("size", number=True),
            "newest record",
            "why",
        ],
        [
            (
                plan.topic,
                part.partition,
                part.segment,
                f"{part.first_offset}-{part.last_offset}",
                human_count(part.records),
                human_bytes(part.bytes),
                format_time(part.max_timestamp),
                _why(plan, part),
            )
            for plan, part in going
        ],
        empty="No record would go.",
    )
    touched = [
        (plan, segment)
        for plan in found
        for segment in plan.segments
        if segment.action != "keep" or segment.expired_bytes
    ]
    if touched:
        click.echo()
        print_rows(
            [
                "topic",
                Column("segment", number=True),
                Column("on disk", number=True),
                Column("expired", number=True),
                "then",
                "because",
            ],
            [
                (
                    plan.topic,
                    segment.number,
                    human_bytes(segment.disk_bytes),
                    f"{_share(segment):.0%}",
                    {"drop": "dropped", "rewrite": "written anew", "keep": "kept"}[segment.action],
                    _because(segment),
                )
                for plan, segment in touched
            ],
        )
    for plan in found:
        if plan.rolls:
            click.echo(f"{plan.topic}: its segment is older than segment.ms, so the next one would be made.")
    records = sum(part.records for _, part in going)
    freed = sum(segment.disk_bytes for plan in found for segment in plan.dropped)
    click.echo(f"{counted(records, 'record')} would go, {human_bytes(freed)} of disk would be freed.")


def _why(plan: TopicPlan, part: Part) -> str:
    if part.reason == "retention.ms":
        return f"older than retention.ms, {plan.configs['retention.ms']}"
    return f"the rest is retention.bytes, {plan.configs['retention.bytes']}, or more"


def _because(segment: Segment) -> str:
    if segment.action == "drop":
        return "nothing in it stays"
    kept = segment.kept_for
    shown = ", ".join(str(partition) for partition in kept[:5]) + (", ..." if len(kept) > 5 else "")
    if len(kept) == 1:
        return f"partition {shown} has records that stay"
    return f"partitions {shown} have records that stay"


def _share(segment: Segment) -> float:
    return segment.expired_bytes / segment.bytes if segment.bytes else 1.0


def _limit(value: str) -> str | None:
    return None if value == "-1" else human_count(int(value))


def _print_waiting(left: Sequence[Waiting], held: Sequence[Holder]) -> None:
    for each in left:
        overdue = each.due_ms <= each.now_ms
        click.echo(
            f"{each.topic or '(deleted topics)'}: {counted(each.segments, 'dropped segment')} "
            f"({human_bytes(each.bytes)}) still on disk, "
            f"to be freed {'by the next run' if overdue else f'from {format_time(each.due_ms)} on'}."
        )
    for holder in held:
        click.echo(
            f"An open transaction may be in the way: pid {holder.pid}, {holder.application or 'no name'}, "
            f"{holder.state}, for {holder.seconds:,.0f} s."
        )


def _policy(plan: TopicPlan) -> dict[str, Any]:
    return {
        "topic": plan.topic,
        "configs": plan.configs,
        "segments": len(plan.segments),
        "disk_bytes": sum(segment.disk_bytes for segment in plan.segments),
        "oldest_segment_ends": plan.oldest,
        "warnings": [{"config": config, "warning": warning} for config, warning in plan.warnings],
    }


def _waiting(left: Sequence[Waiting], held: Sequence[Holder]) -> dict[str, Any]:
    return {
        "segments": [
            {"topic": each.topic, "segments": each.segments, "bytes": each.bytes, "free_at": each.due_ms}
            for each in left
        ],
        "open_transactions": [holder._asdict() for holder in held],
    }


def _dry_run(found: Sequence[TopicPlan]) -> dict[str, Any]:
    return {
        "dry_run": True,
        "records": sum(part.records for plan in found for part in plan.going),
        "disk_bytes": sum(segment.disk_bytes for plan in found for segment in plan.dropped),
        "topics": [
            {
                "topic": plan.topic,
                "configs": plan.configs,
                "rolls": plan.rolls,
                "expired": [
                    {name: value for name, value in part._asdict().items() if name != "writing"}
                    for part in plan.going
                ],
                "segments": [
                    {
                        "segment": segment.number,
                        "action": segment.action,
                        "disk_bytes": segment.disk_bytes,
                        "bytes": segment.bytes,
                        "expired_bytes": segment.expired_bytes,
                        "kept_for": segment.kept_for,
                    }
                    for segment in plan.segments
                ],
            }
            for plan in found
        ],
    }
