"""The SQL functions and views of the log's copies as calls."""

from __future__ import annotations

from collections.abc import Iterable

from logstore._core.arrays import TextArray
from logstore._core.call import Call, quoted
from logstore.replicas import PartitionReplicas, Replica

__all__ = ["ReplicaCalls"]


class ReplicaCalls:
    """What one log says of its copies."""

    def __init__(self, schema: str = "logstore") -> None:
        prefix = quoted(schema) + "."
        self._replicas = (
            f"SELECT {', '.join(Replica._fields)} "  # noqa: S608 (our own names)
            f"FROM {prefix}replicas ORDER BY role DESC, name"
        )
        self._partitions = (
            f"SELECT {', '.join(PartitionReplicas._fields)} "  # noqa: S608 (our own names)
            f"FROM {prefix}partition_replicas WHERE $1::text[] IS NULL OR topic = ANY ($1::text[]) "
            "ORDER BY topic, partition"
        )
        self._alter = f"SELECT {prefix}alter_replication_factor($1::text, $2::int4)"

    def replicas(self) -> Call[list[Replica]]:
        """The servers, the leader first."""
        return Call(self._replicas, (), lambda rows: [Replica(*row) for row in rows], "replicas")

    def partition_replicas(self, topics: Iterable[str] | None = None) -> Call[list[PartitionReplicas]]:
        """The copies of each partition of these topics; None: of all."""
        names = None if topics is None else TextArray(list(topics))
        return Call(
            self._partitions,
            (names,),
            lambda rows: [PartitionReplicas(*row) for row in rows],
            "partition_replicas",
        )

    def alter_replication_factor(self, topic: str, replication_factor: int) -> Call[None]:
        """Say how many servers are to have the topic's records; -1: as many as there are."""
        args = (topic, replication_factor)
        return Call(self._alter, args, lambda rows: None, "alter_replication_factor", writes=True)
