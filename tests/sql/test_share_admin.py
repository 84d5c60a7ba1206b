"""Configs, views, resetting and deleting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from logstore.errors import (
    GroupNotEmptyError,
    GroupNotFoundError,
    InvalidConfigError,
    UnknownTopicOrPartitionError,
)
from logstore.share import RELEASE
from tests.support.appender import values
from tests.support.share import Queue, Row


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database, 2) as made:
        yield made


def test_configs_have_kafkas_names_and_defaults(queue: Queue) -> None:
    queue.alter(share_delivery_count_limit=" 7 ")
    configs = {row.name: row for row in queue.connection.run(queue.share.describe_share_configs("g"))}
    assert {name: row.default for name, row in configs.items()} == {
        "errors.deadletterqueue.copy.record.enable": "true",
        "errors.deadletterqueue.topic.name": "",
        "share.auto.offset.reset": "latest",
        "share.delivery.count.limit": "5",
        "share.key.ordered": "false",
        "share.partition.max.record.locks": "2000",
        "share.record.lock.duration.ms": "30000",
        "share.renew.acknowledge.enable": "true",
        "share.retry.backoff.max.ms": "60000",
        "share.retry.backoff.ms": "0",
    }
    assert configs["share.delivery.count.limit"].value == "7"
    assert not configs["share.delivery.count.limit"].is_default
    assert configs["share.record.lock.duration.ms"].is_default
    queue.connection.run(queue.share.alter_share_group("g", {}, ["share.delivery.count.limit"]))
    configs = {row.name: row for row in queue.connection.run(queue.share.describe_share_configs("g"))}
    assert configs["share.delivery.count.limit"].value == "5"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share.delivery.count.limit", "0"),
        ("share.delivery.count.limit", "five"),
        ("share.delivery.count.limit", "99999999999999999999"),
        ("share.record.lock.duration.ms", "3600001"),
        ("share.record.lock.duration.ms", "-1"),
        ("share.key.ordered", "maybe"),
        ("share.auto.offset.reset", "middle"),
        ("share.auto.offset.reset", "by_duration:1h"),
        ("share.auto.offset.reset", "by_duration:P"),
        ("share.auto.offset.reset", "by_duration:P1Y"),
        ("no.such.config", "1"),
        ("share.auto.offset.reset", "'; drop table topic; --"),
    ],
)
def test_a_config_out_of_range_changes_nothing(queue: Queue, name: str, value: str) -> None:
    before = queue.connection.run(queue.share.describe_share_configs("g"))
    with pytest.raises(InvalidConfigError) as caught:
        queue.connection.run(
            queue.share.alter_share_group("g", {"share.delivery.count.limit": "9", name: value})
        )
    assert name in str(caught.value)
    assert queue.connection.run(queue.share.describe_share_configs("g")) == before


def test_unsetting_what_does_not_exist_is_refused(queue: Queue) -> None:
    with pytest.raises(InvalidConfigError):
        queue.connection.run(queue.share.alter_share_group("g", {}, ["no.such.config"]))


@pytest.mark.parametrize(
    "text", ["by_duration:PT1H", "by_duration:P1DT2H3M4.5S", "BY_DURATION:p2w", "Earliest"]
)
def test_resets_are_understood(queue: Queue, text: str) -> None:
    queue.alter(share_auto_offset_reset=text)
    queue.append("t", values(1))
    assert queue.offsets("a") == [0]


def test_the_view_says_where_a_group_is(queue: Queue) -> None:
    queue.append("t", values(20))
    queue.take("a", 5)
    queue.take("b", 5)
    queue.acknowledge("a", 0, 1)
    queue.acknowledge("a", 3, kind=RELEASE)
    queue.acknowledge("a", 4, kind=RELEASE, delay_ms=60_000)
    first, second = queue.connection.run(queue.share.share_partitions("g"))
    assert first[:11] == ("g", "t", queue.id, 0, 2, 10, 6, 1, 1, 18, ["a", "b"])
    assert first.next_due_at is not None
    assert second[:11] == ("g", "t", queue.id, 1, 0, 0, 0, 0, 0, 0, [])
    queue.pass_time(31)
    (first, _) = queue.connection.run(queue.share.share_partitions("g"))
    assert first[4:11] == (2, 10, 0, 7, 1, 18, [])
    assert queue.one("select kind from groups where \"group\" = 'g'") == "share"


def test_resetting_moves_the_start(queue: Queue) -> None:
    queue.append("t", values(20))
    queue.take("a", 5)
    queue.acknowledge("a", 0, kind=RELEASE)
    queue.acknowledge("a", 1, kind=RELEASE, delay_ms=1000)
    with pytest.raises(GroupNotEmptyError) as caught:
        queue.connection.run(queue.share.reset_share_offsets("g", [(queue.id, 0)], [15]))
    assert caught.value.details["members"] == ["a"]
    queue.pass_time(31)
    answer = queue.connection.run(
        queue.share.reset_share_offsets("g", [(queue.id, 0), (queue.id, 1)], [15, 99])
    )
    assert answer == [15, 0]
    assert queue.rows() == []
    assert queue.delayed() == []
    assert queue.take("b") == [(offset, 1) for offset in range(15, 20)]


def test_resetting_what_does_not_exist_is_refused(queue: Queue) -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        queue.connection.run(queue.share.reset_share_offsets("g", [(queue.id, 7)], [0]))


def test_forgotten_partitions_begin_again(queue: Queue) -> None:
    queue.append("t", values(5))
    queue.take("a")
    queue.acknowledge("a", 0, 4)
    assert queue.take("a") == []
    assert queue.connection.run(queue.share.delete_share_offsets("g", [(queue.id, 0), (queue.id, 1)])) == 2
    assert len(queue.take("a")) == 5


@pytest.mark.parametrize("way", ["delete_share_group", "delete_group"])
def test_a_deleted_group_leaves_nothing_behind(queue: Queue, way: str) -> None:
    queue.append("t", values(5))
    queue.take("a")
    queue.acknowledge("a", 0, kind=RELEASE, delay_ms=1000)
    if way == "delete_share_group":
        with pytest.raises(GroupNotEmptyError):
            queue.connection.run(queue.share.delete_share_group("g"))
    queue.pass_time(31)
    queue.raw.execute(f"select {way}('g')")
    left = """select (select count(*) from share_flight) + (select count(*) from share_delay)
                     + (select count(*) from share_window) + (select count(*) from share_partition)
                     + (select count(*) from share_group) + (select count(*) from log_group)"""
    assert queue.one(left) == 0
    with pytest.raises(GroupNotFoundError):
        queue.connection.run(queue.share.delete_share_group("g"))


def test_administration_waits_for_acquirers_and_they_for_it(queue: Queue, database: str) -> None:
    queue.append("t", values(10))
    queue.take("x", 1)
    queue.acknowledge("x", 0)
    with (
        closing(psycopg.connect(database)) as member,
        closing(psycopg.connect(database, autocommit=True)) as admin,
    ):
        member.execute("select from logstore.acquire('g', 'a', '{t}', 3)")
        errors: list[str | None] = []

        def delete() -> None:
            try:
                admin.execute("select logstore.delete_share_group('g')")
            except psycopg.Error as error:
                errors.append(error.sqlstate)

        waiter = threading.Thread(target=delete)
        waiter.start()
        queue.until_it_waits(admin.info.backend_pid)
        member.commit()
        waiter.join()
        assert errors == ["LS023"]
    assert queue.rows() == [Row(1, 3, "a", 1)]
