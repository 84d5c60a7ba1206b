"""Consumers read from files and from PostgreSQL as if it were one log."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from logstore import TopicPartition
from logstore.errors import OffsetOutOfRangeError, RemoteFileError
from tests.support import objectstore
from tests.support.colours import Colour
from tests.support.tiered import START_MS, TieredLog, shape

TP = TopicPartition("t", 0)


def consume(consumer: Any, count: int) -> list[Any]:
    """The next ``count`` records, as the model has them, in order of partition and offset."""
    found: list[Any] = []
    while len(found) < count:
        polled = consumer.poll(timeout_ms=20_000)
        assert polled, f"only {len(found)} of {count} records came"
        found += [shape(record) for records in polled.values() for record in records]
    return sorted(found)


@pytest.mark.every_server
def test_everything_comes_once_and_in_order(colour: Colour, log: TieredLog) -> None:
    assert 0 < log.local_start() < len(log.records[0])
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest", max_poll_records=33)
    assert consume(consumer, 400) == log.everything()
    # And goes on with what is appended.
    log.fill(1)
    assert len(consume(consumer, 10)) == 10
    assert consumer.position(TP) == 205


def test_iterating_does_not_end_where_files_do(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest", consumer_timeout_ms=20_000)
    wanted = log.everything()
    assert sorted(shape(record) for record in islice(consumer, len(wanted))) == wanted


def test_seek_to_any_offset(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer(dsn=log.dsn, max_poll_records=1)
    consumer.assign([TP])
    for offset in range(0, 200, 7):
        consumer.seek(TP, offset)
        ((record,),) = consumer.poll(timeout_ms=20_000).values()
        assert shape(record) == log.records[0][offset]


@pytest.mark.every_server
def test_offsets(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer(dsn=log.dsn)
    assert consumer.beginning_offsets([TP]) == {TP: 0}
    assert consumer.end_offsets([TP]) == {TP: 200}
    for offset in range(0, 200, 9):
        at = START_MS + offset * 10
        assert consumer.offsets_for_times({TP: at})[TP][:2] == (offset, at)
        assert consumer.offsets_for_times({TP: at - 9})[TP][:2] == (offset, at)
    assert consumer.offsets_for_times({TP: START_MS + 2000}) == {TP: None}
    admin = colour.admin(log.dsn)
    local_start = log.local_start()
    for spec, expected in {-1: 200, -2: 0, -3: 199, -4: local_start, -5: local_start}.items():
        assert admin.list_offsets({TP: spec})[TP].offset == expected


def test_the_newest_time_stamp_may_be_in_a_file(colour: Colour, make_log: Callable[..., TieredLog]) -> None:
    log = make_log()
    log._appender.append("t", [b"x", b"late", b"y"], timestamps=[START_MS, START_MS + 10**9, START_MS])
    log.fill()
    log.settle()
    admin = colour.admin(log.dsn)
    assert admin.list_offsets({TP: -3})[TP][:2] == (1, START_MS + 10**9)
    assert admin.list_offsets({TP: START_MS + 10**6})[TP][:2] == (1, START_MS + 10**9)
    # Deleted records are not found, though their file is there.
    log.rows("SELECT delete_records('t', 0, 2)")
    assert admin.list_offsets({TP: START_MS + 10**6}) == {TP: None}
    assert admin.list_offsets({TP: START_MS})[TP][:2] == (2, START_MS)


def test_by_duration_begins_in_a_file(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer(dsn=log.dsn, auto_offset_reset="by_duration:P36500D", max_poll_records=1)
    consumer.assign([TP])
    assert consumer.position(TP) == 0


def test_a_group_goes_on_from_its_offset(colour: Colour, log: TieredLog) -> None:
    first = colour.consumer("t", dsn=log.dsn, group_id="g", auto_offset_reset="earliest", max_poll_records=50)
    seen = consume(first, 50)
    first.commit()
    first.close()
    second = colour.consumer("t", dsn=log.dsn, group_id="g")
    assert sorted(seen + consume(second, 400 - len(seen))) == log.everything()
    second.commit()


def test_the_start_moves_past_the_position(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer(dsn=log.dsn, auto_offset_reset="none", max_poll_records=10)
    consumer.assign([TP])
    log.rows("SELECT delete_records('t', 0, 43)")
    log.settle()
    consumer.seek(TP, 42)
    with pytest.raises(OffsetOutOfRangeError):
        consumer.poll(timeout_ms=20_000)
    consumer.seek(TP, 43)
    ((record, *_),) = consumer.poll(timeout_ms=20_000).values()
    assert record.offset == 43


def test_records_leave_postgresql_under_a_reader(colour: Colour, make_log: Callable[..., TieredLog]) -> None:
    log = make_log(local_retention_ms="-2").fill()
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest", max_poll_records=3)
    seen = consume(consumer, 60)
    log.alter(retention_ms="-1", local_retention_ms="0")
    assert log.settle().released > 100
    assert seen + consume(consumer, 200 - len(seen)) == log.everything()


@pytest.mark.parametrize(
    "how",
    [
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
        lambda data: data[:-9],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-5] + b"\xff" + data[-4:],
    ],
    ids=["changed", "cut off", "half", "empty", "footer"],
)
def test_a_file_that_is_not_what_was_written(
    colour: Colour, log: TieredLog, how: Callable[[bytes], bytes]
) -> None:
    whole = log.files()[1].read_bytes()
    path = log.damage(how, 1)
    begin = log.value("SELECT first_offset FROM remote_segments WHERE url = %s", f"file://{path}")
    consumer = colour.consumer(dsn=log.dsn, auto_offset_reset="earliest")
    consumer.assign([TP])
    # What comes before it is there, nothing is skipped, and it goes on as soon as the file is good.
    assert consume(consumer, begin) == log.records[0][:begin]
    for _ in range(2):
        with pytest.raises(RemoteFileError) as caught:
            consumer.poll(timeout_ms=20_000)
        assert caught.value.details["url"] == f"file://{path}"
        assert consumer.position(TP) == begin
    good = path.with_suffix(".good")
    good.write_bytes(whole)
    good.replace(path)
    try:
        rest = consume(consumer, 200 - begin)
    except RemoteFileError:  # it was tried ahead of time, just before
        assert consumer.position(TP) == begin
        rest = consume(consumer, 200 - begin)
    assert rest == log.records[0][begin:]


def test_a_file_that_is_missing(colour: Colour, log: TieredLog) -> None:
    path = log.files()[0]
    away = path.rename(path.with_suffix(".away"))
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest")
    # The other partition is read on.
    found: list[Any] = []
    with pytest.raises(RemoteFileError, match="does not exist"):
        while True:
            polled = consumer.poll(timeout_ms=20_000)
            assert polled
            found += [shape(record) for records in polled.values() for record in records]
    away.rename(path)
    assert sorted(found + consume(consumer, 400 - len(found))) == log.everything()


def test_a_file_system_without_renaming(
    colour: Colour, make_log: Callable[..., TieredLog], tmp_path: Path
) -> None:
    objectstore.install()
    log = make_log(f"object://{tmp_path}/bucket").fill()
    assert log.settle().files > 1
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest")
    assert consume(consumer, 200) == log.everything()


def test_in_memory(colour: Colour, make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log(f"memory:/{tmp_path}").fill()
    assert log.settle().files > 1
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest")
    assert consume(consumer, 200) == log.everything()


def test_pause_and_resume(colour: Colour, log: TieredLog) -> None:
    consumer = colour.consumer("t", dsn=log.dsn, auto_offset_reset="earliest")
    other = TopicPartition("t", 1)
    consumer.pause(other)
    assert consume(consumer, 200) == log.records[0]
    consumer.resume(other)
    assert consume(consumer, 200) == log.records[1]
