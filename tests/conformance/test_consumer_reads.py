"""What a consumer hands out, and in which order."""

from __future__ import annotations

import pytest

from logstore.errors import InvalidArgumentError, SerializationError
from logstore.records import CREATE_TIME, LOG_APPEND_TIME, ConsumerRecord, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.reading import ENOUGH_MS, read

pytestmark = pytest.mark.both_colours

TP = TopicPartition("t", 0)


def test_record_comes_back_as_it_was_appended(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    headers = [(1, "a", b"1"), (1, "a", None), (1, "ünï", b"\xff"), (3, "c", b"")]
    appender.append(
        "t", [b"v", None, b""], keys=[b"k", None, b""], headers=headers, timestamps=[1000, 3000, 2000]
    )
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    assert read(consumer, 3) == [
        ConsumerRecord(
            "t", 0, 0, 1000, CREATE_TIME, b"k", b"v", (("a", b"1"), ("a", None), ("ünï", b"\xff")), 0
        ),
        ConsumerRecord("t", 0, 1, 3000, CREATE_TIME, None, None, (), 0),
        ConsumerRecord("t", 0, 2, 2000, CREATE_TIME, b"", b"", (("c", b""),), 0),
    ]


def test_server_sets_the_timestamp_where_the_topic_says_so(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t", message_timestamp_type="LogAppendTime")
    appender.append("t", values(2), timestamps=[5, 6])
    first, second = read(colour.consumer("t", dsn=database, auto_offset_reset="earliest"), 2)
    assert first.timestamp_type == LOG_APPEND_TIME
    assert first.timestamp == second.timestamp > 1_600_000_000_000


def test_every_record_once_and_in_order(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", 3)
    for size in (1, 700, 3, 900, 1):
        for partition in range(3):
            appender.append("t", values(size), partition)
    consumer = colour.consumer(
        "t", dsn=database, auto_offset_reset="earliest", max_partition_fetch_bytes=5000
    )
    got = read(consumer, 3 * 1605)
    for partition in range(3):
        assert [r.offset for r in got if r.partition == partition] == list(range(1605))
    assert consumer.poll() == {}


def test_records_cross_segments(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", segment_bytes="14")
    for begin in range(0, 50, 10):
        appender.append("t", values(10, begin))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    assert [r.value for r in read(consumer, 50)] == values(50)


def test_latest_reads_what_is_appended_after_the_first_poll(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t")
    appender.append("t", values(5))
    consumer = colour.consumer("t", dsn=database)
    assert consumer.poll() == {}
    appender.append("t", [b"new"])
    assert [r.value for r in read(consumer, 1)] == [b"new"]


def test_poll_returns_no_more_than_it_may(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(1000))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=7)
    assert len(consumer.poll(timeout_ms=ENOUGH_MS)[TP]) == 7
    assert len(consumer.poll(timeout_ms=ENOUGH_MS, max_records=3)[TP]) == 3
    assert consumer.position(TP) == 10
    for nonsense in (0, -1, True, "5"):
        with pytest.raises(InvalidArgumentError):
            consumer.poll(max_records=nonsense)


def test_batch_larger_than_every_limit_comes_whole(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", [b"x" * 100_000, b"y" * 100_000])
    consumer = colour.consumer(
        "t", dsn=database, auto_offset_reset="earliest", fetch_max_bytes=1, max_partition_fetch_bytes=1
    )
    assert [len(r.value) for r in read(consumer, 2)] == [100_000, 100_000]


def test_several_topics(colour: Colour, database: str, appender: Appender) -> None:
    for name in ("a", "b"):
        appender.create(name, 2)
        appender.append(name, [name.encode()], 1)
    consumer = colour.consumer("a", "b", dsn=database, auto_offset_reset="earliest")
    assert {(r.topic, r.value) for r in read(consumer, 2)} == {("a", b"a"), ("b", b"b")}
    assert consumer.subscription() == {"a", "b"}
    assert len(consumer.assignment()) == 4


def test_many_partitions_take_turns(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", 20)
    for partition in range(20):
        appender.append("t", values(200), partition)
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=10)
    got = read(consumer, 4000)
    served = [got[place].partition for place in range(0, 4000, 10)]
    for round_begin in range(0, 400, 20):
        assert len(set(served[round_begin : round_begin + 20])) == 20


# -- iteration


def test_iteration_ends_when_nothing_comes(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(1200))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", consumer_timeout_ms=20)
    assert [r.value for r in consumer] == values(1200)
    appender.append("t", [b"more"])
    while consumer.highwater(TP) == 1200:
        pass
    assert [r.value for r in consumer] == [b"more"]


def test_iteration_can_be_left_and_taken_up(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(100))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", consumer_timeout_ms=20)
    got = []
    for record in consumer:
        got.append(record)
        assert consumer.position(TP) == record.offset + 1
        if len(got) == 10:
            break
    got.append(next(consumer))
    got += consumer.poll(timeout_ms=ENOUGH_MS, max_records=5)[TP]
    got += consumer
    assert [r.offset for r in got] == list(range(100))
    with pytest.raises(StopIteration):
        next(consumer)


def test_seek_while_iterating(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", values(10))
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", consumer_timeout_ms=20)
    got = []
    for record in consumer:
        got.append(record.offset)
        if got == [0, 1, 2]:
            consumer.seek(TP, 8)
    assert got == [0, 1, 2, 8, 9]


def test_one_and_many(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", 2)
    for partition in range(2):
        appender.append("t", values(5), partition)
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    other = TopicPartition("t", 1)
    assert consumer.getone(other).topic_partition == other
    assert [r.offset for r in consumer.getmany(other, timeout_ms=ENOUGH_MS)[other]] == [1, 2, 3, 4]
    assert consumer.getmany(other) == {}
    assert [r.offset for r in consumer.getmany(timeout_ms=ENOUGH_MS)[TP]] == [0, 1, 2, 3, 4]


# -- deserializers


def test_deserializers(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    appender.append("t", [b"1", None], keys=[b"a", None])
    consumer = colour.consumer(
        "t", dsn=database, auto_offset_reset="earliest", key_deserializer=bytes.decode, value_deserializer=int
    )
    assert [(r.key, r.value) for r in read(consumer, 2)] == [("a", 1), (None, None)]


def test_record_that_cannot_be_deserialized_can_be_skipped(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t")
    appender.append("t", [b"0", b"1", b"poison", b"3"])
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", value_deserializer=int)
    assert [r.value for r in read(consumer, 2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(SerializationError, match="offset 2 of partition 0 of topic 't'") as caught:
            consumer.poll(timeout_ms=ENOUGH_MS)
        assert consumer.position(TP) == 2
    consumer.seek(TP, caught.value.details["offset"] + 1)
    assert [r.value for r in read(consumer, 1)] == [3]
