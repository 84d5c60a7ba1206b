"""Where a consumer reads, and how a program changes that."""

from __future__ import annotations

import pytest

from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    InvalidTopicError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from logstore.records import OffsetAndTimestamp, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.reading import ENOUGH_MS, read

TP, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def topic(appender: Appender) -> Appender:
    """Topic t with two partitions of ten records, whose timestamps are ten times their offsets."""
    appender.create("t", 2, message_timestamp_before_max_ms=str(2**62))
    for partition in (0, 1):
        appender.append("t", values(10), partition, timestamps=range(0, 100, 10))
    return appender


def test_seek(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database)
    consumer.assign([TP])
    consumer.seek(TP, 7)
    assert consumer.position(TP) == 7
    assert [r.offset for r in read(consumer, 3)] == [7, 8, 9]
    consumer.seek(TP, 2)
    assert [r.offset for r in read(consumer, 8)] == list(range(2, 10))
    assert consumer.position(TP) == 10


def test_seek_to_both_ends(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database)
    consumer.assign([TP, OTHER])
    consumer.seek_to_end()
    assert (consumer.position(TP), consumer.position(OTHER)) == (10, 10)
    consumer.seek_to_beginning(OTHER)
    assert (consumer.position(TP), consumer.position(OTHER)) == (10, 0)
    assert {r.partition for r in read(consumer, 10)} == {1}


def test_seek_to_end_is_looked_up_by_the_next_poll(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest")
    read(consumer, 20)
    topic.append("t", [b"unseen"])
    consumer.seek_to_end()
    assert consumer.poll() == {}
    topic.append("t", [b"seen"])
    assert [r.value for r in read(consumer, 1)] == [b"seen"]


def test_what_there_is(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database)
    topic.connection.run(topic.calls.delete_records("t", 1, 4))
    assert consumer.beginning_offsets([TP, OTHER]) == {TP: 0, OTHER: 4}
    assert consumer.end_offsets([OTHER, TP]) == {TP: 10, OTHER: 10}
    assert consumer.offsets_for_times({TP: 41, OTHER: 10}) == {
        TP: OffsetAndTimestamp(5, 50, 0),
        OTHER: OffsetAndTimestamp(4, 40, 0),
    }
    assert consumer.offsets_for_times({TP: 91, OTHER: 90}) == {TP: None, OTHER: OffsetAndTimestamp(9, 90, 0)}
    assert consumer.beginning_offsets([]) == {}
    assert consumer.partitions_for_topic("t") == {0, 1}
    assert consumer.partitions_for_topic("u") is None
    assert consumer.topics() == {"t"}


def test_high_water_mark_is_what_the_last_fetch_saw(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database, auto_offset_reset="earliest")
    consumer.assign([TP])
    assert consumer.highwater(TP) is None
    read(consumer, 10)
    assert consumer.highwater(TP) == 10


def test_pause_and_resume(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=2)
    read(consumer, 2)
    consumer.pause(TP)
    assert consumer.paused() == {TP}
    position = consumer.position(TP)
    assert {r.partition for r in read(consumer, 10 - consumer.position(OTHER))} == {1}
    assert consumer.poll() == {}
    assert consumer.position(TP) == position
    consumer.resume(TP)
    assert consumer.paused() == frozenset()
    assert [r.offset for r in read(consumer, 10 - position)] == list(range(position, 10))


def test_what_is_not_assigned_has_no_position(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database)
    consumer.assign([TP])
    for method in ("position", "pause", "resume", "highwater", "seek_to_end"):
        with pytest.raises(IllegalStateError, match=r"[Pp]artition 1"):
            getattr(consumer, method)(OTHER)
    with pytest.raises(IllegalStateError):
        consumer.seek(OTHER, 0)


def test_nothing_to_read(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database)
    with pytest.raises(IllegalStateError, match="nothing to read"):
        consumer.poll()
    consumer.subscribe(["t"])
    assert consumer.poll() == {}
    with pytest.raises(InvalidArgumentError, match="timeout_ms"):
        consumer.poll(timeout_ms="soon")
    with pytest.raises(InvalidTopicError):
        consumer.subscribe([["t"]])
    consumer.seek_to_beginning()
    assert len(read(consumer, 20)) == 20
    consumer.unsubscribe()
    assert consumer.assignment() == frozenset()
    with pytest.raises(IllegalStateError, match="nothing to read"):
        next(consumer)


def test_assigning_again_keeps_positions(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database, auto_offset_reset="earliest", max_poll_records=3)
    consumer.assign([TP])
    read(consumer, 3)
    consumer.assign([TP, OTHER])
    assert consumer.assignment() == {TP, OTHER}
    assert (consumer.position(TP), consumer.position(OTHER)) == (3, 0)


@pytest.mark.parametrize("offset", [3, 11])
def test_position_outside_of_the_log_is_reset(
    colour: Colour, database: str, topic: Appender, offset: int
) -> None:
    topic.connection.run(topic.calls.delete_records("t", 0, 4))
    consumer = colour.consumer(dsn=database, auto_offset_reset="earliest")
    consumer.assign([TP])
    consumer.seek(TP, offset)
    assert [r.offset for r in read(consumer, 6)] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("offset", [3, 11])
def test_position_outside_of_the_log_is_an_error(
    colour: Colour, database: str, topic: Appender, offset: int
) -> None:
    topic.connection.run(topic.calls.delete_records("t", 0, 4))
    consumer = colour.consumer(dsn=database, auto_offset_reset="none")
    consumer.assign([TP])
    consumer.seek(TP, offset)
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError, match=f"Offset {offset} .*from 4 to 10"):
            consumer.poll(timeout_ms=ENOUGH_MS)
    consumer.seek(TP, 9)
    assert [r.offset for r in read(consumer, 1)] == [9]


def test_log_start_that_moves_while_reading(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database, auto_offset_reset="earliest")
    consumer.assign([TP])
    read(consumer, 10)
    topic.append("t", values(5), wake=False)
    topic.connection.run(topic.calls.delete_records("t", 0, 13))
    topic.append("t", values(1))
    got: list[int] = []
    while not got or got[-1] < 15:
        got += [r.offset for r in read(consumer, 1)]
    assert got in ([13, 14, 15], list(range(10, 16))), "what was fetched before, or not"


def test_no_position_and_no_policy(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="none")
    for _ in range(3):
        with pytest.raises(NoOffsetForPartitionError, match="seek"):
            consumer.poll(timeout_ms=ENOUGH_MS)
    consumer.seek(TP, 8)
    consumer.seek(OTHER, 9)
    assert len(read(consumer, 3)) == 3


def test_by_duration(colour: Colour, database: str, topic: Appender) -> None:
    assert topic.append("t", [b"now"], 1) == 10
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="by_duration:PT1H")
    assert (consumer.position(TP), consumer.position(OTHER)) == (10, 10)
    assert [r.value for r in read(consumer, 1)] == [b"now"]


# -- topics that come, grow and go


def test_unknown_topic(colour: Colour, database: str) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="'nope'"):
        colour.consumer("nope", dsn=database)
    with pytest.raises(InvalidTopicError, match="a b"):
        colour.consumer("a b", dsn=database)


def test_unknown_partition_is_told_until_it_exists(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database, auto_offset_reset="earliest")
    missing = TopicPartition("t", 2)
    consumer.assign([missing])
    for _ in range(2):
        with pytest.raises(UnknownTopicOrPartitionError, match="no partition 2: it has 2"):
            consumer.poll(timeout_ms=ENOUGH_MS)
        with pytest.raises(UnknownTopicOrPartitionError):
            consumer.position(missing)
    for asked in (consumer.end_offsets, consumer.beginning_offsets):
        with pytest.raises(UnknownTopicOrPartitionError):
            asked([missing])
        with pytest.raises(UnknownTopicOrPartitionError):
            asked([TopicPartition("nope", 0)])
    topic.connection.run(topic.calls.add_partitions("t", 3))
    topic.append("t", [b"x"], 2)
    assert [r.value for r in read(consumer, 1)] == [b"x"]


def test_partitions_added_later_are_read_from_their_start(
    colour: Colour, database: str, topic: Appender
) -> None:
    consumer = colour.consumer("t", dsn=database, metadata_max_age_ms=50)
    assert consumer.poll() == {}
    topic.connection.run(topic.calls.add_partitions("t", 3))
    topic.append("t", [b"first"], 2)
    assert [(r.partition, r.value) for r in read(consumer, 1)] == [(2, b"first")]


@pytest.mark.parametrize("assigned", [False, True])
def test_topic_deleted_while_it_is_read(
    colour: Colour, database: str, topic: Appender, assigned: bool
) -> None:
    consumer = colour.consumer(*([] if assigned else ["t"]), dsn=database, auto_offset_reset="earliest")
    if assigned:
        consumer.assign([TP, OTHER])
    read(consumer, 20)
    topic.connection.run(topic.calls.delete_topic("t"))
    for _ in range(3):
        with pytest.raises(UnknownTopicOrPartitionError, match="'t'"):
            consumer.poll(timeout_ms=ENOUGH_MS)


def test_topic_made_anew_is_told_then_read(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer(dsn=database, auto_offset_reset="latest")
    consumer.assign([TP])
    consumer.poll()
    topic.connection.run(topic.calls.delete_topic("t"))
    topic.create("t")
    topic.append("t", [b"anew"])
    told = 0
    while True:
        try:
            ((record,),) = consumer.poll(timeout_ms=ENOUGH_MS).values()
            break
        except UnknownTopicOrPartitionError:
            told += 1
    assert told >= 1
    assert (record.offset, record.value) == (0, b"anew")


@pytest.mark.parametrize("nonsense", ["t", ("t",), ("t", -1), ("t", "0"), ("t", True), None, 5])
def test_partition_has_to_be_one(colour: Colour, database: str, nonsense: object) -> None:
    consumer = colour.consumer(dsn=database)
    with pytest.raises(InvalidArgumentError):
        consumer.assign([nonsense])
    with pytest.raises(InvalidArgumentError):
        consumer.end_offsets([nonsense])
    with pytest.raises(InvalidArgumentError):
        consumer.wait_for_offset(nonsense, 0)


@pytest.mark.parametrize("nonsense", [-1, 1.5, "0", None])
def test_timestamp_has_to_be_one(colour: Colour, database: str, topic: Appender, nonsense: object) -> None:
    with pytest.raises(InvalidArgumentError, match="timestamp"):
        colour.consumer(dsn=database).offsets_for_times({TP: nonsense})
