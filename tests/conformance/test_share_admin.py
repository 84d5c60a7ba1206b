"""What an administrator can do with share groups, in both colours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from logstore.errors import (
    GroupNotEmptyError,
    GroupNotFoundError,
    InvalidConfigError,
    UnknownTopicOrPartitionError,
)
from logstore.records import TopicPartition
from tests.support.appender import values
from tests.support.colours import Colour
from tests.support.share import Queue

TP = TopicPartition("t", 0)


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database) as made:
        made.append("t", values(10))
        yield made


def test_configs(colour: Colour, queue: Queue) -> None:
    admin = colour.admin(queue.dsn)
    admin.alter_share_configs("new", {"share.key.ordered": True, "share.delivery.count.limit": 7})
    configs = admin.describe_share_configs("new")
    assert configs["share.key.ordered"].value == "true"
    assert (configs["share.delivery.count.limit"].value, configs["share.delivery.count.limit"].default) == (
        "7",
        "5",
    )
    admin.alter_share_configs("new", {"share.delivery.count.limit": None})
    assert admin.describe_share_configs("new")["share.delivery.count.limit"].is_default
    with pytest.raises(InvalidConfigError):
        admin.alter_share_configs("new", {"share.delivery.count.limit": "many"})
    with pytest.raises(GroupNotFoundError):
        admin.describe_share_configs("nobody")


def test_describing(colour: Colour, queue: Queue) -> None:
    admin = colour.admin(queue.dsn)
    assert admin.describe_share_group("g") == []
    queue.take("a", 4)
    queue.acknowledge("a", 0, 1)
    (place,) = admin.describe_share_group("g")
    assert place.topic_partition == TP
    assert (place.start_offset, place.end_offset, place.in_flight, place.lag) == (2, 4, 2, 8)
    assert place.members == ["a"]
    assert admin.list_share_groups() == [place]
    assert [(each.group, each.kind) for each in admin.list_groups()] == [("g", "share")]
    with pytest.raises(GroupNotFoundError):
        admin.describe_share_group("nobody")


def test_beginning_elsewhere(colour: Colour, queue: Queue) -> None:
    admin = colour.admin(queue.dsn)
    queue.take("a", 4)
    with pytest.raises(GroupNotEmptyError):
        admin.alter_share_group_offsets("g", {TP: 0})
    queue.pass_time(31)
    assert admin.alter_share_group_offsets("g", {TP: 7}) == {TP: 7}
    assert queue.offsets("b") == [7, 8, 9]
    queue.acknowledge("b", 7, 9)
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.alter_share_group_offsets("g", {TopicPartition("u", 0): 0})
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.alter_share_group_offsets("g", {TopicPartition("t", 5): 0})


def test_forgetting(colour: Colour, queue: Queue) -> None:
    admin = colour.admin(queue.dsn)
    queue.take("a")
    with pytest.raises(GroupNotEmptyError):
        admin.delete_share_group_offsets("g", [TP])
    with pytest.raises(GroupNotEmptyError):
        admin.delete_share_group("g")
    queue.acknowledge("a", 0, 9)
    assert admin.delete_share_group_offsets("g", [TP]) == 1
    assert admin.describe_share_group("g") == []
    admin.delete_share_group("g")
    with pytest.raises(GroupNotFoundError):
        admin.delete_share_group("g")
