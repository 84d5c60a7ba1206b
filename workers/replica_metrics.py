"""The log's copies as numbers for Prometheus, under Kafka's names: measured anew for whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from logstore.errors import LogstoreError
from logstore.replicas import Replica
from logstore.workers.connections import Limits, opened

__all__ = ["lines"]

CONNECT_S: Final = 2
ANSWER_MS: Final = 2000
"""Whoever scrapes waits no longer than a few seconds."""

_COUNTS: Final = (
    ("partition_count", "Partitions of all topics."),
    ("under_replicated_partitions", "Partitions that fewer servers have than should."),
    ("under_min_isr_partition_count", "Partitions that refuse acks=all: too few servers are in sync."),
    ("at_min_isr_partition_count", "Partitions that refuse acks=all when one server less is in sync."),
)
_OF_REPLICAS: Final = (
    ("replica_in_sync", "acks=all may wait for it, or it is the leader.", "in_sync", 1),
    (
        "replica_flush_lag_bytes",
        "What it has not flushed of what the leader has written.",
        "flush_lag_bytes",
        1,
    ),
    ("replica_replay_lag_bytes", "What readers of it do not see yet.", "replay_lag_bytes", 1),
    ("replica_flush_lag_seconds", "How long it took to flush.", "flush_lag_ms", 1000),
    ("replica_replay_lag_seconds", "How long it took to be seen there.", "replay_lag_ms", 1000),
)


def lines(dsn: str, schema: str) -> list[str]:
    """What the server says now; ``logstore_replicas_known`` is 0 where it says nothing, or cannot tell."""
    try:
        with opened(
            make_conninfo(dsn, connect_timeout=CONNECT_S),
            schema,
            "metrics",
            Limits(statement_timeout_ms=ANSWER_MS),
        ) as connection:
            counts = connection.row(
                "SELECT count(*), count(*) FILTER (WHERE under_replicated),"
                " count(*) FILTER (WHERE under_min_isr), count(*) FILTER (WHERE at_min_isr)"
                " FROM {}.partition_replicas"
            )
            found = [
                Replica(*row)
                for row in connection.rows(
                    "SELECT name, role, address, state, sync_state, in_sync, flush_lag_bytes,"
                    " replay_lag_bytes, flush_lag_ms, replay_lag_ms, rack"
                    " FROM {}.replicas ORDER BY role DESC, name"
                )
            ]
    except (LogstoreError, psycopg.Error):
        return _metric("replicas_known", _KNOWN, [("", 0)])
    known = counts is not None and all(each.state != "unseen" and each.in_sync is not None for each in found)
    text = _metric("replicas_known", _KNOWN, [("", int(known))])
    if known and counts is not None:
        for (name, doc), number in zip(_COUNTS, counts, strict=True):
            text += _metric(name, doc, [("", number)])
    text += _metric("replicas", "Servers that have a copy, or should have, by state.", _by_state(found))
    for name, doc, field, unit in _OF_REPLICAS:
        values = [(each, getattr(each, field)) for each in found]
        text += _metric(
            name,
            doc,
            [
                (f'{{replica="{_escaped(each.name)}",role="{each.role}"}}', value / unit)
                for each, value in values
                if value is not None
            ],
        )
    return text


_KNOWN: Final = "The server could say who has the log; if not, what follows is missing."


def _by_state(found: Sequence[Replica]) -> list[tuple[str, Any]]:
    states = [each.state for each in found]
    return [(f'{{state="{_escaped(state)}"}}', states.count(state)) for state in sorted(set(states))]


def _metric(name: str, doc: str, values: Sequence[tuple[str, Any]]) -> list[str]:
    return [
        f"# HELP logstore_{name} {doc}",
        f"# TYPE logstore_{name} gauge",
        *(f"logstore_{name}{labels} {value:g}" for labels, value in values),
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
