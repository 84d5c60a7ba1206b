"""Consumers whose position retention drops: told so, or moved on by their reset policy; no silence."""

from __future__ import annotations

import pytest

from logstore import Admin
from logstore.errors import OffsetOutOfRangeError
from logstore.records import TopicPartition
from logstore.workers import reclaim, retention, roll
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.reading import ENOUGH_MS, read

TP = TopicPartition("t", 0)
OLD = 1_000_000
"""Expired long ago."""


@pytest.fixture
def topic(appender: Appender) -> Appender:
    """Ten segments with an old batch of ten records each, then three young records."""
    appender.create("t", segment_bytes="200", retention_ms="3600000", file_delete_delay_ms="0")
    for begin in range(0, 100, 10):
        appender.append("t", [b"x" * 20] * 10, timestamps=[OLD + begin] * 10)
    appender.append("t", values(3, 100))
    return appender


def expire(dsn: str) -> None:
    roll.run_once(dsn)
    assert retention.run_once(dsn).records == 100
    reclaim.run_once(dsn)


def test_reading_goes_on_where_the_log_starts(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=5)
    assert [r.offset for r in read(consumer, 5)][:5] == [0, 1, 2, 3, 4]
    expire(database)
    # What was fetched before may still come, in order; then the young ones, and nothing twice.
    offsets: list[int] = []
    while not offsets or offsets[-1] < 102:
        offsets += [r.offset for r in read(consumer, 1)]
    assert offsets == [*range(5, 5 + len(offsets) - 3), 100, 101, 102]
    assert consumer.position(TP) == 103


def test_the_latest_policy_goes_to_the_end(colour: Colour, database: str, topic: Appender) -> None:
    expire(database)
    consumer = colour.consumer(dsn=database, auto_offset_reset="latest")
    consumer.assign([TP])
    consumer.seek(TP, 7)
    while consumer.position(TP) != 103:
        assert consumer.poll(timeout_ms=50) == {}
    topic.append("t", [b"last"])
    assert [r.value for r in read(consumer, 1)] == [b"last"]


def test_the_policy_none_is_told(colour: Colour, database: str, topic: Appender) -> None:
    expire(database)
    consumer = colour.consumer(dsn=database, auto_offset_reset="none")
    consumer.assign([TP])
    consumer.seek(TP, 7)
    with pytest.raises(OffsetOutOfRangeError, match=r"Offset 7 .*from 100 to 103"):
        consumer.poll(timeout_ms=ENOUGH_MS)


def test_the_lag_of_a_group_counts_what_is_there(colour: Colour, database: str, topic: Appender) -> None:
    consumer = colour.consumer("t", dsn=database, group_id="g", auto_offset_reset="earliest")
    assert len(read(consumer, 5)) >= 5
    consumer.commit({TP: 5})
    with Admin(database) as admin:
        assert [each.lag for each in admin.group_lag("g")] == [98]
        expire(database)
        assert [each.lag for each in admin.group_lag("g")] == [3]
