"""What consumers of a group commit, when, and what they refuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore.errors import (
    CommitFailedError,
    InvalidArgumentError,
    LogstoreError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from logstore.records import ConsumerRecord, OffsetAndMetadata, TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.proxy import Proxy
from tests.support.reading import read

pytestmark = pytest.mark.one_server

TP, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def log(appender: Appender) -> Appender:
    appender.create("t", 2)
    appender.append("t", values(20), 0)
    return appender


@pytest.fixture
def member(colour: Colour, database: str) -> Callable[..., Any]:
    def make(*topics: str, **options: Any) -> Any:
        settings: dict[str, Any] = {
            "group_id": "g",
            "auto_offset_reset": "earliest",
            "heartbeat_interval_ms": 50,
            "max_poll_records": 5,
        }
        return colour.consumer(*topics, **{"dsn": database, **settings, **options})

    return make


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


def committed(raw: psycopg.Connection[Any]) -> dict[int, int]:
    rows = raw.execute(
        "SELECT partition, committed_offset FROM logstore.group_lag WHERE committed_offset IS NOT NULL"
    ).fetchall()
    return dict(rows)


def polled(consumer: Any, count: int = 5) -> list[ConsumerRecord]:
    """The records of the first poll that brings any."""
    found: list[ConsumerRecord] = []

    def some() -> bool:
        for records in consumer.poll(timeout_ms=20).values():
            found.extend(records)
        return bool(found)

    eventually(some, "records")
    assert len(found) == count
    return found


@pytest.mark.every_server
def test_poll_commits_what_the_polls_before_it_handed_out(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    consumer = member("t", auto_commit_interval_ms=0)
    polled(consumer)
    assert committed(raw) == {0: 0, 1: 0}
    polled(consumer)
    assert committed(raw)[0] == 5
    consumer.close()
    assert committed(raw)[0] == 10


def test_iteration_commits_what_it_handed_out_before(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    consumer = member("t", auto_commit_interval_ms=0)
    for count, record in enumerate(consumer):
        assert record.offset == count
        assert committed(raw)[0] == count // 5 * 5
        if count == 11:
            break
    consumer.close()
    assert committed(raw)[0] == 12


def test_unsubscribing_commits_before_it_leaves(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", auto_commit_interval_ms=3_600_000)
    polled(consumer)
    consumer.unsubscribe()

    def left() -> bool:
        return bool(raw.execute("SELECT count(*) FROM logstore.group_members").fetchone() == (0,))

    eventually(left, "it has left")
    assert committed(raw)[0] == 5


@pytest.mark.every_server
def test_at_most_once_commits_before_it_hands_out(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    consumer = member("t", delivery="at_most_once")
    polled(consumer)
    assert committed(raw)[0] == 5
    record = next(consumer)
    assert record.offset == 5
    assert committed(raw)[0] == 10


def test_next_member_begins_where_the_last_one_stopped(member: Callable[..., Any], log: Appender) -> None:
    first = member("t")
    polled(first)
    first.close()
    second = member("t")
    assert [record.offset for record in polled(second)] == [5, 6, 7, 8, 9]


def test_beginning_is_committed_before_anything_is_handed_out(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    """Otherwise "latest" would mean another offset to whoever comes next, and records would be skipped."""
    consumer = member("t", auto_offset_reset="latest", auto_commit_interval_ms=3_600_000)

    def anchored() -> bool:
        consumer.poll(timeout_ms=5)
        return committed(raw) == {0: 20, 1: 0}

    eventually(anchored, "the end is committed")


def test_nothing_is_committed_unless_asked(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", enable_auto_commit=False)
    polled(consumer)
    polled(consumer)
    assert committed(raw) == {}
    consumer.commit()
    assert committed(raw)[0] == 10
    polled(consumer)
    consumer.close()
    assert committed(raw)[0] == 10


def test_committing_record_by_record(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", enable_auto_commit=False)
    for record in polled(consumer):
        consumer.commit(record)
        assert committed(raw) == {0: record.offset + 1}
        assert consumer.committed(TP) == record.offset + 1


@pytest.mark.every_server
def test_committing_offsets_with_metadata(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", enable_auto_commit=False)
    polled(consumer)
    consumer.commit({TP: OffsetAndMetadata(3, "ünï"), OTHER: 0})
    assert consumer.committed_offsets([TP, OTHER]) == {
        TP: OffsetAndMetadata(3, "ünï", None),
        OTHER: OffsetAndMetadata(0, "", None),
    }
    consumer.commit({TP: OffsetAndMetadata(1, None)})  # type: ignore[arg-type]  # as many programs say it
    assert consumer.committed(TP) == 1


def test_positions_are_committed_with_the_epoch_of_the_record_before_them(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    raw.execute("UPDATE logstore.topic_partition SET leader_epoch = 3 WHERE partition = 0")
    log.append("t", values(2), 0)
    with member("t", enable_auto_commit=False, max_poll_records=20) as consumer:

        def epoch() -> tuple[int, int | None]:
            consumer.commit()
            at = consumer.committed_offsets([TP])[TP]
            return at.offset, at.leader_epoch

        assert len(polled(consumer, 20)) == 20
        assert epoch() == (20, 0)
        records = iter(consumer)
        next(records)
        assert epoch() == (21, 3)  # in the middle of what the iteration has
        consumer.seek(TP, 5)
        assert epoch() == (5, None)


def test_committing_without_waiting(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", enable_auto_commit=False)
    polled(consumer)
    told: list[tuple[Any, LogstoreError | None]] = []
    for offset in (1, 2, 21):
        consumer.commit_async({TP: offset}, callback=lambda *said: told.append(said))

    def all_told() -> bool:
        consumer.poll(timeout_ms=5)
        return len(told) == 3

    eventually(all_told, "every callback is called")
    assert [offsets[TP].offset for offsets, _ in told] == [1, 2, 21]
    assert [type(error) for _, error in told] == [type(None), type(None), OffsetOutOfRangeError]
    assert committed(raw) == {0: 2}


@pytest.mark.every_server
@pytest.mark.parametrize(
    ("offsets", "error"),
    [
        ({TP: 21}, OffsetOutOfRangeError),
        ({TP: 1, OTHER: 1}, OffsetOutOfRangeError),
        ({TopicPartition("t", 2): 0}, CommitFailedError),
        ({TopicPartition("u", 0): 0}, UnknownTopicOrPartitionError),
        ({TP: -1}, InvalidArgumentError),
        ({TP: "1"}, InvalidArgumentError),
        ({"t": 1}, InvalidArgumentError),
        (7, InvalidArgumentError),
        ({TP: OffsetAndMetadata(1, "x" * 4097)}, OffsetMetadataTooLargeError),
        ({TP: OffsetAndMetadata(1, "\ud800")}, InvalidArgumentError),
        ({TP: OffsetAndMetadata(1, "", "3")}, InvalidArgumentError),  # type: ignore[arg-type]
    ],
)
def test_commit_that_is_refused(
    member: Callable[..., Any], log: Appender, raw: Any, offsets: Any, error: type[LogstoreError]
) -> None:
    consumer = member("t", enable_auto_commit=False)
    polled(consumer)
    consumer.commit({TP: 2})
    with pytest.raises(error):
        consumer.commit(offsets)
    assert committed(raw) == {0: 2}


def test_commit_of_somebody_elses_partition(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    first, second = member("t", enable_auto_commit=False), member("t", enable_auto_commit=False)

    def shared() -> bool:
        first.poll(timeout_ms=5)
        second.poll(timeout_ms=5)
        return len(first.assignment()) == len(second.assignment()) == 1

    eventually(shared, "one each")
    (not_mine,) = second.assignment()
    with pytest.raises(CommitFailedError):
        first.commit({not_mine: 0})
    assert committed(raw) == {}


def test_commit_after_the_lease_is_over(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t", enable_auto_commit=False)
    polled(consumer)
    raw.execute("SELECT logstore.remove_member('g', member_id) FROM logstore.group_members")
    with pytest.raises(CommitFailedError):
        consumer.commit()
    assert committed(raw) == {}


def test_partitions_assigned_by_hand_begin_at_the_committed_offset(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    first = member()
    first.assign([TP])
    assert [record.offset for record in polled(first)] == [0, 1, 2, 3, 4]
    first.commit({TP: 3})
    assert first.position(TP) == 5
    second = member(enable_auto_commit=False)
    second.assign([TP, OTHER])
    second.seek(OTHER, 0)
    assert [record.offset for record in polled(second)] == [3, 4, 5, 6, 7]
    assert raw.execute("SELECT count(*) FROM logstore.group_members").fetchone() == (0,)
    assert read(second, 12)[-1].offset == 19


def test_commit_by_hand_beside_members(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    first = member("t", enable_auto_commit=False)
    polled(first)
    by_hand = member(enable_auto_commit=False)
    by_hand.assign([TP])
    with pytest.raises(CommitFailedError):
        by_hand.commit({TP: 1})
    assert committed(raw) == {}


def test_closing_does_not_wait_for_a_server_that_is_silent(
    member: Callable[..., Any], database: str, log: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the topic of what was assigned by hand has to be looked up for the commit."""
    for module in ("_async.group", "_async.fetcher", "_sync.group", "_sync.fetcher"):
        monkeypatch.setattr(f"logstore.{module}.CLOSE_S", 0.1)
    with Proxy(database) as proxy:
        consumer = member(dsn=proxy.dsn, request_timeout_ms=600_000)
        consumer.assign([TP])
        assert len(polled(consumer)) == 5
        proxy.freeze()
        closing = threading.Thread(target=consumer.close)
        closing.start()
        eventually(lambda: not closing.is_alive(), "it is closed")
