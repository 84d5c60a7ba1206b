"""Acknowledging: what becomes of a record, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from logstore._core.share_calls import Refused
from logstore._core.share_ledger import RETURN
from logstore.errors import (
    GroupNotFoundError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidRecordStateError,
)
from logstore.share import ACCEPT, REJECT, RELEASE, RENEW
from tests.support.appender import values
from tests.support.share import Queue, Row


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    """Ten records, the first eight of them acquired by member a."""
    with Queue(database) as made:
        made.append("t", values(10))
        made.offsets("a", 8)
        yield made


def test_accepting_a_part_leaves_the_rest_acquired(queue: Queue) -> None:
    queue.acknowledge("a", 2, 4)
    assert queue.rows() == [Row(0, 1, "a", 1), Row(5, 7, "a", 1)]
    queue.acknowledge("a", 0)
    queue.acknowledge("a", 7)
    assert queue.rows() == [Row(1, 1, "a", 1), Row(5, 6, "a", 1)]


def test_released_records_are_available_at_once(queue: Queue) -> None:
    queue.acknowledge("a", 2, 4, RELEASE)
    assert queue.rows() == [Row(0, 1, "a", 1), Row(2, 4, None, 1), Row(5, 7, "a", 1)]
    assert queue.take("b", 3) == [(2, 2), (3, 2), (4, 2)]


def test_released_records_wait_for_their_delay(queue: Queue) -> None:
    queue.acknowledge("a", 2, 4, RELEASE, delay_ms=5_000)
    assert queue.delayed() == [(2, 4)]
    assert queue.start() == 0
    queue.acknowledge("a", 0, 1)
    queue.acknowledge("a", 5, 7)
    assert queue.start() == 2
    assert queue.offsets("b") == [8, 9]
    queue.pass_time(5.1)
    assert queue.take("b", 2) == [(2, 2), (3, 2)]
    assert queue.take("b") == [(4, 2)]
    assert queue.delayed() == []


def test_delayed_records_are_found_when_the_window_has_moved_on(queue: Queue) -> None:
    queue.acknowledge("a", 0, kind=RELEASE, delay_ms=5_000)
    queue.acknowledge("a", 1, 7)
    assert queue.offsets("b") == [8, 9]
    queue.acknowledge("b", 8, 9)
    queue.append("t", values(1))
    assert queue.offsets("b") == [10]
    queue.pass_time(5.1)
    assert queue.take("b") == [(0, 2)]


def test_delayed_records_do_not_count_as_in_flight(queue: Queue) -> None:
    queue.alter(share_partition_max_record_locks="8")
    assert queue.offsets("b") == []
    queue.acknowledge("a", 0, 7, RELEASE, delay_ms=1_000)
    assert queue.offsets("b") == [8, 9]
    queue.pass_time(1.1)
    assert len(queue.take("c")) == 6
    assert queue.offsets("c") == []


def test_backoff_doubles_with_each_delivery_up_to_its_maximum(queue: Queue) -> None:
    queue.alter(
        share_retry_backoff_ms="1000", share_retry_backoff_max_ms="3000", share_delivery_count_limit="9"
    )
    queue.acknowledge("a", 1, 7)
    for delivery, seconds in enumerate((1, 2, 3, 3), 1):
        queue.acknowledge("a", 0, kind=RELEASE)
        assert queue.one("select round(extract(epoch from due_at - now())) from share_delay") == seconds
        queue.pass_time(seconds)
        assert queue.take("a", 1) == [(0, delivery + 1)]
    queue.acknowledge("a", 0, kind=RELEASE, delay_ms=0)
    assert queue.delayed() == []


def test_renewing_makes_the_lock_last_from_now_on(queue: Queue) -> None:
    queue.pass_time(20)
    queue.acknowledge("a", 2, 4, RENEW)
    queue.pass_time(11)
    assert queue.offsets("b", 5) == [0, 1, 5, 6, 7]
    queue.acknowledge("a", 2, 4)
    assert queue.rows() == [Row(0, 1, "b", 2), Row(5, 7, "b", 2)]


def test_renewing_can_be_switched_off(queue: Queue) -> None:
    queue.alter(share_renew_acknowledge_enable="false")
    with pytest.raises(InvalidConfigError, match=r"share\.renew"):
        queue.acknowledge("a", 0, kind=RENEW)


def test_returned_records_were_not_delivered(queue: Queue) -> None:
    queue.acknowledge("a", 0, 3, RETURN)
    assert queue.take("b", 2) == [(0, 1), (1, 1)]


def test_a_record_is_delivered_no_more_often_than_the_limit(queue: Queue) -> None:
    queue.alter(share_delivery_count_limit="3")
    queue.acknowledge("a", 2, 7)
    queue.acknowledge("a", 0, 1, RELEASE)
    assert queue.take("a", 2) == [(0, 2), (1, 2)]
    queue.acknowledge("a", 0, 1, RELEASE)
    assert queue.take("a", 2) == [(0, 3), (1, 3)]
    queue.acknowledge("a", 0, kind=RELEASE)
    assert queue.rows() == [Row(1, 1, "a", 3)]
    queue.pass_time(31)
    assert queue.offsets("b") == [8, 9]
    assert queue.start() == 8


def refused(queue: Queue, member: str, offset: int, reason: str) -> None:
    """Acknowledging is refused for this reason, and changes nothing."""
    before = queue.rows()
    for kind in (ACCEPT, RELEASE, REJECT, RENEW):
        with pytest.raises(InvalidRecordStateError) as caught:
            queue.acknowledge(member, offset, kind=kind)
        assert caught.value.details["reason"] == reason
        assert caught.value.details["offset"] == offset
        assert queue.rows() == before


def test_acknowledging_twice_is_refused(queue: Queue) -> None:
    queue.acknowledge("a", 3)
    refused(queue, "a", 3, "it is finished, or was never acquired")
    queue.acknowledge("a", 4, kind=RELEASE)
    refused(queue, "a", 4, "it is available again")


def test_acknowledging_after_the_lock_ran_out_is_refused(queue: Queue) -> None:
    queue.pass_time(30)
    refused(queue, "a", 3, "its lock ran out")
    queue.offsets("b", 8)
    refused(queue, "a", 3, "another member has it")


def test_acknowledging_what_somebody_else_has_is_refused(queue: Queue) -> None:
    refused(queue, "b", 3, "another member has it")
    refused(queue, "b", 9, "it is finished, or was never acquired")


def test_acknowledgements_hold_all_or_none(queue: Queue) -> None:
    queue.acknowledge("a", 3)
    before = queue.rows()
    with pytest.raises(InvalidRecordStateError) as caught:
        queue.acknowledge_all("a", [(0, 0, ACCEPT), (1, 2, RELEASE), (3, 4, ACCEPT)])
    assert caught.value.details["offset"] == 3
    assert queue.rows() == before


def test_what_can_be_done_is_done_when_that_is_wanted(queue: Queue) -> None:
    queue.acknowledge("a", 3)
    answer = queue.acknowledge_all("a", [(0, 0, ACCEPT), (1, 5, ACCEPT), (6, 9, RELEASE)], strict=False)
    assert answer == [Refused(2, 3, 3), Refused(3, 8, 9)]
    assert queue.rows() == [Row(6, 7, None, 1)]


def test_the_same_record_twice_in_one_request_is_refused_once(queue: Queue) -> None:
    assert queue.acknowledge_all("a", [(0, 2, ACCEPT), (2, 3, ACCEPT)], strict=False) in (
        [Refused(1, 2, 2)],
        [Refused(2, 2, 2)],
    )
    assert queue.rows() == [Row(4, 7, "a", 1)]


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_acknowledgements_of_one_range_wait_for_each_other(queue: Queue, database: str, outcome: str) -> None:
    with (
        closing(psycopg.connect(database)) as slow,
        closing(psycopg.connect(database, autocommit=True)) as second,
    ):
        arguments = (queue.id,)
        accept = """select first_offset, last_offset
                    from logstore.acknowledge('g', 'a', array[%s], '{0}', %s, %s, '{1}', null, null, false)"""
        slow.execute(accept, [*arguments, [2], [3]])
        answer: list[tuple[int, int]] = []
        waiter = threading.Thread(
            target=lambda: answer.extend(second.execute(accept, [*arguments, [3], [6]]).fetchall())
        )
        waiter.start()
        queue.until_it_waits(second.info.backend_pid)
        getattr(slow, outcome)()
        waiter.join()
    assert answer == ([(3, 3)] if outcome == "commit" else [])
    assert queue.rows() == [Row(0, 1 if outcome == "commit" else 2, "a", 1), Row(7, 7, "a", 1)]


def test_what_was_acquired_is_known(queue: Queue) -> None:
    queue.acknowledge("a", 3)
    queue.pass_time(10)
    answer = queue.connection.run(queue.share.acquired("g", "a"))
    assert [each[2:6] for each in answer] == [(0, 0, 2, 1), (0, 4, 7, 1)]
    assert all(5_000 < each.lock_ms <= 20_000 for each in answer)
    queue.pass_time(20)
    assert queue.connection.run(queue.share.acquired("g", "a")) == []


def test_nonsense_is_refused(queue: Queue) -> None:
    for kind in (0, 6):
        with pytest.raises(InvalidArgumentError):
            queue.acknowledge("a", 0, kind=kind)
    queue.group = "nobody"
    with pytest.raises(GroupNotFoundError, match="nobody"):
        queue.acknowledge("a", 0)
