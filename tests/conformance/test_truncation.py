"""A failover that takes away what consumers have read: nobody goes on in another history untold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from logstore import TopicPartition
from logstore.errors import LogTruncationError, OffsetOutOfRangeError
from logstore.records import OffsetAndMetadata
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.reading import ENOUGH_MS, read
from tests.support.several import together
from tests.support.standbys import Group, standbys

pytestmark = [pytest.mark.one_server, pytest.mark.long]

TP = TopicPartition("t", 0)
OLD = [b"%d" % number for number in range(10)]
NEW = [b"new-%d" % number for number in range(5, 10)]


@pytest.fixture
def group() -> Iterator[Group]:
    """A leader that waits for nobody, so that its follower may have less than was read."""
    with standbys(1) as found:
        yield found


def lose_the_second_half(group: Group, log: Appender) -> None:
    """The leader appends ten records; its follower gets five of them."""
    log.append("t", values(5))
    (follower,) = group.followers
    group.caught_up(follower)
    group.cut_off(follower)
    log.append("t", values(5, 5))


def fail_over(group: Group, *consumers: Any) -> None:
    """The follower leads, and its log goes as far as the other one; ``consumers`` have found it."""
    group.fail_over(group.followers[0])
    with Appender(group.leader.dsn) as log:
        log.append("t", NEW)
    for consumer in consumers:
        assert consumer.topics() == {"t"}


def test_what_was_cut_off_is_told(group: Group, colour: Colour) -> None:
    with Appender(group.leader.dsn) as log:
        log.create("t")
        lose_the_second_half(group, log)
    dsn = together(*(node.dsn for node in group.nodes))

    def consumer(reset: str, **options: Any) -> Any:
        made = colour.consumer(dsn=dsn, auto_offset_reset=reset, reconnect_backoff_max_ms=100, **options)
        made.assign([TP])
        return made

    strict, lenient, by_time, halfway, beyond, seeker = (
        consumer("none"), consumer("latest"), consumer("by_duration:PT1H"), consumer("none"),
        consumer("none"), consumer("none"),
    )  # fmt: skip
    for each in (strict, lenient, halfway, beyond, seeker):
        each.seek(TP, 0)
    for each in (strict, lenient, by_time, seeker):
        assert [record.value for record in read(each, 10)] == OLD
    # What is fetched ahead is of the old history as well.
    assert [record.value for record in read(halfway, 3, max_records=3)] == OLD[:3]
    assert [record.value for record in read(beyond, 7, max_records=7)] == OLD[:7]
    (epoch,) = {record.leader_epoch for record in _again(seeker, 10)}

    fail_over(group, strict, lenient, by_time, halfway, beyond, seeker)

    # Nobody has had any of what is gone: nothing is to be told.
    assert [record.value for record in read(halfway, 7)] == OLD[3:5] + NEW
    for each, position in ((strict, 10), (beyond, 7)):
        for _ in range(2):  # it is no better when it is asked again
            with pytest.raises(LogTruncationError) as told:
                each.poll(timeout_ms=ENOUGH_MS)
            details = told.value.details
            assert (details["topic"], details["partition"]) == TP
            assert (details["position"], details["divergence_offset"]) == (position, 5)
            assert details["read_leader_epoch"] == details["leader_epoch"] == epoch
            assert isinstance(told.value, OffsetOutOfRangeError)
            assert each.position(TP) == position
        each.seek(TP, details["divergence_offset"])
        assert [record.value for record in read(each, 5)] == NEW
    for each in (lenient, by_time):
        records = read(each, 5)
        assert [record.value for record in records] == NEW
        assert records[0].leader_epoch > epoch
    # A seek is the program's own word: it goes on where it says.
    seeker.seek(TP, 6)
    assert [record.value for record in read(seeker, 4)] == NEW[1:]

    # Offsets of the old history, and a consumer that begins at one.
    member = consumer("none", group_id="g")
    with pytest.raises(OffsetOutOfRangeError):
        member.commit({TP: OffsetAndMetadata(11, leader_epoch=epoch)})  # the log ends at 10
    member.commit({TP: OffsetAndMetadata(7, leader_epoch=epoch)})
    with pytest.raises(LogTruncationError) as told:
        consumer("none", group_id="g").poll(timeout_ms=ENOUGH_MS)
    assert told.value.details["divergence_offset"] == 5
    assert [record.value for record in read(consumer("earliest", group_id="g"), 5)] == NEW
    subscribed = colour.consumer("t", dsn=dsn, group_id="g", auto_offset_reset="none")
    with pytest.raises(LogTruncationError):
        subscribed.poll(timeout_ms=ENOUGH_MS)
    subscribed.close()  # who is no member may commit again
    member.commit({TP: OffsetAndMetadata(7, leader_epoch=records[0].leader_epoch)})
    assert [record.value for record in read(consumer("none", group_id="g"), 3)] == NEW[2:]


def test_a_warning_says_what_is_gone(group: Group, colour: Colour, caplog: pytest.LogCaptureFixture) -> None:
    """And a log that has not gone on yet is shorter than what was read."""
    with Appender(group.leader.dsn) as log:
        log.create("t")
        lose_the_second_half(group, log)
    dsn = together(*(node.dsn for node in group.nodes))
    strict = colour.consumer("t", dsn=dsn, auto_offset_reset="none", reconnect_backoff_max_ms=100)
    lenient = colour.consumer("t", dsn=dsn, auto_offset_reset="earliest", reconnect_backoff_max_ms=100)
    strict.seek(TP, 0)
    for each in (strict, lenient):
        read(each, 10)
    with caplog.at_level(logging.WARNING, "logstore.consumer"):
        group.fail_over(group.followers[0])
        eventually(lambda: lenient.poll() == {} and lenient.position(TP) == 5, "it has gone back")
        eventually(lambda: "Partition 0 of topic t was cut off at offset 5" in caplog.text, "it says so")
    with pytest.raises(LogTruncationError, match="cut off at offset 5, and the position is 10"):
        strict.poll(timeout_ms=ENOUGH_MS)


def test_a_leader_that_starts_again_has_lost_nothing(group: Group, colour: Colour) -> None:
    """The epoch is another one, the history is not: reading goes on, also in the middle of a fetch."""
    with Appender(group.leader.dsn) as log:
        log.create("t")
        log.append("t", values(5))
    dsn = together(*(node.dsn for node in group.nodes))
    options = {"dsn": dsn, "auto_offset_reset": "none", "reconnect_backoff_max_ms": 100}
    caught_up, ahead = (colour.consumer("t", **options) for _ in range(2))
    for each in (caught_up, ahead):
        each.seek(TP, 0)
    assert len(read(caught_up, 5)) == 5
    assert len(read(ahead, 2, max_records=2)) == 2
    group.leader.restart()
    with Appender(group.leader.dsn) as log:
        log.append("t", values(5, 5))
        assert [record.value for record in read(caught_up, 5)] == values(5, 5)
        first, *_, last = read(ahead, 8)
        assert (first.value, last.value) == (b"2", b"9")
        assert last.leader_epoch > first.leader_epoch


def _again(consumer: Any, count: int) -> list[Any]:
    consumer.seek(TP, 0)
    return read(consumer, count)
