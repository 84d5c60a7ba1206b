"""Topics are made, described, changed and deleted."""

from __future__ import annotations

import pytest

from logstore.errors import (
    ClientClosedError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    LogstoreError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from logstore.records import OffsetAndTimestamp, TopicPartition
from logstore.topics import EARLIEST, LATEST, MAX_TIMESTAMP, NewTopic
from tests.support.appender import Appender, values
from tests.support.colours import Colour

HOSTILE = [
    "",
    ".",
    "..",
    "a b",
    "a'; DROP SCHEMA logstore CASCADE; --",
    'a"b',
    "ä",
    "a\0b",
    "\ud800",
    "x" * 250,
]


def test_create_and_describe(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    configs = {
        "retention.ms": 3_600_000,
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": 5000,
    }
    made = admin.create_topic("orders", partitions=4, configs=configs)
    found = admin.describe_topic("orders")
    assert (found.topic, found.topic_id, found.partitions) == ("orders", made, 4)
    assert (found.timestamp_type, found.max_message_bytes) == (1, 5000)
    assert found.configs["retention.ms"] == "3600000"
    assert found.configs["segment.bytes"] == "1073741824"
    assert admin.list_topics() == ["orders"]
    assert admin.describe_topics() == admin.describe_topics(["orders"]) == [found]


def test_create_several_all_or_none(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    made = admin.create_topics([NewTopic("b", 2, topic_configs={"cleanup.policy": "compact"}), "a"])
    assert sorted(made) == ["a", "b"] == admin.list_topics()
    assert admin.describe_topic("b").configs["cleanup.policy"] == "compact"
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics(["c", "b"])
    assert admin.list_topics() == ["a", "b"]
    assert admin.create_topics(["b", "c"], if_not_exists=True)["b"] == made["b"]


def test_create_refuses(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t")
    with pytest.raises(TopicAlreadyExistsError, match="t"):
        admin.create_topic("t")
    assert admin.create_topic("t", if_not_exists=True) == admin.describe_topic("t").topic_id
    for partitions in (0, -1, 10_001):
        with pytest.raises(InvalidPartitionsError):
            admin.create_topic("u", partitions=partitions)
    for nonsense in ("4", 1.0, True, None, 2**40):
        with pytest.raises(InvalidArgumentError):
            admin.create_topic("u", partitions=nonsense)
    for configs in ({"retention.ms": "soon"}, {"no.such.config": "1"}, {"segment.bytes": 1}):
        with pytest.raises(InvalidConfigError):
            admin.create_topic("u", configs=configs)
    for wrong in ({"retention.ms": None}, ["retention.ms"]):
        with pytest.raises(InvalidArgumentError):
            admin.create_topic("u", configs=wrong)
    assert admin.list_topics() == ["t"]


def test_replication_factor(colour: Colour, database: str) -> None:
    """Of a group of one: tests/concurrency/test_replicas.py has one with followers."""
    admin = colour.admin(database)
    admin.create_topic("all")
    admin.create_topics([NewTopic("one", 2, 1)])
    for asked in (2, 32_767):
        with pytest.raises(InvalidReplicationFactorError, match=f"of {asked} was .* one server") as refused:
            admin.create_topic("t", replication_factor=asked)
        assert refused.value.details["replicas"] == 1
        assert "followers" in refused.value.advice
        with pytest.raises(InvalidReplicationFactorError):
            admin.create_topics(["t", NewTopic("u", replication_factor=asked)])
        with pytest.raises(InvalidReplicationFactorError):
            admin.alter_replication_factor("all", asked)
    for nonsense in (0, -2, 2**15):
        with pytest.raises(InvalidReplicationFactorError, match=str(nonsense)):
            admin.create_topic("t", replication_factor=nonsense)
    for wrong in ("1", 1.0, True, None):
        with pytest.raises(InvalidArgumentError):
            admin.create_topic("t", replication_factor=wrong)
    assert admin.create_topic("one", if_not_exists=True, replication_factor=9) > 0, "it is left as it is"
    assert admin.list_topics() == ["all", "one"]
    admin.alter_replication_factor("one", -1)
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.alter_replication_factor("none", 1)

    (leader,) = admin.describe_replicas()
    assert (leader.role, leader.state, leader.in_sync) == ("leader", "running", True)
    (held,) = admin.describe_partition_replicas(["all"])
    assert held == ("all", 0, leader.name, 1, [leader.name], [leader.name], 1, False, False, True)
    assert len(admin.describe_partition_replicas()) == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_name_that_kafka_would_refuse(colour: Colour, database: str, name: str) -> None:
    admin = colour.admin(database)
    for call in (admin.create_topic, admin.describe_topic, admin.delete_topic, admin.describe_configs):
        with pytest.raises(InvalidTopicError):
            call(name)
    assert admin.list_topics() == []


@pytest.mark.parametrize("text", ["'; DROP SCHEMA logstore CASCADE; --", "\0", "\ud800", "{", '"'])
def test_hostile_config_is_only_refused(colour: Colour, database: str, text: str) -> None:
    admin = colour.admin(database)
    for configs in ({text: "1"}, {"retention.ms": text}):
        with pytest.raises(LogstoreError):
            admin.create_topic("t", configs=configs)
    assert admin.list_topics() == []


def test_alter_configs(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t", configs={"retention.ms": 5, "segment.ms": 100})
    admin.alter_configs("t", {"retention.ms": 7, "segment.ms": None})
    configs = admin.describe_configs("t")
    assert (configs["retention.ms"].value, configs["retention.ms"].is_default) == ("7", False)
    assert (configs["segment.ms"].value, configs["segment.ms"].is_default) == ("604800000", True)
    assert configs["cleanup.policy"].doc
    with pytest.raises(InvalidConfigError):
        admin.alter_configs("t", {"segment.ms": 9, "retention.ms": -5})
    assert admin.describe_configs("t")["segment.ms"].is_default
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.alter_configs("nope", {"retention.ms": 7})
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.describe_configs("nope")


def test_create_partitions(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t", 2)
    admin.create_partitions("t", 5)
    assert admin.describe_topic("t").partitions == 5
    for total in (5, 4, 0):
        with pytest.raises(InvalidPartitionsError):
            admin.create_partitions("t", total)
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.create_partitions("nope", 5)


def test_delete(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topics(["a", "b", "c"])
    admin.delete_topic("a")
    assert admin.list_topics() == ["b", "c"]
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics(["b", "nope"])
    assert admin.list_topics() == ["b", "c"]
    admin.delete_topics(["c", "b"])
    assert admin.list_topics() == []
    with pytest.raises(UnknownTopicOrPartitionError, match="'a'"):
        admin.describe_topics(["a"])


def test_offsets_and_deleted_records(colour: Colour, database: str, appender: Appender) -> None:
    admin = colour.admin(database)
    appender.create("t", 2, message_timestamp_before_max_ms=str(2**62))
    appender.append("t", values(10), timestamps=[5, 90, 10, 20, 30, 40, 50, 60, 70, 80])
    full, empty = TopicPartition("t", 0), TopicPartition("t", 1)
    assert admin.list_offsets({full: EARLIEST, empty: LATEST}) == {
        full: OffsetAndTimestamp(0, -1, 0),
        empty: OffsetAndTimestamp(0, -1, 0),
    }
    assert admin.list_offsets({full: MAX_TIMESTAMP, empty: MAX_TIMESTAMP}) == {
        full: OffsetAndTimestamp(1, 90, 0),
        empty: None,
    }
    assert admin.list_offsets({full: 41, empty: 41}) == {full: OffsetAndTimestamp(1, 90, 0), empty: None}
    assert admin.list_offsets({}) == {}
    assert admin.delete_records({full: 4}) == {full: 4}
    assert admin.delete_records({full: 2}) == {full: 4}
    with pytest.raises(OffsetOutOfRangeError):
        admin.delete_records({full: 11, empty: 0})
    assert admin.delete_records({full: -1, empty: -1}) == {full: 10, empty: 0}
    assert admin.list_offsets({full: EARLIEST})[full].offset == 10
    for unknown in (TopicPartition("t", 2), TopicPartition("nope", 0)):
        with pytest.raises(UnknownTopicOrPartitionError):
            admin.list_offsets({unknown: LATEST})
        with pytest.raises(UnknownTopicOrPartitionError):
            admin.delete_records({unknown: 0})
    for nonsense in ("1", None, True, 2**63):
        with pytest.raises(InvalidArgumentError):
            admin.delete_records({full: nonsense})


def test_says_where_it_is_connected(colour: Colour, database: str) -> None:
    assert colour.admin(database).dsn == database


def test_connection_that_is_lost_is_made_anew(
    colour: Colour, database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("logstore._sync.admin", "logstore._async.admin"):
        monkeypatch.setattr(f"{module}.IDLE_S", 0.0)
    admin = colour.admin(database, client_id="victim")
    kill = (
        "SELECT pg_catalog.pg_terminate_backend(pid, 10000) FROM pg_catalog.pg_stat_activity "
        "WHERE application_name = 'victim'"
    )
    appender.connection.execute(kill)
    assert admin.list_topics() == []
    appender.connection.execute(kill)
    admin.create_topic("t")
    appender.connection.execute(kill)
    admin.create_topics(["u"])
    assert admin.list_topics() == ["t", "u"]


def test_closed_client_says_so(colour: Colour, database: str) -> None:
    with colour.admin(database) as admin:
        admin.list_topics()
    admin.close()
    for call in (admin.list_topics, admin.start, lambda: admin.create_topics(["a"])):
        with pytest.raises(ClientClosedError):
            call()
