"""Members of a group as the server sees them: one call each, no client around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from logstore._core.group_calls import Claim, Commit, GroupCalls, HeartbeatAnswer, MembershipTerms
from logstore._sync.driver import Connection
from logstore.records import TopicPartition

__all__ = ["Member", "claims_of", "commit", "connection", "held_snapshot", "settle"]

CALLS = GroupCalls()
HOURS_MS = 1_800_000


@contextmanager
def connection(dsn: str) -> Iterator[Connection]:
    made = Connection.open(dsn)
    try:
        yield made
    finally:
        made.close()


class Member:
    """One member on ``connection``, which several may share."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        topics: Sequence[str] | None = ("t",),
        *,
        group: str = "g",
        pattern: str | None = None,
        instance: str | None = None,
        assignor: str | None = None,
        session_timeout_ms: int = HOURS_MS,
    ) -> None:
        self.connection = connection
        self.name = name
        self.group = group
        self.instance = instance
        self.terms = MembershipTerms(group, instance, "test", assignor, session_timeout_ms, 300_000)
        self.claims: dict[TopicPartition, Claim] = {}
        self.epoch = -1
        self.subscribe(topics, pattern)

    def subscribe(self, topics: Sequence[str] | None, pattern: str | None = None) -> None:
        joined = self.connection.run(CALLS.join_group(self.terms, self.name, topics, pattern))
        self.group_id, self.number = joined.group_id, joined.member_no

    def beat(self, known_epoch: int = -1) -> HeartbeatAnswer:
        answer = self.connection.run(
            CALLS.heartbeat_group(self.group_id, self.name, self.instance, known_epoch)
        )
        if not answer.unchanged:
            self.claims = dict(answer.claims)
            self.epoch = answer.assigned_epoch
        return answer

    def release(self) -> int:
        """Give up what has to be given up; how many there were."""
        return self.release_these(tp for tp, claim in self.claims.items() if claim.revoke)

    def release_these(self, partitions: Any) -> int:
        wanted = {tp: self.claims[tp] for tp in partitions}
        count = self.connection.run(CALLS.release_claims(self.group_id, self.name, wanted.items()))
        for tp in wanted:
            del self.claims[tp]
        return count

    def leave(self) -> bool:
        return self.connection.run(CALLS.leave_group(self.group_id, self.name))

    @property
    def partitions(self) -> set[tuple[str, int]]:
        return {(tp.topic, tp.partition) for tp, claim in self.claims.items() if not claim.revoke}

    def commit(self, offset: int, tp: tuple[str, int] = ("t", 0), *, epoch: int | None = None) -> None:
        claim = self.claims[TopicPartition(*tp)]
        commits = [Commit(claim.topic_id, tp[1], claim.epoch if epoch is None else epoch, offset, None, "")]
        self.connection.run(CALLS.commit_offsets(self.group, self.name, self.instance, commits))


def settle(*members: Member) -> None:
    """Have everybody beat and release until nobody has to any more."""
    for _ in range(4):
        for member in members:
            member.beat()
            member.release()
    assert not any(claim.revoke for member in members for claim in member.claims.values())


def commit(
    connection: Connection, group: str, topic_id: int, offset: int, partition: int = 0, metadata: str = ""
) -> None:
    """Commit without being a member."""
    commits = [Commit(topic_id, partition, None, offset, None, metadata)]
    connection.run(CALLS.commit_offsets(group, None, None, commits))


def claims_of(dsn: str, group: str = "g") -> list[tuple[int, int | None, int | None, int]]:
    """(partition, owner, target, epoch) of a group that reads one topic."""
    with psycopg.connect(dsn) as raw:
        return raw.execute(
            "SELECT c.partition, c.owner, c.target, c.claim_epoch FROM logstore.group_claim c "
            "JOIN logstore.log_group g USING (group_id) WHERE g.name = %s ORDER BY 1",
            [group],
        ).fetchall()


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """Another session that keeps every dead row of the database from being removed."""
    with psycopg.connect(dsn, autocommit=True) as raw:
        raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        raw.execute("SELECT txid_current()")
        yield
