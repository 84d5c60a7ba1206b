"""What an admin client sees and does of groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from logstore.errors import (
    GroupNotEmptyError,
    GroupNotFoundError,
    InvalidArgumentError,
    UnknownMemberError,
    UnknownTopicOrPartitionError,
)
from logstore.groups import OffsetReset, PlannedOffset
from logstore.records import OffsetAndMetadata, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.membership import Member, connection, settle

pytestmark = pytest.mark.one_server

TP, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def log(appender: Appender) -> Appender:
    appender.create("t", 2)
    appender.append("t", values(10), 0, timestamps=[1000 * number for number in range(10)])
    return appender


@pytest.fixture
def admin(colour: Colour, database: str) -> Any:
    return colour.admin(database)


@pytest.fixture
def live(database: str, log: Appender) -> Iterator[list[Member]]:
    """Two members of group g; the first has committed 4 in partition 0."""
    with connection(database) as made:
        members = [Member(made, "a", instance="one"), Member(made, "b")]
        settle(*members)
        members[0].commit(4)
        yield members


@pytest.mark.every_server
def test_groups_are_listed_and_described(admin: Any, live: list[Member], log: Appender) -> None:
    (listed,) = admin.list_groups()
    assert (listed.group, listed.kind, listed.state, listed.members, listed.partitions) == (
        "g", "consumer", "Stable", 2, 2,
    )  # fmt: skip
    assert admin.list_groups(states=["empty"]) == []
    assert admin.list_groups(states=["Stable"], kinds=["consumer"]) == [listed]
    (described,) = admin.describe_groups(["g"])
    first, second = described.members
    assert (first.member_id, first.instance_id, first.client_id) == ("a", "one", "test")
    assert first.assignment == {TP: 1}
    assert second.assignment == {OTHER: 1}
    assert first.lease_until > first.joined_at > 1_600_000_000_000
    with pytest.raises(GroupNotFoundError):
        admin.describe_group("nobody")


def test_offsets_and_lag(admin: Any, live: list[Member], log: Appender) -> None:
    assert admin.list_group_offsets("g") == {TP: OffsetAndMetadata(4, "", None)}
    assert admin.list_group_offsets("g", [OTHER]) == {}
    assert admin.list_group_offsets("nobody") == {}
    zero, one = admin.group_lag("g")
    assert (zero.committed_offset, zero.end_offset, zero.lag, zero.member_id) == (4, 10, 6, "a")
    assert (one.committed_offset, one.lag, one.seconds_behind, one.member_id) == (None, None, None, "b")
    with pytest.raises(GroupNotFoundError):
        admin.group_lag("nobody")


def test_nothing_is_changed_while_there_are_members(admin: Any, live: list[Member], log: Appender) -> None:
    with pytest.raises(GroupNotEmptyError):
        admin.reset_group_offsets("g", OffsetReset.to_earliest(), [TP])
    with pytest.raises(GroupNotEmptyError):
        admin.alter_group_offsets("g", {TP: 1})
    with pytest.raises(GroupNotEmptyError):
        admin.delete_groups(["g"])
    with pytest.raises(GroupNotEmptyError):
        admin.delete_group_offsets("g", [TP])
    assert admin.list_group_offsets("g") == {TP: OffsetAndMetadata(4, "", None)}


@pytest.mark.parametrize(
    ("reset", "target"),
    [
        (OffsetReset.to_earliest(), 2),
        (OffsetReset.to_latest(), 10),
        (OffsetReset.to_current(), 4),
        (OffsetReset.to_offset(7), 7),
        (OffsetReset.to_offset(0), 2),
        (OffsetReset.to_timestamp(4500), 5),
        (OffsetReset.to_timestamp(10_000), 10),
        (OffsetReset.by_duration(1000), 10),
        (OffsetReset.shift_by(3), 7),
        (OffsetReset.shift_by(-3), 2),
        (OffsetReset.to_offsets({TP: 8}), 8),
    ],
)
def test_offsets_are_reset(admin: Any, log: Appender, reset: OffsetReset, target: int) -> None:
    log.connection.run(log.calls.delete_records("t", 0, 2))
    admin.alter_group_offsets("g", {TP: 4})
    expected = [PlannedOffset("t", 0, 4, target)]
    assert admin.plan_offset_reset("g", reset, [TP]) == expected
    assert admin.list_group_offsets("g")[TP].offset == 4
    assert admin.reset_group_offsets("g", reset) == expected
    assert admin.list_group_offsets("g")[TP].offset == target


def test_resets_that_make_no_sense(admin: Any, log: Appender) -> None:
    with pytest.raises(InvalidArgumentError):
        admin.plan_offset_reset("g", OffsetReset.shift_by(1), [TP])
    with pytest.raises(InvalidArgumentError, match=r"OffsetReset\.to_earliest"):
        admin.plan_offset_reset("g", "earliest", [TP])
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.plan_offset_reset("g", OffsetReset.to_earliest(), topics=["nothing"])
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.alter_group_offsets("g", {TopicPartition("t", 2): 0})
    for wrong in (-1, "1", True, 1.5):
        with pytest.raises(InvalidArgumentError):
            OffsetReset.to_offset(wrong)  # type: ignore[arg-type]
    assert admin.list_groups() == []


def test_groups_members_and_offsets_are_taken_away(admin: Any, live: list[Member], log: Appender) -> None:
    with pytest.raises(UnknownMemberError):
        admin.remove_group_member("g", "c")
    admin.remove_group_member("g", "one")
    admin.remove_group_member("g", "b")
    assert admin.delete_group_offsets("g", [TP, OTHER]) == 1
    admin.delete_groups("g")
    assert admin.list_groups() == []
    with pytest.raises(GroupNotFoundError):
        admin.delete_groups(["g"])
