# Generated from logstore/_async/replica_admin.py by tools/unasync.py; edit that file.
"""The methods of an admin client that concern the log's copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from logstore._core.call import Call
from logstore._core.replica_calls import ReplicaCalls
from logstore._core.topic_name import check_topic_name
from logstore.errors import InvalidArgumentError, InvalidReplicationFactorError
from logstore.replicas import PartitionReplicas, Replica

__all__ = ["ReplicaAdmin", "checked_factor"]

T = TypeVar("T")


class ReplicaAdmin:
    """Tells who has a copy of the log."""

    _replica_calls: ReplicaCalls

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def describe_replicas(self) -> list[Replica]:
        """The servers that have a copy of the log, or should have: the leader first, then by name.

        Ask the leader: a follower knows only itself, the server it streams from, and who streams from it.
        """
        return self._run(self._replica_calls.replicas())

    def describe_partition_replicas(self, topics: Iterable[str] | None = None) -> list[PartitionReplicas]:
        """Leader, replicas and those in sync of each partition of ``topics`` (None: of all), and whether that
        is enough.  Topics that do not exist are left out.
        """
        names = (
            None
            if topics is None
            else [check_topic_name(name) for name in ([topics] if isinstance(topics, str) else topics)]
        )
        return self._run(self._replica_calls.partition_replicas(names))

    def alter_replication_factor(self, topic: str, replication_factor: int) -> None:
        """Change how many servers are to have a topic's records; -1: as many as the group has.

        It moves nothing, because every server of the group has all topics: it changes when the topic counts
        as under-replicated.

        Raises InvalidReplicationFactorError when there are fewer servers, UnknownTopicOrPartitionError.
        """
        call = self._replica_calls.alter_replication_factor(
            check_topic_name(topic), checked_factor(replication_factor)
        )
        self._run(call)


def checked_factor(value: object) -> int:
    """A replication factor as the server takes it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"A replication factor is an integer, not {value!r}.")
    if value != -1 and not 1 <= value <= 32767:
        raise InvalidReplicationFactorError(
            f"A replication factor is 1 or more, or -1 for as many as there are servers, not {value}.",
            details={"replication_factor": value},
        )
    return value
