"""Compacted topics as clients see them."""

from __future__ import annotations

import psycopg
import pytest

from logstore import ShareRecord, TopicPartition
from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    InvalidRecordError,
    UnknownTopicOrPartitionError,
)
from logstore.workers import compaction, erasure, roll
from tests.support.colours import Colour
from tests.support.reading import read

TP = TopicPartition("t", 0)


def clean(database: str) -> None:
    """Close what is there, and compact it."""
    with psycopg.connect(database, prepare_threshold=None) as connection:
        connection.execute("UPDATE logstore.topic SET roll_at = 0")
    while roll.run_once(database).topics:
        pass
    compaction.run_once(database)


def test_a_consumer_reads_over_holes(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t", configs={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
    producer = colour.producer(database, linger_ms=0)
    for number in range(20):
        producer.send("t", b"%d" % number, key=b"k%d" % (number % 3)).get(30)
        producer.send("t", None if number % 2 else b"x", key=b"z").get(30)
    caught_up = colour.consumer(dsn=database)
    caught_up.assign([TP])
    caught_up.seek(TP, 0)
    assert len(read(caught_up, 40)) == 40, "who is caught up sees every record"
    clean(database)
    producer.send("t", b"head", key=b"k0").get(30)
    wanted = [34, 36, 38, 39, 40]

    for position in (0, 1, 20, 34, 35, 37, 39):
        consumer = colour.consumer(dsn=database)
        consumer.assign([TP])
        consumer.seek(TP, position)
        expected = [offset for offset in wanted if offset >= position]
        assert [record.offset for record in read(consumer, len(expected))] == expected
        assert consumer.position(TP) == 41
        consumer.close()
    assert [record.offset for record in read(caught_up, 1)] == [40]


def test_latest(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t", partitions=2, configs={"cleanup.policy": "compact"})
    admin.create_topic("plain")
    producer = colour.producer(database)
    producer.send("t", b"old", key=b"alice", partition=1, headers=[("a", b"1")]).get(30)
    sent = producer.send(
        "t", b"new", key=b"alice", partition=1, headers=[("a", b"2"), ("a", None)], timestamp_ms=1234
    ).get(30)
    producer.send("t", None, key=b"bob", partition=0).get(30)

    consumer = colour.consumer(dsn=database, value_deserializer=bytes.decode)
    for key in ("alice", b"alice"):
        found = consumer.latest("t", key)
        assert (found.topic, found.partition, found.offset) == ("t", 1, sent.offset)
        assert (found.key, found.value, found.timestamp) == (b"alice", "new", 1234)
        assert found.headers == (("a", b"2"), ("a", None))
    assert consumer.latest("t", "alice", 0) is None
    assert consumer.latest("t", "nobody") is None
    assert consumer.latest("t", "bob").value is None, "a tombstone"
    assert consumer.assignment() == frozenset()
    with pytest.raises(IllegalStateError):
        consumer.latest("plain", "alice")
    with pytest.raises(UnknownTopicOrPartitionError):
        consumer.latest("nothing", "alice")
    with pytest.raises(UnknownTopicOrPartitionError):
        consumer.latest("t", "alice", 2)
    for wrong in (1, "\ud800"):
        with pytest.raises(InvalidArgumentError):
            consumer.latest("t", wrong)


def test_a_record_without_a_key_is_refused(colour: Colour, database: str) -> None:
    colour.admin(database).create_topic("t", configs={"cleanup.policy": "compact"})
    producer = colour.producer(database)
    with pytest.raises(InvalidRecordError):
        producer.send("t", b"value").get(30)
    producer.send("t", b"value", key=b"key").get(30)


def test_erasing_a_key(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t")
    producer = colour.producer(database)
    for key in (b"alice", b"bob", b"alice"):
        producer.send("t", b"value", key=key).get(30)
    erasure_id = admin.erase_key("t", "alice")
    (asked,) = admin.list_erasures()
    assert (asked.erasure_id, asked.topic, asked.records, asked.removed_at) == (erasure_id, "t", 0, None)
    erasure.run_once(database)
    (done,) = admin.list_erasures("t")
    assert done.records == 2 and done.removed_at is not None
    assert admin.list_erasures("other") == []
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    assert [(record.offset, record.key) for record in read(consumer, 1)] == [(1, b"bob")]
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.erase_key("nothing", b"alice")


def test_batches_without_records_are_passed_over(colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    admin.create_topic("t", configs={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
    producer = colour.producer(database)
    for number in range(3):
        producer.send("t", b"%d" % number, key=b"same").get(30)
        with psycopg.connect(database, prepare_threshold=None) as connection:
            connection.execute("UPDATE logstore.topic SET roll_at = 0")
        while roll.run_once(database).topics:
            pass
    compaction.run_once(database)
    with psycopg.connect(database, prepare_threshold=None) as connection:
        query = (
            "SELECT record_count FROM logstore.batches JOIN logstore.topic_segment USING (topic_id, segment)"
        )
        counts = connection.execute(query + " WHERE live ORDER BY last_offset").fetchall()
    assert counts == [(0,), (0,), (1,)]

    consumer = colour.consumer("t", dsn=database, group_id="g", auto_offset_reset="earliest")
    (record,) = read(consumer, 1)
    assert (record.offset, record.value) == (2, b"2")
    assert consumer.position(TP) == 3
    consumer.commit()
    consumer.close()

    with psycopg.connect(database, prepare_threshold=None) as connection:
        connection.execute(
            "SELECT logstore.alter_share_group('s', '{\"share.auto.offset.reset\": \"earliest\"}')"
        )
    sharing = colour.share_consumer("t", dsn=database, group_id="s")
    shared: list[ShareRecord] = []
    while not shared:
        shared = [each for part in sharing.poll(timeout_ms=10_000).values() for each in part]
    assert [each.offset for each in shared] == [2]
    sharing.close()
