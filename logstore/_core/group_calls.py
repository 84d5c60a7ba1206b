"""The SQL functions of consumer groups, as :class:`~logstore._core.call.Call` objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from logstore._core.arrays import Int4Array, Int8Array, TextArray
from logstore._core.call import Call, Row
from logstore._core.calls import Calls
from logstore.records import TopicPartition

__all__ = [
    "Claim",
    "Commit",
    "CommittedRow",
    "GroupCalls",
    "GroupRow",
    "HeartbeatAnswer",
    "Joined",
    "LagRow",
    "MemberRow",
    "MembershipTerms",
]


class MembershipTerms(NamedTuple):
    """What a member tells the group when it joins."""

    group: str
    instance_id: str | None
    client_id: str
    assignor: str | None
    session_timeout_ms: int
    max_poll_interval_ms: int
    kind: str = "consumer"


class Joined(NamedTuple):
    group_id: int
    member_no: int
    group_epoch: int


class Claim(NamedTuple):
    """A partition that a member owns, as the server says."""

    topic_id: int
    epoch: int
    """Rises whenever the partition changes hands: the fence of its commits."""
    revoke: bool
    """The member has to give it up."""
    committed: int | None
    """The committed offset; None: none."""
    leader_epoch: int | None


class HeartbeatAnswer(NamedTuple):
    assigned_epoch: int
    unchanged: bool
    """There is nothing new: ``claims`` says nothing."""
    waiting: bool
    """Partitions that should be this member's still belong to somebody else."""
    assigned: bool
    """This heartbeat computed new targets: the other members should hear of it."""
    claims: dict[TopicPartition, Claim]


class Commit(NamedTuple):
    """One offset to be committed."""

    topic_id: int
    partition: int
    claim_epoch: int | None
    offset: int
    leader_epoch: int | None
    metadata: str


class CommittedRow(NamedTuple):
    topic: str
    topic_id: int
    partition: int
    offset: int
    leader_epoch: int | None
    metadata: str
    committed_at: int
    """Milliseconds."""


class GroupRow(NamedTuple):
    """A row of the view ``groups``."""

    group: str
    kind: str
    state: str
    assignor: str
    members: int
    partitions: int
    group_epoch: int
    assigned_epoch: int


class MemberRow(NamedTuple):
    """A row of the view ``group_members``."""

    group: str
    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    subscription: str
    by_pattern: bool
    partitions: int
    to_come: int
    to_go: int
    assignment: str
    """JSON: a list of objects with topic, partition and claim_epoch."""
    session_timeout_ms: int
    max_poll_interval_ms: int
    joined_at: int
    """Milliseconds."""
    lease_until: int | None
    """Milliseconds; None on a follower."""


class LagRow(NamedTuple):
    """A row of the view ``group_lag``, with the topic's id."""

    group: str
    topic: str
    topic_id: int
    partition: int
    committed_offset: int | None
    log_start: int
    end_offset: int
    lag: int | None
    seconds_behind: float | None
    metadata: str | None
    member_id: str | None
    instance_id: str | None
    client_id: str | None
    claim_epoch: int | None


_GROUP_COLUMNS = '"group", kind, state, assignor, members, partitions, group_epoch, assigned_epoch'
_MEMBER_COLUMNS = (
    '"group", member_id, instance_id, client_id, host, subscription, by_pattern, partitions, to_come, to_go, '
    "assignment::text, session_timeout_ms, max_poll_interval_ms, "
    "(extract(epoch from joined_at) * 1000)::int8, (extract(epoch from lease_until) * 1000)::int8"
)
_LAG_COLUMNS = (
    '"group", topic, topic_id, partition, committed_offset, log_start, end_offset, lag, seconds_behind, '
    "metadata, member_id, instance_id, client_id, claim_epoch"
)


class GroupCalls(Calls):
    """The SQL functions of one log, with those of consumer groups."""

    def __init__(self, schema: str = "logstore") -> None:
        super().__init__(schema)
        self._join = self._rows(
            "group_id, member_no, group_epoch", "join_group",
            "text", "text", "text", "text", "text[]", "text", "text", "int4", "int4", "text",
        )  # fmt: skip
        self._heartbeat = self._rows(
            "group_epoch, unchanged, waiting, assigned, topic, partition, topic_id, claim_epoch, revoke, "
            "committed_offset, leader_epoch",
            "heartbeat_group", "int4", "text", "text", "int8",
        )  # fmt: skip
        self._release = self._value("release_claims", "int4", "text", "int4[]", "int4[]", "int8[]")
        self._leave = self._value("leave_group", "int4", "text")
        self._rebalance = self._value("rebalance_group", "int4")
        self._wake_group = self._value("wake_group", "int4", "text")
        self._commit = self._value(
            "commit_offsets",
            "text", "text", "text", "int4[]", "int4[]", "int8[]", "int8[]", "int4[]", "text[]",
        )  # fmt: skip
        self._committed = self._rows(
            "topic, topic_id, partition, committed_offset, leader_epoch, metadata, committed_at",
            "committed_offsets", "text", "int4[]", "int4[]",
        )  # fmt: skip
        self._reset = self._value("reset_offsets", "text", "int4[]", "int4[]", "int8[]")
        self._delete_group = self._value("delete_group", "text")
        self._delete_offsets = self._value("delete_group_offsets", "text", "int4[]", "int4[]")
        self._remove_member = self._value("remove_member", "text", "text")
        self._group_id_of = self._value("group_id_of", "text")
        self._expire_offsets = self._value("expire_offsets", "int8")

    @property
    def group_channel(self) -> str:
        """The channel that ``wake_group`` notifies; its payloads are a group id and what happened."""
        return self.schema + "_groups"

    # -- members -------------------------------------------------------------------------------------------

    def join_group(
        self, terms: MembershipTerms, member_id: str, topics: Iterable[str] | None, pattern: str | None
    ) -> Call[Joined]:
        """Become a member, or change the subscription of one."""
        args = (
            terms.group,
            member_id,
            terms.instance_id,
            terms.client_id,
            None if topics is None else TextArray(sorted(topics)),
            pattern,
            terms.assignor,
            terms.session_timeout_ms,
            terms.max_poll_interval_ms,
            terms.kind,
        )
        return Call(self._join, args, lambda rows: Joined(*rows[0]), "join_group", writes=True)

    def heartbeat_group(
        self, group_id: int, member_id: str, instance_id: str | None, known_epoch: int
    ) -> Call[HeartbeatAnswer]:
        """Renew the lease and learn what has changed since ``known_epoch`` (-1: everything)."""
        args = (group_id, member_id, instance_id, known_epoch)
        return Call(self._heartbeat, args, _heartbeat_answer, "heartbeat_group", writes=True)

    def release_claims(
        self, group_id: int, member_id: str, claims: Iterable[tuple[TopicPartition, Claim]]
    ) -> Call[int]:
        """Give partitions up; those that the member does not own under these epochs are passed over."""
        listed = sorted((claim.topic_id, tp.partition, claim.epoch) for tp, claim in claims)
        args = (
            group_id,
            member_id,
            Int4Array([each[0] for each in listed]),
            Int4Array([each[1] for each in listed]),
            Int8Array([each[2] for each in listed]),
        )
        return Call(self._release, args, _value, "release_claims", writes=True)

    def leave_group(self, group_id: int, member_id: str) -> Call[bool]:
        """Stop being a member; whether it was one."""
        return Call(self._leave, (group_id, member_id), _value, "leave_group", writes=True)

    def rebalance_group(self, group_id: int) -> Call[None]:
        """Have the targets computed again."""
        return Call(self._rebalance, (group_id,), _none, "rebalance_group", writes=True)

    def wake_group(self, group_id: int, what: str) -> Call[None]:
        """Tell the members of a group what has happened; for after a commit, never inside it."""
        return Call(self._wake_group, (group_id, what), _none, "wake_group")

    # -- offsets -------------------------------------------------------------------------------------------

    def commit_offsets(
        self, group: str, member_id: str | None, instance_id: str | None, commits: Sequence[Commit]
    ) -> Call[None]:
        """Commit offsets, all or none; ``member_id`` None: for a group without members."""
        listed = sorted(commits, key=lambda each: each[:2])
        epochs = [each.claim_epoch for each in listed]
        args = (
            group,
            member_id,
            instance_id,
            Int4Array([each.topic_id for each in listed]),
            Int4Array([each.partition for each in listed]),
            None if member_id is None else Int8Array(epochs),
            Int8Array([each.offset for each in listed]),
            Int4Array([each.leader_epoch for each in listed]),
            TextArray([each.metadata for each in listed]),
        )
        return Call(self._commit, args, _none, "commit_offsets", writes=True)

    def committed_offsets(
        self, group: str, partitions: Sequence[tuple[int, int]] | None = None
    ) -> Call[list[CommittedRow]]:
        """The committed offsets of some (topic_id, partition), or of all; those without one are absent."""
        args: tuple[Any, ...] = (group, None, None)
        if partitions is not None:
            args = (group, *_pairs(partitions))
        return Call(
            self._committed, args, lambda rows: [CommittedRow(*row) for row in rows], "committed_offsets"
        )

    def reset_offsets(
        self, group: str, partitions: Sequence[tuple[int, int]], offsets: Sequence[int]
    ) -> Call[list[int]]:
        """Set the offsets of a group without members; what they are now, after clamping."""
        args = (group, *_pairs(partitions), Int8Array(offsets))
        return Call(self._reset, args, _value, "reset_offsets", writes=True)

    # -- administration ------------------------------------------------------------------------------------

    def delete_group(self, group: str) -> Call[None]:
        return Call(self._delete_group, (group,), _none, "delete_group", writes=True)

    def delete_group_offsets(self, group: str, partitions: Sequence[tuple[int, int]]) -> Call[int]:
        """Forget committed offsets; how many there were."""
        args = (group, *_pairs(partitions))
        return Call(self._delete_offsets, args, _value, "delete_group_offsets", writes=True)

    def remove_member(self, group: str, member: str) -> Call[None]:
        """Remove the member with this member id or instance id."""
        return Call(self._remove_member, (group, member), _none, "remove_member", writes=True)

    def expire_offsets(self, retention_minutes: int) -> Call[int]:
        """Forget the offsets of groups that nobody has used for that long; how many there were."""
        return Call(self._expire_offsets, (retention_minutes,), _value, "expire_offsets", writes=True)

    def groups(self, group: str | None = None) -> Call[list[GroupRow]]:
        """The view ``groups``."""
        sql = self._view(_GROUP_COLUMNS, "groups", '"group"')
        return Call(sql, (group,), lambda rows: [GroupRow(*row) for row in rows], "groups")

    def group_id_of(self, group: str) -> Call[int | None]:
        """What ``wake_group`` knows the group by; None: there is no such group."""
        return Call(self._group_id_of, (group,), _value, "group_id_of")

    def group_members(self, group: str) -> Call[list[MemberRow]]:
        """The view ``group_members``."""
        sql = self._view(_MEMBER_COLUMNS, "group_members", "joined_at, member_id")
        return Call(sql, (group,), lambda rows: [MemberRow(*row) for row in rows], "group_members")

    def lag_of(self, group: str) -> Call[list[LagRow]]:
        """The view ``group_lag``, for one group."""
        sql = self._rows(_LAG_COLUMNS, "lag_of", "text")
        return Call(sql, (group,), lambda rows: [LagRow(*row) for row in rows], "lag_of")

    def _view(self, columns: str, view: str, order: str) -> str:
        return (
            f"SELECT {columns} FROM {self._prefix}{view} "  # noqa: S608 (our own names)
            f'WHERE $1::text IS NULL OR "group" = $1::text ORDER BY {order}'
        )


def _pairs(partitions: Sequence[tuple[int, int]]) -> tuple[Int4Array, Int4Array]:
    return (
        Int4Array([topic_id for topic_id, _ in partitions]),
        Int4Array([number for _, number in partitions]),
    )


def _heartbeat_answer(rows: Sequence[Row]) -> HeartbeatAnswer:
    (epoch, unchanged, waiting, assigned, *_), *claims = rows
    return HeartbeatAnswer(
        epoch,
        unchanged,
        waiting,
        assigned,
        {TopicPartition(topic, number): Claim(*claim) for _, _, _, _, topic, number, *claim in claims},
    )


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None
