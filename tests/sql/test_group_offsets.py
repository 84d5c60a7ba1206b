"""Committing, resetting, forgetting offsets: all or nothing, and fenced."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from logstore._core.group_calls import Commit
from logstore._sync.driver import Connection
from logstore.errors import (
    CommitFailedError,
    GroupNotEmptyError,
    GroupNotFoundError,
    InvalidArgumentError,
    InvalidGroupError,
    LogstoreError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    UnknownMemberError,
    UnknownTopicOrPartitionError,
)
from tests.support.appender import Appender, values
from tests.support.membership import CALLS, HOURS_MS, Member, commit, connection, settle


@pytest.fixture
def server_side(database: str) -> Iterator[Connection]:
    with connection(database) as made:
        yield made


@pytest.fixture
def log(database: str) -> Iterator[Appender]:
    with Appender(database) as made:
        made.create("t", 2)
        made.append("t", values(10), 0)
        made.append("t", values(5), 1)
        yield made


def offsets(server_side: Connection, group: str = "g") -> dict[int, int]:
    return {row.partition: row.offset for row in server_side.run(CALLS.committed_offsets(group))}


def test_member_commits_and_the_next_one_begins_there(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a")
    a.beat()
    a.commit(7)
    a.commit(10)
    assert offsets(server_side) == {0: 10}
    a.leave()
    b = Member(server_side, "b")
    b.beat()
    assert {tp.partition: claim.committed for tp, claim in b.claims.items()} == {0: 10, 1: None}


def unknown_member(a: Member, b: Member) -> None:
    a.leave()
    a.commit(1)


def stale_epoch(a: Member, b: Member) -> None:
    a.commit(1, epoch=a.claims[next(iter(a.claims))].epoch - 1)


def anothers_partition(a: Member, b: Member) -> None:
    a.claims |= b.claims
    a.commit(1, ("t", 1))


def beyond_the_end(a: Member, b: Member) -> None:
    a.commit(11)


def below_zero(a: Member, b: Member) -> None:
    a.commit(-1)


def no_such_partition(a: Member, b: Member) -> None:
    commits = [Commit(next(iter(a.claims.values())).topic_id, 7, 1, 0, None, "")]
    a.connection.run(CALLS.commit_offsets("g", "a", None, commits))


def twice(a: Member, b: Member) -> None:
    claim = next(iter(a.claims.values()))
    commits = [Commit(claim.topic_id, 0, claim.epoch, offset, None, "") for offset in (1, 2)]
    a.connection.run(CALLS.commit_offsets("g", "a", None, commits))


def long_metadata(a: Member, b: Member) -> None:
    claim = next(iter(a.claims.values()))
    commits = [Commit(claim.topic_id, 0, claim.epoch, 1, None, "ü" * 2049)]
    a.connection.run(CALLS.commit_offsets("g", "a", None, commits))


def one_good_one_bad(a: Member, b: Member) -> None:
    claim = next(iter(a.claims.values()))
    commits = [Commit(claim.topic_id, number, claim.epoch, 1, None, "") for number in (0, 1)]
    a.connection.run(CALLS.commit_offsets("g", "a", None, commits))


def without_being_a_member(a: Member, b: Member) -> None:
    commit(a.connection, "g", next(iter(a.claims.values())).topic_id, 1)


@pytest.mark.parametrize(
    ("deed", "error", "reason"),
    [
        (unknown_member, CommitFailedError, "unknown_member"),
        (stale_epoch, CommitFailedError, "stale_epoch"),
        (anothers_partition, CommitFailedError, "not_owner"),
        (one_good_one_bad, CommitFailedError, "not_owner"),
        (no_such_partition, CommitFailedError, "not_owner"),
        (without_being_a_member, CommitFailedError, "group_has_members"),
        (beyond_the_end, OffsetOutOfRangeError, None),
        (below_zero, OffsetOutOfRangeError, None),
        (twice, InvalidArgumentError, None),
        (long_metadata, OffsetMetadataTooLargeError, None),
    ],
)
def test_refused_commit_changes_nothing(
    server_side: Connection,
    log: Appender,
    deed: Callable[[Member, Member], None],
    error: type[LogstoreError],
    reason: str | None,
) -> None:
    a, b = Member(server_side, "a"), Member(server_side, "b")
    settle(a, b)
    a.commit(3)
    with pytest.raises(error) as caught:
        deed(a, b)
    assert caught.value.details.get("reason") == reason
    assert offsets(server_side) == {0: 3}


def test_group_without_members_takes_commits(server_side: Connection, log: Appender) -> None:
    topic_id = log.topic_id("t")
    commit(server_side, "manual", topic_id, 4, metadata="ünï")
    (row,) = server_side.run(CALLS.committed_offsets("manual", [(topic_id, 0), (topic_id, 1)]))
    assert (row.topic, row.partition, row.offset, row.metadata) == ("t", 0, 4, "ünï")
    assert server_side.run(CALLS.committed_offsets("nobody")) == []
    with pytest.raises(OffsetOutOfRangeError):
        commit(server_side, "manual", topic_id, 11)
    with pytest.raises(UnknownTopicOrPartitionError):
        commit(server_side, "manual", topic_id, 0, partition=2)
    with pytest.raises(UnknownTopicOrPartitionError, match='topic "t" has no partition null'):
        commit(server_side, "manual", topic_id, 0, partition=None)  # type: ignore[arg-type]
    with pytest.raises(InvalidGroupError):
        commit(server_side, "", topic_id, 0)
    assert offsets(server_side, "manual") == {0: 4}


def test_claim_does_not_change_hands_beside_a_commit(
    server_side: Connection, log: Appender, database: str
) -> None:
    """A member that was removed in the middle of its commit: whoever comes next sees the commit."""
    slow = Member(server_side, "slow")
    slow.beat()
    with connection(database) as elsewhere:
        other = Member(elsewhere, "other")
        with server_side.transaction():
            slow.commit(9)
            elsewhere.run(CALLS.remove_member("g", "slow"))
            other.beat()
            assert other.partitions == {("t", 1)}
        answer = other.beat()
        assert other.partitions == {("t", 0), ("t", 1)}
        assert {tp.partition: claim.committed for tp, claim in answer.claims.items()} == {0: 9, 1: None}


def test_commit_after_the_claim_has_changed_hands(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a")
    a.beat()
    b = Member(server_side, "b")
    b.beat()
    a.beat()
    kept = dict(a.claims)
    a.release()
    b.beat()
    (taken,) = b.claims
    a.claims = kept
    with pytest.raises(CommitFailedError):
        a.commit(1, taken)
    b.commit(1, taken)


def test_reset_is_refused_while_there_are_members(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a")
    a.beat()
    a.commit(3)
    partitions = [(log.topic_id("t"), 0)]
    with pytest.raises(GroupNotEmptyError):
        server_side.run(CALLS.reset_offsets("g", partitions, [0]))
    assert offsets(server_side) == {0: 3}
    a.leave()
    assert server_side.run(CALLS.reset_offsets("g", partitions, [0])) == [0]
    assert offsets(server_side) == {0: 0}


def test_reset_stays_within_the_log(server_side: Connection, log: Appender) -> None:
    topic_id = log.topic_id("t")
    log.connection.run(log.calls.delete_records("t", 0, 4))
    partitions = [(topic_id, 1), (topic_id, 0)]
    assert server_side.run(CALLS.reset_offsets("new", partitions, [99, 1])) == [5, 4]
    assert offsets(server_side, "new") == {0: 4, 1: 5}
    with pytest.raises(UnknownTopicOrPartitionError):
        server_side.run(CALLS.reset_offsets("new", [(topic_id, 9)], [0]))


def test_deleting_groups_and_offsets(server_side: Connection, log: Appender) -> None:
    log.create("u")
    a = Member(server_side, "a")
    a.beat()
    a.commit(3)
    with pytest.raises(GroupNotEmptyError):
        server_side.run(CALLS.delete_group("g"))
    with pytest.raises(GroupNotEmptyError):
        server_side.run(CALLS.delete_group_offsets("g", [(log.topic_id("t"), 0)]))
    assert offsets(server_side) == {0: 3}
    assert server_side.run(CALLS.delete_group_offsets("g", [(log.topic_id("u"), 0)])) == 0
    with pytest.raises(UnknownMemberError):
        server_side.run(CALLS.remove_member("g", "b"))
    server_side.run(CALLS.remove_member("g", "a"))
    assert server_side.run(CALLS.delete_group_offsets("g", [(log.topic_id("t"), 0)])) == 1
    server_side.run(CALLS.delete_group("g"))
    with pytest.raises(GroupNotFoundError):
        server_side.run(CALLS.delete_group("g"))
    with pytest.raises(GroupNotFoundError):
        server_side.run(CALLS.remove_member("g", "a"))
    with pytest.raises(GroupNotFoundError):
        server_side.run(CALLS.delete_group_offsets("g", [(log.topic_id("t"), 0)]))


def test_offsets_expire_when_nobody_uses_the_group(
    server_side: Connection, log: Appender, database: str
) -> None:
    topic_id = log.topic_id("t")
    commit(server_side, "unused", topic_id, 1)
    commit(server_side, "recent", topic_id, 1)
    active = Member(server_side, "a", group="active")
    active.beat()
    active.commit(1)
    with psycopg.connect(database) as raw:
        raw.execute(
            "UPDATE logstore.group_offset o SET committed_at = '2020-01-01' FROM logstore.log_group g "
            "WHERE g.group_id = o.group_id AND g.name <> 'recent'"
        )
        raw.execute("UPDATE logstore.log_group SET emptied_at = '2020-01-01' WHERE name = 'unused'")
    assert server_side.run(CALLS.expire_offsets(10080)) == 1
    assert [row.group for row in server_side.run(CALLS.groups())] == ["active", "recent"]
    assert offsets(server_side, "active") == {0: 1}
    log.connection.run(log.calls.delete_topic("t"))
    assert server_side.run(CALLS.expire_offsets(10080)) == 2


def test_lag_in_records_and_seconds(server_side: Connection, log: Appender, database: str) -> None:
    log.create("old", 3)
    log.append("old", values(4), 0, timestamps=[1000, 2000, 3000, 4000])
    member = Member(server_side, "a", ["old"], session_timeout_ms=HOURS_MS)
    member.beat()
    member.commit(2, ("old", 0))
    member.commit(0, ("old", 1))
    with psycopg.connect(database) as raw:
        clock = "SELECT extract(epoch FROM clock_timestamp())::float8"
        before = raw.execute(clock).fetchone()
        rows = raw.execute(
            "SELECT partition, committed_offset, end_offset, lag, seconds_behind, member_id "
            "FROM logstore.group_lag WHERE \"group\" = 'g' ORDER BY 1"
        ).fetchall()
        after = raw.execute(clock).fetchone()
    (zero, one, two) = rows
    assert zero[:4] == (0, 2, 4, 2)
    assert before is not None and after is not None
    assert before[0] <= zero[4] + 3 <= after[0]
    assert one == (1, 0, 0, 0, 0.0, "a")
    assert two == (2, None, 0, None, None, "a")
