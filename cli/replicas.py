"""``logstore replicas``, and what other commands show of the log's copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.clients import open_admin
from logstore.cli.output import Column, counted, human_bytes, note, print_json, print_rows
from logstore.cli.root import Command, connection_options, output_option, settings

if TYPE_CHECKING:
    from logstore.replicas import PartitionReplicas, Replica

__all__ = [
    "CONDITIONS",
    "copies",
    "counts",
    "line",
    "print_partitions",
    "replicas",
    "summary_line",
    "tell_unknown",
]

CONDITIONS = ("under_replicated", "under_min_isr", "at_min_isr")


@click.command(cls=Command, examples=("logstore replicas", "logstore replicas --output json"))
@output_option()
@connection_options
def replicas() -> None:
    """Show the servers that have a copy of the log, or should have.

    All topics have the same.  `topic describe --under-replicated-partitions` shows what they are too few for.
    """
    with open_admin() as admin:
        found = admin.describe_replicas()
        partitions = admin.describe_partition_replicas()
    summary = counts(partitions)
    if settings().output == "json":
        print_json({"replicas": [each._asdict() for each in found], "partitions": summary})
        return
    print_rows(
        [
            "name",
            "role",
            "state",
            "sync",
            "in sync",
            "address",
            Column("flush lag", number=True),
            Column("replay lag", number=True),
            "rack",
        ],
        [
            (
                each.name,
                each.role,
                each.state,
                each.sync_state,
                None if each.in_sync is None else "yes" if each.in_sync else "no",
                each.address,
                _lag(each.flush_lag_bytes, each.flush_lag_ms),
                _lag(each.replay_lag_bytes, each.replay_lag_ms),
                each.rack,
            )
            for each in found
        ],
    )
    click.echo()
    click.echo(summary_line(summary))
    tell_unknown(found)


def tell_unknown(found: Sequence[Replica]) -> None:
    """Say why a part of the answer is missing, if one is."""
    if any(each.state == "unseen" for each in found):
        note("The owner of the log may not see its followers: GRANT pg_read_all_stats TO it.")
    elif found and all(each.in_sync is None for each in found):
        note("This is a follower, which cannot tell who is in sync: ask the leader.")


def _lag(size: int | None, milliseconds: int | None) -> str | None:
    if size is None:
        return None
    return human_bytes(size) + (f", {milliseconds:,} ms" if milliseconds else "")


def counts(partitions: Sequence[PartitionReplicas]) -> dict[str, int | None]:
    """How many partitions there are, and of how many each condition holds; None: that is not known."""
    return {"count": len(partitions)} | {
        condition: None
        if any(getattr(each, condition) is None for each in partitions)
        else sum(getattr(each, condition) for each in partitions)
        for condition in CONDITIONS
    }


def summary_line(summary: dict[str, int | None]) -> str:
    """The same in words."""
    held = counted(summary["count"] or 0, "partition")
    if any(summary[name] is None for name in CONDITIONS):
        return f"{held}: whether enough servers have them is not known here"
    words = ("under-replicated", "under min ISR", "at min ISR")
    return f"{held}: " + ", ".join(
        f"{summary[name]} {word}" for name, word in zip(CONDITIONS, words, strict=True)
    )


def copies(partition: PartitionReplicas) -> dict[str, Any]:
    """One partition's copies, for JSON."""
    document = partition._asdict()
    del document["topic"], document["partition"], document["replication_factor"]
    return document


def print_partitions(found: Sequence[PartitionReplicas], *, json: bool) -> None:
    """Those that a condition holds for, as ``kafka-topics --describe`` lists them."""
    if json:
        print_json([each._asdict() for each in found])
        return
    print_rows(
        ["topic", Column("partition", number=True), "leader", "replicas", "in sync", "why"],
        [
            (
                each.topic,
                each.partition,
                each.leader,
                _names(each.replicas),
                _names(each.in_sync),
                _why(each),
            )
            for each in found
        ],
        empty="None.",
    )


def line(partition: PartitionReplicas) -> str:
    """The copies of a topic's partitions in one line."""
    text = f"leader {partition.leader}, "
    if partition.replicas == [partition.leader]:
        text += "no followers"
    else:
        text += f"replicas {_names(partition.replicas) or 'unknown'}"
        text += f", in sync {_names(partition.in_sync) or 'unknown'}"
    why = _why(partition)
    return text + (f" ({why})" if why else "")


def _names(names: list[str] | None) -> str | None:
    return None if names is None else ",".join(names)


def _why(partition: PartitionReplicas) -> str:
    if partition.under_replicated is None:
        return "not known"
    reasons = []
    if partition.under_replicated:
        reasons.append(f"under-replicated: replication factor {partition.replication_factor}")
    if partition.under_min_isr:
        reasons.append(f"under min ISR: min.insync.replicas {partition.min_insync_replicas}")
    elif partition.at_min_isr and partition.min_insync_replicas > 1:
        reasons.append(f"at min ISR: min.insync.replicas {partition.min_insync_replicas}")
    return "; ".join(reasons)
