"""How the local cluster does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ClusterStatus", "MemberStatus", "Phase", "Role"]

Phase = Literal["absent", "stopped", "starting", "ready", "degraded", "leaderless"]
"""``absent``: never started, or removed.  ``degraded``: it takes records, and a part is missing."""
Role = Literal["leader", "follower"]


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One PostgreSQL of the group."""

    name: str
    host: str
    port: int
    role: Role | None
    """None while it does not run."""
    state: str
    """``running`` (a leader), ``streaming`` (a follower that keeps up), ``stopped``, ``silent`` (its Patroni
    does not answer), or Patroni's word.
    """
    in_sync: bool = False
    """It is the leader, or one of the followers that ``acks="all"`` may wait for."""
    timeline: int | None = None
    lag_bytes: int | None = None
    """What a follower has not received yet of the leader's write-ahead log."""
    pid: int = 0
    """The postmaster's; 0 when there is none."""

    @property
    def well(self) -> bool:
        return self.state == ("running" if self.role == "leader" else "streaming")


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole group."""

    phase: Phase
    home: str
    dsn: str = ""
    """Names all members; the driver takes the leader.  The password is in a file that it names."""
    superuser_dsn: str = ""
    members: tuple[MemberStatus, ...] = ()
    etcd: Literal["running", "stopped"] = "stopped"
    etcd_port: int = 0
    followers_to_wait_for: int = 0
    """How many followers a commit with ``acks="all"`` waits for."""
    supervisor_pid: int = 0
    version: str = ""
    """PostgreSQL's."""

    @property
    def leader(self) -> MemberStatus | None:
        return next((each for each in self.members if each.role == "leader" and each.well), None)

    @property
    def followers(self) -> tuple[MemberStatus, ...]:
        return tuple(each for each in self.members if each.role == "follower" and each.well)
