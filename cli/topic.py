"""``logstore topic``: create, list, describe, alter, add partitions, delete."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import assignments, confirm, topic_argument, yes_option
from logstore.cli.clients import open_admin
from logstore.cli.erase import erase
from logstore.cli.extent import extents
from logstore.cli.output import Column, counted, human_count, note, print_json, print_rows
from logstore.cli.replicas import CONDITIONS, copies, line, print_partitions, tell_unknown
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time
from logstore.errors import LogstoreError
from logstore.records import TopicPartition
from logstore.topics import NewTopic

if TYPE_CHECKING:
    from logstore import Admin
    from logstore.replicas import PartitionReplicas
    from logstore.topics import ConfigEntry

__all__ = ["topic"]


@click.group(
    cls=Group,
    examples=("logstore topic create orders --partitions 4", "logstore topic describe orders"),
)
@connection_options
def topic() -> None:
    """Create, list, describe, alter and delete topics."""


@topic.command(
    examples=(
        "logstore topic create orders --partitions 4",
        "logstore topic create audit --config retention.ms=-1 --config message.timestamp.type=LogAppendTime",
    ),
)
@topic_argument(many=True)
@click.option(
    "-p",
    "--partitions",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of partitions.  It can only grow.",
)
@click.option(
    "-c",
    "--config",
    "configs",
    metavar="NAME=VALUE",
    multiple=True,
    callback=assignments,
    help="A topic config by Kafka's name.  Repeatable; see `topic describe --all`.",
)
@click.option(
    "--replication-factor",
    metavar="N",
    type=int,
    default=-1,
    help="How many servers are to have it, the leader included.  [default: -1, as many as there are]",
)
@click.option("--if-not-exists", is_flag=True, help="Be content when the topic exists already.")
@output_option()
@connection_options
def create(
    topics: Sequence[str],
    partitions: int,
    configs: dict[str, str],
    replication_factor: int,
    if_not_exists: bool,
) -> None:
    """Create one or more topics."""
    with open_admin() as admin:
        new = [NewTopic(name, partitions, replication_factor, configs) for name in topics]
        admin.create_topics(new, if_not_exists=if_not_exists)
        described = _documents(admin, topics)
        if configs:
            _warn(admin, topics)
    if settings().output == "json":
        print_json(described)
        return
    for document in described:
        count = len(document["partitions"])
        click.echo(f"{document['topic']}: {counted(count, 'partition')}")


@topic.command("list", examples=("logstore topic list", "logstore topic list --output json"))
@output_option()
@connection_options
def list_(**_: Any) -> None:
    """List the topics and how much they hold."""
    with open_admin() as admin:
        documents = _documents(admin, None)
    if settings().output == "json":
        print_json(documents)
        return
    print_rows(
        ["topic", Column("partitions", number=True), Column("records", number=True), "newest record"],
        [
            (
                document["topic"],
                len(document["partitions"]),
                human_count(sum(p["records"] for p in document["partitions"])),
                _newest(document["partitions"]),
            )
            for document in documents
        ],
        empty="No topics yet: logstore topic create NAME",
    )


@topic.command(
    examples=(
        "logstore topic describe orders",
        "logstore topic describe orders --all --output json",
        "logstore topic describe --under-min-isr-partitions",
    ),
)
@topic_argument(many=True, required=False)
@click.option(
    "--all", "everything", is_flag=True, help="All configs with what they mean, not only those set."
)
@click.option(
    "--under-replicated-partitions",
    "under_replicated",
    is_flag=True,
    help="Only partitions that fewer servers have than should; without TOPIC of all topics.",
)
@click.option(
    "--under-min-isr-partitions",
    "under_min_isr",
    is_flag=True,
    help="Only partitions that refuse acks=all: fewer servers are in sync than min.insync.replicas.",
)
@click.option(
    "--at-min-isr-partitions",
    "at_min_isr",
    is_flag=True,
    help="Only partitions that refuse acks=all when one server less is in sync.",
)
@output_option()
@connection_options
def describe(topics: Sequence[str], everything: bool, **chosen: bool) -> None:
    """Show partitions, copies and configs of topics."""
    conditions = [condition for condition in CONDITIONS if chosen[condition]]
    if not topics and not conditions:
        raise click.UsageError("Missing argument 'TOPIC...'.", click.get_current_context())
    with open_admin() as admin:
        if conditions:
            _print_conditions(admin, topics, conditions)
            return
        documents = _documents(admin, topics, configs=True)
        held = {each.topic: each for each in admin.describe_partition_replicas(topics)}
    for document in documents:
        kept = held.get(document["topic"])
        document["replication_factor"] = kept and kept.replication_factor
        if kept is not None:
            # It is the same for all partitions of a topic.
            for partition in document["partitions"]:
                partition |= copies(kept)
    if settings().output == "json":
        print_json(documents)
        return
    for number, document in enumerate(documents):
        if number:
            click.echo()
        _print_description(document, held.get(document["topic"]), everything)


def _print_conditions(admin: Admin, topics: Sequence[str], conditions: Sequence[str]) -> None:
    if topics:
        admin.describe_topics(topics)  # an unknown one raises
    found = [
        each
        for each in admin.describe_partition_replicas(topics or None)
        # What is not known is shown: silence would be taken for health.
        if any(getattr(each, condition) is not False for condition in conditions)
    ]
    print_partitions(found, json=settings().output == "json")
    if any(each.under_replicated is None for each in found):
        tell_unknown(admin.describe_replicas())


def _print_description(document: dict[str, Any], held: PartitionReplicas | None, everything: bool) -> None:
    partitions = document["partitions"]
    click.echo(click.style(document["topic"], bold=True))
    if held is not None:
        click.echo(line(held))
    print_rows(
        [
            Column("partition", number=True),
            Column("start", number=True),
            Column("end", number=True),
            Column("records", number=True),
            "newest record",
        ],
        [
            (
                entry["partition"],
                entry["start_offset"],
                entry["end_offset"],
                human_count(entry["records"]),
                _newest([entry]),
            )
            for entry in partitions
        ],
    )
    click.echo()
    configs = document["configs"]
    if everything:
        print_rows(
            ["config", "value", "default", "meaning"],
            [(c["name"], c["value"], c["default"], c["doc"]) for c in configs],
        )
        return
    print_rows(
        ["config", "value", "default"],
        [(c["name"], c["value"], c["default"]) for c in configs if not c["is_default"]],
        empty="All configs have their defaults (--all shows them).",
    )


@topic.command(
    examples=(
        "logstore topic alter orders --config retention.ms=86400000",
        "logstore topic alter orders --unset retention.ms",
    ),
)
@topic_argument()
@click.option(
    "-c",
    "--config",
    "configs",
    metavar="NAME=VALUE",
    multiple=True,
    callback=assignments,
    help="Set a topic config.  Repeatable.",
)
@click.option("--unset", metavar="NAME", multiple=True, help="Go back to the default.  Repeatable.")
@click.option(
    "--replication-factor",
    metavar="N",
    type=int,
    help="How many servers are to have it; -1: as many as there are.",
)
@output_option()
@connection_options
def alter(topic: str, configs: dict[str, str], unset: Sequence[str], replication_factor: int | None) -> None:
    """Set or unset configs of a topic."""
    if not configs and not unset and replication_factor is None:
        raise click.UsageError(
            "Nothing to do: give --config NAME=VALUE, --unset NAME or --replication-factor N.",
            click.get_current_context(),
        )
    if both := sorted(set(configs) & set(unset)):
        raise click.UsageError(f"{both[0]!r} is both set and unset.", click.get_current_context())
    with open_admin() as admin:
        if replication_factor is not None:
            admin.alter_replication_factor(topic, replication_factor)
        if configs or unset:
            admin.alter_configs(topic, {**configs, **dict.fromkeys(unset)})
        (document,) = _documents(admin, [topic], configs=True)
        _warn(admin, [topic], {*configs, *unset})
    if settings().output == "json":
        print_json(document)
        return
    if replication_factor is not None:
        click.echo(f"replication factor = {replication_factor}")
    changed = {*configs, *unset}
    for config in document["configs"]:
        if config["name"] in changed:
            click.echo(f"{config['name']} = {config['value']}{' (default)' if config['is_default'] else ''}")


@topic.command("add-partitions", examples=("logstore topic add-partitions orders --total 8",))
@topic_argument()
@click.option(
    "-t",
    "--total",
    metavar="N",
    type=click.IntRange(1),
    required=True,
    help="How many there shall be in the end.",
)
@output_option()
@connection_options
def add_partitions(topic: str, total: int) -> None:
    """Raise the number of partitions.

    Records with a key go by hash and number of partitions: from now on a key may land elsewhere.
    """
    with open_admin() as admin:
        admin.create_partitions(topic, total)
        (document,) = _documents(admin, [topic])
    if settings().output == "json":
        print_json(document)
        return
    click.echo(f"{topic}: {len(document['partitions'])} partitions")


@topic.command(examples=("logstore topic delete orders", "logstore topic delete orders --yes"))
@topic_argument(many=True)
@click.option("--if-exists", is_flag=True, help="Be content when there is no such topic.")
@yes_option
@output_option()
@connection_options
def delete(topics: Sequence[str], if_exists: bool, yes: bool) -> None:
    """Delete topics and every record in them."""
    with open_admin() as admin:
        there = set(admin.list_topics())
        wanted = [name for name in topics if name in there] if if_exists else list(topics)
        # Describing first refuses a wrong name before any question is asked or topic deleted.
        documents = _documents(admin, wanted)
        if wanted:
            held = sum(entry["records"] for document in documents for entry in document["partitions"])
            confirm(f"Delete {', '.join(wanted)} with {human_count(held)} records?", yes=yes)
        admin.delete_topics(wanted)
        _reclaim(admin.dsn)
    if settings().output == "json":
        print_json({"deleted": wanted})
        return
    for name in wanted:
        click.echo(f"{name}: deleted")


topic.add_command(erase)


def _reclaim(dsn: str | None) -> None:
    """Give the space back now; what somebody still uses stays until the next deletion."""
    from logstore.workers import reclaim, tier

    if dsn is not None:
        # The topics are deleted, whatever becomes of their space and of their files.
        with suppress(LogstoreError):
            reclaim.run_once(dsn, settings().schema)
        with suppress(LogstoreError):
            tier.run_once(dsn, settings().schema, deleted=True)


def _warn(admin: Admin, topics: Sequence[str], changed: Collection[str] | None = None) -> None:
    """Say what may not be what was meant by the configs: of all of them, or of those that were changed."""
    from logstore.cli.query import connected

    if admin.dsn is None:
        return
    # It is done; nothing that goes wrong here is worth an error.
    with suppress(LogstoreError), connected(admin.dsn, settings().schema) as connection:
        found = connection.execute(
            "SELECT t.name, w.config, w.warning FROM topic t, config_warnings(t.configs) w"
            " WHERE t.name = ANY (%s) ORDER BY 1, 2",
            [list(topics)],
        )
        for name, config, warning in found:
            if changed is None or config in changed:
                note(f"{name}: {config} {warning}.")


def _newest(partitions: Sequence[dict[str, Any]]) -> str | None:
    stamps = [entry["max_timestamp"] for entry in partitions if entry["max_timestamp"] is not None]
    return format_time(max(stamps)) if stamps else None


def _documents(admin: Admin, topics: Sequence[str] | None, *, configs: bool = False) -> list[dict[str, Any]]:
    """What there is to know of topics (None: of all); an unknown one raises.

    Five round trips however many topics there are, and with ``configs`` one more for each.
    """
    described = admin.describe_topics(topics)
    wanted = [TopicPartition(d.topic, number) for d in described for number in range(d.partitions)]
    partitions: dict[str, list[dict[str, Any]]] = {description.topic: [] for description in described}
    for extent in extents(admin, wanted):
        partitions[extent.topic].append(extent.document())
    documents: list[dict[str, Any]] = []
    for description in described:
        document: dict[str, Any] = {"topic": description.topic, "partitions": partitions[description.topic]}
        if configs:
            entries = admin.describe_configs(description.topic)
            document["configs"] = [_config(entries[name]) for name in sorted(entries)]
        documents.append(document)
    return documents


def _config(entry: ConfigEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "value": entry.value,
        "default": entry.default,
        "is_default": entry.is_default,
        "type": entry.type,
        "doc": entry.doc,
    }
