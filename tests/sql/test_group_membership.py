"""Joining, claiming, giving up, leaving: what the server promises whoever calls it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest

from logstore._sync.driver import Connection
from logstore.errors import (
    FencedInstanceIdError,
    InvalidArgumentError,
    InvalidGroupError,
    InvalidSubscriptionError,
    UnknownMemberError,
)
from tests.support.appender import Appender
from tests.support.membership import CALLS, Member, claims_of, connection, settle
from tests.support.programs import eventually


@pytest.fixture
def server_side(database: str) -> Iterator[Connection]:
    with connection(database) as made:
        yield made


@pytest.fixture
def log(database: str) -> Iterator[Appender]:
    with Appender(database) as made:
        made.create("t", 10)
        yield made


def test_first_member_gets_everything(server_side: Connection, log: Appender) -> None:
    member = Member(server_side, "a")
    answer = member.beat()
    assert member.partitions == {("t", number) for number in range(10)}
    assert (answer.unchanged, answer.waiting, answer.assigned) == (False, False, True)
    assert member.beat(member.epoch).unchanged


def test_nobody_takes_what_has_not_been_given_up(server_side: Connection, log: Appender) -> None:
    old = Member(server_side, "old")
    old.beat()
    new = Member(server_side, "new")
    assert new.beat().waiting
    assert new.claims == {}
    old.beat()
    assert len(old.partitions) == 5
    assert len(old.claims) == 5 + 5
    assert new.beat().claims == {}
    assert old.release() == 5
    assert not new.beat().waiting
    assert new.partitions | old.partitions == {("t", number) for number in range(10)}
    assert {claim.epoch for claim in new.claims.values()} == {2}
    assert {claim.epoch for claim in old.claims.values()} == {1}


def test_members_keep_what_they_keep(server_side: Connection, log: Appender) -> None:
    members = [Member(server_side, "m0")]
    settle(*members)
    for number in range(1, 6):
        before = {member: member.partitions for member in members}
        members.append(Member(server_side, f"m{number}"))
        settle(*members)
        sizes = [len(member.partitions) for member in members]
        assert max(sizes) - min(sizes) <= 1
        for member, had in before.items():
            assert member.partitions <= had
    leaver = members.pop()
    before = {member: member.partitions for member in members}
    assert leaver.leave()
    settle(*members)
    for member, had in before.items():
        assert member.partitions >= had


def test_leaving_frees_partitions_at_once(server_side: Connection, log: Appender) -> None:
    stayer, leaver = Member(server_side, "stayer"), Member(server_side, "leaver")
    settle(stayer, leaver)
    assert leaver.leave()
    assert not leaver.leave()
    stayer.beat()
    assert len(stayer.partitions) == 10
    with pytest.raises(UnknownMemberError):
        leaver.beat()


def test_release_passes_over_what_is_not_owned(server_side: Connection, log: Appender, database: str) -> None:
    a, b = Member(server_side, "a"), Member(server_side, "b")
    settle(a, b)
    before = claims_of(database)
    stolen = {tp: claim._replace(epoch=claim.epoch) for tp, claim in b.claims.items()}
    assert server_side.run(CALLS.release_claims(a.group_id, "a", stolen.items())) == 0
    stale = {tp: claim._replace(epoch=claim.epoch - 1) for tp, claim in a.claims.items()}
    assert server_side.run(CALLS.release_claims(a.group_id, "a", stale.items())) == 0
    assert claims_of(database) == before


def test_silent_member_loses_its_partitions_when_its_lease_is_over(
    server_side: Connection, log: Appender, database: str
) -> None:
    silent = Member(server_side, "silent", session_timeout_ms=100)
    silent.beat()
    other = Member(server_side, "other", session_timeout_ms=100)

    def taken_over() -> bool:
        other.beat()
        return len(other.partitions) == 10

    eventually(taken_over, "the silent member's partitions are the other one's")
    assert {epoch for *_, epoch in claims_of(database)} == {2}
    with pytest.raises(UnknownMemberError):
        silent.beat()


def test_heartbeats_keep_a_lease(server_side: Connection, log: Appender) -> None:
    """A lease is not renewed by joining alone: the same time passes for both, one of them beats."""
    beating = Member(server_side, "beating", session_timeout_ms=400)
    Member(server_side, "silent", session_timeout_ms=400)
    beating.beat()

    def alone() -> bool:
        beating.beat()
        return len(beating.partitions) == 10

    eventually(alone, "the silent member is gone")


def test_leases_start_again_when_the_ring_is_lost(
    server_side: Connection, log: Appender, database: str
) -> None:
    """As after a crash, or on a new leader: the unlogged tables are empty, the server has long been up."""
    a = Member(server_side, "a")
    a.beat()
    with psycopg.connect(database, autocommit=True) as raw:
        raw.execute("UPDATE logstore.group_member SET lease_floor = '2000-01-01'")
        raw.execute("TRUNCATE logstore.group_heartbeat_0, logstore.heartbeat_ring")
        lost_at = raw.execute("SELECT clock_timestamp()").fetchone()
        Member(server_side, "b").beat()
        lease = raw.execute(
            "SELECT lease_until - session_timeout_ms * interval '1 ms' >= %s "
            "FROM logstore.group_members WHERE member_id = 'a'",
            lost_at,
        ).fetchone()
    assert lease == (True,)


def test_static_member_comes_back_to_its_partitions(
    server_side: Connection, log: Appender, database: str
) -> None:
    other = Member(server_side, "other")
    first = Member(server_side, "first", instance="one")
    settle(other, first)
    had, epoch = first.partitions, other.beat().assigned_epoch
    second = Member(server_side, "second", instance="one")
    assert second.number == first.number
    assert second.beat().assigned_epoch == epoch
    assert second.partitions == had
    for tp, claim in second.claims.items():
        assert claim.epoch == first.claims[tp].epoch + 1
    before = claims_of(database)
    with pytest.raises(FencedInstanceIdError):
        first.beat()
    with pytest.raises(FencedInstanceIdError):
        first.commit(0, next(iter(had)))
    assert claims_of(database) == before


def test_pattern_picks_up_what_comes_later(server_side: Connection, log: Appender) -> None:
    log.create("orders.eu", 2)
    member = Member(server_side, "a", None, pattern="(?i)ORDERS[.].*")
    member.beat()
    assert member.partitions == {("orders.eu", 0), ("orders.eu", 1)}
    log.create("orders.us")
    log.create("reorders.us")
    log.connection.run(log.calls.add_partitions("orders.eu", 3))

    def seen() -> bool:
        member.beat()
        return len(member.partitions) == 4

    eventually(seen, "new topics and partitions are picked up")
    assert ("orders.us", 0) in member.partitions
    log.connection.run(log.calls.delete_topic("orders.us"))

    def gone() -> bool:
        member.beat()
        return len(member.partitions) == 3

    eventually(gone, "a deleted topic is noticed")


def test_added_partition_begins_at_its_start(server_side: Connection, log: Appender) -> None:
    member = Member(server_side, "a")
    member.beat()
    assert {claim.committed for claim in member.claims.values()} == {None}
    log.connection.run(log.calls.add_partitions("t", 11))

    def seen() -> bool:
        member.beat()
        return len(member.partitions) == 11

    eventually(seen, "the new partition is picked up")
    begin = {tp.partition: claim.committed for tp, claim in member.claims.items()}
    assert begin == {number: 0 if number == 10 else None for number in range(11)}


def test_topics_need_not_exist_yet(server_side: Connection, log: Appender) -> None:
    member = Member(server_side, "a", ["later"])
    assert member.beat().claims == {}
    log.create("later")

    def seen() -> bool:
        member.beat()
        return member.partitions == {("later", 0)}

    eventually(seen, "the topic is picked up")


def test_changed_subscription_is_a_change_of_the_group(server_side: Connection, log: Appender) -> None:
    log.create("u", 2)
    member = Member(server_side, "a")
    member.beat()
    member.subscribe(["u"])
    answer = member.beat()
    assert member.partitions == {("u", 0), ("u", 1)}
    assert sum(claim.revoke for claim in answer.claims.values()) == 10
    assert member.release() == 10
    epoch = member.beat().assigned_epoch
    member.subscribe(["u"])
    assert member.beat().assigned_epoch == epoch


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[", "", "x" * 1001, "***=a)"])
def test_pattern_that_is_no_pattern(server_side: Connection, log: Appender, pattern: str) -> None:
    with pytest.raises(InvalidSubscriptionError):
        Member(server_side, "a", None, pattern=pattern)
    assert server_side.run(CALLS.groups()) == []


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb"])
def test_illegal_names(server_side: Connection, log: Appender, name: str) -> None:
    with pytest.raises(InvalidGroupError):
        Member(server_side, "a", group=name)
    with pytest.raises(InvalidArgumentError):
        Member(server_side, name)
    with pytest.raises(InvalidArgumentError):
        Member(server_side, "a", instance=name)


def test_hostile_names_are_only_names(server_side: Connection, log: Appender) -> None:
    name = "'; DROP TABLE logstore.log_group; --"
    member = Member(server_side, name, group=name, instance=name)
    member.beat()
    assert len(member.partitions) == 10
    assert [row.group for row in server_side.run(CALLS.groups())] == [name]
    assert [row.member_id for row in server_side.run(CALLS.group_members(name))] == [name]


def test_assignor_of_the_majority(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a", assignor="range")
    b = Member(server_side, "b", assignor="range")
    c = Member(server_side, "c", assignor="uniform")
    settle(a, b, c)
    assert server_side.run(CALLS.groups("g"))[0].assignor == "range"
    for member in (a, b, c):
        numbers = sorted(number for _, number in member.partitions)
        assert all(right - left == 1 for left, right in pairwise(numbers))
    with pytest.raises(InvalidArgumentError):
        Member(server_side, "d", assignor="sticky")


def test_states_of_a_group(server_side: Connection, log: Appender) -> None:
    def state() -> str:
        return server_side.run(CALLS.groups("g"))[0].state

    a = Member(server_side, "a")
    assert state() == "Assigning"
    a.beat()
    assert state() == "Stable"
    b = Member(server_side, "b")
    b.beat()
    assert state() == "Reconciling"
    a.beat()
    a.release()
    b.beat()
    assert state() == "Stable"
    a.leave()
    b.leave()
    assert state() == "Empty"
