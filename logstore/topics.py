"""What an admin client is told, and tells, about topics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from logstore._core.calls import (
    EARLIEST,
    EARLIEST_LOCAL,
    LATEST,
    LATEST_TIERED,
    MAX_TIMESTAMP,
    ConfigEntry,
)
from logstore._core.calls import TopicMetadata as TopicDescription

__all__ = [
    "EARLIEST",
    "EARLIEST_LOCAL",
    "LATEST",
    "LATEST_TIERED",
    "MAX_TIMESTAMP",
    "ConfigEntry",
    "NewTopic",
    "TopicDescription",
]


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to create.  The names are kafka-python's."""

    name: str
    num_partitions: int = 1
    replication_factor: int = -1
    """How many servers are to have its records, the leader included; -1: as many as the group has.  More than
    there are is refused.  Fewer is never made: all topics of a group have the same replicas.  A topic counts
    as under-replicated when fewer servers than this have it."""
    topic_configs: Mapping[str, object] = field(default_factory=dict)
    """Kafka's names; values are strings, numbers or booleans.  What is left out has its default."""
