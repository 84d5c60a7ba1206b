"""``logstore.read`` returns what the SQL function would if everything were in PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import logstore
from logstore.errors import InvalidArgumentError, RemoteFileError, UnknownTopicOrPartitionError
from logstore.tier import store
from tests.support.tiered import START_MS, TieredLog, shape

Read = Callable[..., list[Any]]


@pytest.fixture(params=["threads", "asyncio"])
def read(request: pytest.FixtureRequest) -> Iterator[Read]:
    def threads(*arguments: Any, **options: Any) -> list[Any]:
        return [shape(record) for record in logstore.read(*arguments, **options)]

    async def collect(*arguments: Any, **options: Any) -> list[Any]:
        return [shape(record) async for record in logstore.async_read(*arguments, **options)]

    def on_a_loop(*arguments: Any, **options: Any) -> list[Any]:
        return asyncio.run(collect(*arguments, **options))

    yield threads if request.param == "threads" else on_a_loop


@pytest.mark.every_server
def test_every_range(read: Read, log: TieredLog, long_version: bool) -> None:
    dice = random.Random(3)

    def some(*values: Any) -> Any:
        return dice.choice([None, None, *values])

    for _ in range(40 if long_version else 15):
        partition = some(0, 1)
        offsets = [some(dice.randrange(210)), some(dice.randrange(210))]
        times = [some(START_MS + dice.randrange(2100)), some(START_MS + dice.randrange(2100))]
        most = some(0, 1, 7, 150)
        expected = [
            record
            for record in log.everything()
            if (partition is None or record[0] == partition)
            and (offsets[0] is None or record[1] >= offsets[0])
            and (offsets[1] is None or record[1] < offsets[1])
            and (times[0] is None or record[2] >= times[0])
            and (times[1] is None or record[2] < times[1])
        ][:most]
        assert read("t", partition, *offsets, *times, most, dsn=log.dsn) == expected


def test_times_may_be_datetimes(read: Read, log: TieredLog) -> None:
    at = datetime.fromtimestamp(START_MS / 1000, UTC)
    found = read(
        "t", 0, from_time=at + timedelta(milliseconds=5), to_time=at + timedelta(seconds=0.1), dsn=log.dsn
    )
    assert found == log.records[0][1:10]


def test_deserializers(log: TieredLog) -> None:
    (record,) = logstore.read("t", 0, 10, 11, dsn=log.dsn, value_deserializer=bytes.decode)
    assert record.value == "value 10 of 0"


def test_only_files_that_may_have_it_are_read(log: TieredLog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    real = store.read

    def reading(url: str, start: int, end: int) -> bytes:
        asked.add(url)
        return real(url, start, end)

    monkeypatch.setattr(store, "read", reading)
    at = START_MS + 500
    assert len(list(logstore.read("t", 0, from_time=at, to_time=at + 10, dsn=log.dsn))) == 1
    assert len(asked) == 1


def test_records_leave_postgresql_in_the_middle(log: TieredLog) -> None:
    log.alter(local_retention_ms="-2")
    log.fill()
    reading = logstore.read("t", 0, dsn=log.dsn)
    found = [shape(next(reading)) for _ in range(230)]
    log.alter(local_retention_ms="0")
    assert log.settle().released > 0
    found += [shape(record) for record in reading]
    assert found == log.records[0]


def test_a_missing_file_is_told(read: Read, log: TieredLog) -> None:
    path = log.files()[1]
    begin = log.value("SELECT first_offset FROM remote_segments WHERE url = %s", f"file://{path}")
    path.unlink()
    assert read("t", 0, to_offset=begin, dsn=log.dsn) == log.records[0][:begin]
    with pytest.raises(RemoteFileError, match="does not exist"):
        read("t", 0, dsn=log.dsn)


def test_what_does_not_exist(read: Read, log: TieredLog) -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        read("u", dsn=log.dsn)
    with pytest.raises(UnknownTopicOrPartitionError):
        read("t", 2, dsn=log.dsn)
    for wrong in ({"from_time": datetime(2026, 1, 1)}, {"from_offset": "1"}, {"max_records": -1}):
        with pytest.raises(InvalidArgumentError):
            read("t", dsn=log.dsn, **wrong)


def test_sql_says_what_it_does_not_see(log: TieredLog) -> None:
    said: list[str] = []
    log.sql.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    start = log.local_start()
    found = log.rows("SELECT \"offset\" FROM read('t', 0)")
    assert [offset for (offset,) in found] == list(range(start, 200))
    assert said == [
        f'records from offset 0 to before {start} of partition 0 of topic "t" are in files, not read here'
    ]
    # Not where nothing is left out.
    said.clear()
    log.rows("SELECT FROM read('t', 0, %s)", start)
    log.rows("SELECT FROM read('t', 0, from_time => now())")
    log.rows("SELECT FROM read('t', 0, to_time => '2001-01-01')")
    assert said == []
    local, remote = log.rows("SELECT local_start, remote_bytes FROM partitions WHERE partition = 0")[0]
    assert local == start
    assert remote == log.value("SELECT sum(bytes) FROM remote_segments WHERE partition = 0")


def test_reading_beside_a_transaction(log: TieredLog) -> None:
    # Nothing that somebody else has open keeps files from being used.
    with psycopg.connect(log.dsn) as other:
        other.execute("SELECT count(*) FROM logstore.records")
        assert len(list(logstore.read("t", dsn=log.dsn))) == 400
