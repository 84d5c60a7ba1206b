"""Groups that keep the order of keys: at most one record of a key is in flight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from logstore.errors import GroupNotEmptyError, InvalidGroupError
from logstore.share import RELEASE
from tests.support.appender import values
from tests.support.share import Queue


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database, share_key_ordered="true") as made:
        yield made


def put(queue: Queue, keys: Sequence[str | None]) -> None:
    """One record for each key."""
    queue.append("t", values(len(keys)), keys=[None if key is None else key.encode() for key in keys])


def test_one_record_of_a_key_is_in_flight(queue: Queue) -> None:
    put(queue, "AABBAC")
    assert queue.offsets("a") == [0, 2, 5]
    assert queue.offsets("b") == []
    queue.acknowledge("a", 0)
    assert queue.offsets("b") == [1]
    queue.acknowledge("a", 2)
    queue.acknowledge("b", 1)
    assert queue.offsets("b") == [3, 4]


def test_records_without_a_key_have_no_order(queue: Queue) -> None:
    put(queue, [None, "A", None, "A", None])
    assert queue.offsets("a") == [0, 1, 2, 4]


def test_a_topic_without_any_keys_has_no_order(queue: Queue) -> None:
    queue.append("t", values(5))
    assert queue.offsets("a") == [0, 1, 2, 3, 4]


def test_a_key_waits_while_its_record_is_tried_again(queue: Queue) -> None:
    put(queue, "ABAB")
    assert queue.offsets("a") == [0, 1]
    queue.acknowledge("a", 0, kind=RELEASE)
    queue.acknowledge("a", 1)
    assert queue.take("b") == [(0, 2), (3, 1)]
    queue.acknowledge("b", 0, kind=RELEASE, delay_ms=1000)
    assert queue.offsets("c") == []
    queue.pass_time(1.1)
    assert queue.take("c") == [(0, 3)]
    queue.pass_time(31)
    assert queue.take("d") == [(0, 4), (3, 2)]
    queue.acknowledge("d", 0)
    assert queue.take("d") == [(2, 1)]


def test_a_key_goes_on_when_its_record_is_given_up(queue: Queue) -> None:
    queue.alter(share_delivery_count_limit="1")
    put(queue, "AAA")
    assert queue.offsets("a") == [0]
    queue.acknowledge("a", 0, kind=RELEASE)
    assert queue.offsets("a") == [1]
    queue.pass_time(31)
    assert queue.offsets("a") == [2]


def test_records_far_behind_others_of_their_key_are_found(queue: Queue) -> None:
    put(queue, "A" * 300 + "B")
    assert queue.offsets("a", 1) == [0]
    assert queue.offsets("a", 1) == [300]
    for offset in range(299):
        queue.acknowledge("a", offset)
        assert queue.offsets("a", 1) == [offset + 1]


def test_no_more_than_the_limit_is_looked_ahead(queue: Queue) -> None:
    queue.alter(share_partition_max_record_locks="10")
    put(queue, "A" * 20 + "B")
    assert queue.offsets("a") == [0]
    assert len(queue.rows()) == 10
    queue.acknowledge("a", 0)
    assert queue.offsets("a") == [1]
    assert len(queue.rows()) == 10


def test_members_get_no_more_than_they_asked_for(queue: Queue) -> None:
    put(queue, [f"{number % 50}" for number in range(200)])
    got = [queue.offsets(member, 10) for member in "abcdefg"]
    assert [len(each) for each in got] == [10, 10, 10, 10, 10, 0, 0]
    assert sorted(offset for each in got for offset in each) == list(range(50))


def test_the_order_survives_the_log_start_and_a_delay_header(queue: Queue) -> None:
    queue.append(
        "t",
        values(4),
        keys=[b"A", b"A", b"B", b"A"],
        headers=[(2, "logstore.deliver-after", b"+60000")],
    )
    assert queue.offsets("a") == [0, 2]
    queue.acknowledge("a", 0)
    assert queue.offsets("a") == []
    queue.pass_time(61)
    assert queue.take("a") == [(1, 1), (2, 2)]
    queue.acknowledge("a", 1, kind=RELEASE)
    queue.connection.run(queue.calls.delete_records("t", 0, 2))
    assert queue.offsets("b") == [3]


def test_who_joins_first_decides_for_all(database: str) -> None:
    with Queue(database) as queue:
        put(queue, "AA")
        assert queue.offsets("a", 1, key_ordered=True) == [0]
        assert queue.offsets("b") == []
        with pytest.raises(InvalidGroupError, match=r"share\.key\.ordered"):
            queue.offsets("c", key_ordered=False)


def test_the_order_of_keys_cannot_begin_or_end_with_records_in_flight(database: str) -> None:
    with Queue(database) as queue:
        put(queue, "AA")
        assert queue.offsets("a", 1, key_ordered=False) == [0]
        with pytest.raises(GroupNotEmptyError):
            queue.offsets("a", 1, key_ordered=True)
        queue.acknowledge("a", 0)
        assert queue.offsets("a", key_ordered=True) == [1]
        with pytest.raises(GroupNotEmptyError):
            queue.alter(share_key_ordered="false")
        queue.acknowledge("a", 1)
        queue.alter(share_key_ordered="false")
        put(queue, "AA")
        assert queue.offsets("a") == [2, 3]
