"""The servers that have a copy of the log."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PartitionReplicas", "Replica"]


class Replica(NamedTuple):
    """One server of the group: the leader, a follower that is connected to it, or one that should be.

    All topics of a log have the same replicas.
    """

    name: str
    """``application_name`` of a follower's connection; the leader's own ``logstore.server``, else its
    ``cluster_name``, else its address."""
    role: str
    """"leader" or "follower"."""
    address: str | None
    """Host and port of the leader; of a follower the host that it connects from.  None: a Unix socket."""
    state: str
    """"running": the leader.  Of followers "streaming": it has, or is about to have, all that is written;
    "catchup" and "startup": it does not yet; "missing": a replication slot or ``synchronous_standby_names``
    says that there is one, and it is not connected; "unseen": the owner of the log lacks
    ``pg_read_all_stats``."""
    sync_state: str | None
    """PostgreSQL's word: "sync", "quorum", "potential" or "async"."""
    in_sync: bool | None
    """The leader, or a follower that streams and that ``acks="all"`` may wait for.  None: a follower was
    asked, which cannot tell."""
    flush_lag_bytes: int | None
    """What it has not flushed to its disk of what the leader has written."""
    replay_lag_bytes: int | None
    """What readers of it do not see yet."""
    flush_lag_ms: int | None
    """How long what was last flushed was on its way."""
    replay_lag_ms: int | None
    """How long what was last replayed was on its way."""
    rack: str | None
    """Where it is, where that is known: its setting ``logstore.rack``."""


class PartitionReplicas(NamedTuple):
    """The copies of one partition."""

    topic: str
    partition: int
    leader: str | None
    """The name of its leader."""
    replication_factor: int | None
    """How many servers are to have it: as asked when the topic was made, else as many as the group has."""
    replicas: list[str] | None
    """The names of those that have it or should have, the leader first."""
    in_sync: list[str] | None
    """The names of those that ``acks="all"`` may wait for, the leader first."""
    min_insync_replicas: int
    under_replicated: bool | None
    """Fewer servers than ``replication_factor`` have it.  This and the next two are None where that is not
    known: on a follower, and where the owner of the log lacks ``pg_read_all_stats``."""
    under_min_isr: bool | None
    """``acks="all"`` is refused: fewer than ``min.insync.replicas`` servers would have a record."""
    at_min_isr: bool | None
    """One server less in sync, and ``acks="all"`` is refused."""
