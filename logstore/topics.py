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
    replication_factor: int = 1
    """Accepted for Kafka's sake: how many copies there are is the server's affair (its standbys)."""
    topic_configs: Mapping[str, object] = field(default_factory=dict)
    """Kafka's names; values are strings, numbers or booleans.  What is left out has its default."""
