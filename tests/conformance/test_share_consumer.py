"""What a share consumer does, in both colours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from logstore.errors import (
    ClientClosedError,
    ConfigurationError,
    IllegalStateError,
    InvalidArgumentError,
    InvalidGroupError,
    InvalidRecordStateError,
    SerializationError,
    UnknownTopicOrPartitionError,
    WakeupError,
)
from logstore.records import CREATE_TIME, TopicPartition
from logstore.share import ACCEPT, REJECT, RELEASE, RENEW, ShareRecord
from tests.support.appender import values
from tests.support.colours import Colour
from tests.support.log import terminate
from tests.support.programs import eventually
from tests.support.share import Queue, Row

TP = TopicPartition("t", 0)
ENOUGH_MS = 60_000
"""How long a test waits for what has to come; it never waits that long."""


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database) as made:
        yield made


def share(colour: Colour, queue: Queue, *topics: str, **options: Any) -> Any:
    options = {"group_id": "g", "dsn": queue.dsn, "share_acknowledgement_mode": "explicit", **options}
    return colour.share_consumer(*(topics or ("t",)), **options)


def poll(consumer: Any, **options: Any) -> list[ShareRecord]:
    return [
        record for records in consumer.poll(timeout_ms=ENOUGH_MS, **options).values() for record in records
    ]


def until_somebody_waits(queue: Queue) -> None:
    """Until a member has announced that it waits for records; behind a pooler none does, they look again."""
    if queue.connection.pooled:
        return
    waiting = (
        "select count(*) from pg_locks where locktype = 'advisory' and mode = 'ShareLock' and objsubid = 2"
    )
    eventually(lambda: bool(queue.one(waiting)), "a member waits")


def test_a_record_comes_whole(colour: Colour, queue: Queue) -> None:
    queue.append(
        "t", [b"v", None], keys=[b"k", None], headers=[(1, "a", b"1"), (1, "a", None)], timestamps=[5, 9]
    )
    assert poll(share(colour, queue)) == [
        ShareRecord("t", 0, 0, 5, CREATE_TIME, b"k", b"v", (("a", b"1"), ("a", None)), 0, 1),
        ShareRecord("t", 0, 1, 9, CREATE_TIME, None, None, (), 0, 1),
    ]


def test_members_share_a_partition(colour: Colour, queue: Queue) -> None:
    for size in (1, 30, 9):
        queue.append("t", values(size))
    first, second = share(colour, queue), share(colour, queue)
    assert first.member_id != second.member_id
    got = []
    for consumer in (first, second):
        got.append(poll(consumer, max_records=10))
        for record in got[-1]:
            consumer.acknowledge(record)
    got.append(poll(first, max_records=100))
    assert [record.offset for records in got for record in records] == list(range(40))
    assert [record.value for record in got[1]] == values(10, 9)


def test_polling_again_accepts_in_implicit_mode(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(6))
    consumer = share(colour, queue, share_acknowledgement_mode="implicit")
    assert len(poll(consumer, max_records=4)) == 4
    assert queue.rows() == [Row(0, 3, consumer.member_id, 1)]
    assert len(poll(consumer)) == 2
    assert queue.rows() == [Row(4, 5, consumer.member_id, 1)]
    consumer.commit()
    assert queue.rows() == []


def test_iterating_accepts_each_record_when_the_next_is_wanted(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(5))
    consumer = share(colour, queue, share_acknowledgement_mode="implicit")
    iterator = iter(consumer)
    assert [next(iterator).offset for _ in range(3)] == [0, 1, 2]
    consumer.close()
    # Two were processed, the third one was at work, the others were never handed out.
    assert queue.take("x") == [(2, 2), (3, 1), (4, 1)]


def test_iteration_ends_when_no_record_comes(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(5))
    consumer = share(colour, queue, share_acknowledgement_mode="implicit", consumer_timeout_ms=50)
    assert [record.offset for record in consumer] == list(range(5))
    assert queue.rows() == []
    queue.append("t", values(1))
    assert [record.offset for record in consumer] == [5]


def test_iteration_and_polling_can_be_mixed(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(5))
    consumer = share(colour, queue, share_acknowledgement_mode="implicit")
    assert next(iter(consumer)).offset == 0
    assert [record.offset for record in poll(consumer, max_records=2)] == [1, 2]
    assert next(iter(consumer)).offset == 3
    assert [record.offset for record in poll(consumer)] == [4]
    consumer.commit()
    assert queue.rows() == []


def test_each_acknowledgement_does_what_it_says(colour: Colour, queue: Queue) -> None:
    queue.create("dlq")
    queue.alter(errors_deadletterqueue_topic_name="dlq")
    queue.append("t", values(5))
    consumer = share(colour, queue)
    accepted, released, rejected, later, renewed = poll(consumer)
    queue.pass_time(20)
    consumer.acknowledge(accepted)
    consumer.acknowledge(released, RELEASE)
    consumer.acknowledge(rejected, REJECT, reason="broken")
    consumer.acknowledge(later, RELEASE, deliver_after=timedelta(minutes=1))
    consumer.acknowledge(renewed, RENEW)
    consumer.commit()
    assert queue.rows() == [Row(1, 1, None, 1), Row(4, 4, consumer.member_id, 1)]
    assert queue.delayed() == [(3, 3)]
    ((_, value, headers),) = queue.dead_letters("dlq")
    assert value == b"2"
    assert headers["__dlq.errors.message"] == "broken"
    queue.pass_time(15)
    assert [(record.offset, record.delivery_count) for record in poll(consumer)] == [(1, 2)]
    # Renewing is not the end of it.
    consumer.acknowledge(renewed, ACCEPT)
    consumer.commit()
    assert [row[0] for row in queue.rows()] == [1]


def test_acknowledgements_travel_with_the_next_poll(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(2))
    done: list[Any] = []
    consumer = share(colour, queue, acknowledgement_commit_callback=lambda *what: done.append(what))
    (record,) = poll(consumer, max_records=1)
    consumer.acknowledge(record)
    assert len(queue.rows()) == 1
    assert [each.offset for each in poll(consumer)] == [1]
    assert queue.rows() == [Row(1, 1, consumer.member_id, 1)]
    assert done == [(TP, [0], None)]


def test_records_have_to_be_acknowledged_before_asking_for_more(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(3))
    consumer = share(colour, queue)
    first, second = poll(consumer, max_records=2)
    consumer.acknowledge(first)
    with pytest.raises(IllegalStateError, match="1 records"):
        consumer.poll()
    consumer.acknowledge(second, RENEW)
    assert [record.offset for record in poll(consumer)] == [2]


def test_acknowledging_twice_is_refused(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(2))
    consumer = share(colour, queue)
    first, second = poll(consumer)
    consumer.acknowledge(first)
    for _ in range(2):
        with pytest.raises(InvalidRecordStateError) as caught:
            consumer.acknowledge(first, RELEASE)
        assert caught.value.details == {"topic": "t", "partition": 0, "offset": 0}
        consumer.commit()
    with pytest.raises(InvalidRecordStateError):
        consumer.acknowledge(second._replace(offset=99))
    with pytest.raises(InvalidRecordStateError):
        consumer.acknowledge(second._replace(topic="u"))
    assert queue.rows() == [Row(1, 1, consumer.member_id, 1)]


def test_acknowledging_after_the_lock_ran_out_is_refused(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(3))
    refusals: list[Any] = []
    consumer = share(colour, queue, acknowledgement_commit_callback=lambda *what: refusals.append(what))
    records = poll(consumer)
    queue.pass_time(31)
    assert queue.take("other", 2) == [(0, 2), (1, 2)]
    for record in records:
        consumer.acknowledge(record)
    with pytest.raises(InvalidRecordStateError) as caught:
        consumer.commit()
    assert caught.value.details["refused"] == [("t", 0, 0, 2)]
    assert [(tp, list(offsets), type(error)) for tp, offsets, error in refusals] == [
        (TP, [0, 1, 2], InvalidRecordStateError)
    ]
    assert [row[:3] for row in queue.rows()] == [(0, 1, "other"), (2, 2, None)]
    consumer.commit()  # it was told once


def test_others_acknowledgements_hold_when_one_is_refused(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(3))
    consumer = share(colour, queue)
    records = poll(consumer)
    queue.acknowledge(consumer.member_id, 1)
    for record in records:
        consumer.acknowledge(record)
    with pytest.raises(InvalidRecordStateError):
        consumer.commit()
    assert queue.rows() == []


def test_closing_gives_records_back(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(4))
    consumer = share(colour, queue)
    first, second, *_ = poll(consumer, max_records=3)
    consumer.acknowledge(first)
    consumer.acknowledge(second, RENEW)
    consumer.close()
    assert queue.take("x") == [(1, 2), (2, 2), (3, 1)]
    for use in (consumer.poll, consumer.commit, consumer.wakeup, lambda: consumer.acknowledge(first)):
        with pytest.raises(ClientClosedError):
            use()
    consumer.close()


def test_a_record_that_cannot_be_read_is_released(colour: Colour, queue: Queue) -> None:
    queue.alter(share_delivery_count_limit="1")
    queue.create("dlq")
    queue.alter(errors_deadletterqueue_topic_name="dlq")
    queue.append("t", [b"1", b"no json", b"3"])
    consumer = share(colour, queue, value_deserializer=json.loads)
    records = poll(consumer)
    assert [record.value for record in records] == [1, 3]
    for record in records:
        consumer.acknowledge(record)
    with pytest.raises(SerializationError, match="offset 1"):
        consumer.poll(timeout_ms=ENOUGH_MS)
    assert queue.rows() == []
    ((_, value, headers),) = queue.dead_letters("dlq")
    assert value == b"no json"
    assert "cannot be deserialized" in headers["__dlq.errors.message"]


def test_no_more_bytes_are_handed_out_than_wanted(colour: Colour, queue: Queue) -> None:
    for _ in range(5):
        queue.append("t", [b"x" * 1000] * 2)
    consumer = share(colour, queue, fetch_max_bytes=4500, share_acknowledgement_mode="implicit")
    assert [record.offset for record in poll(consumer)] == [0, 1, 2, 3]
    assert [(record.offset, record.delivery_count) for record in poll(consumer)] == [
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
    ]


def test_waiting_members_are_woken(colour: Colour, queue: Queue) -> None:
    consumer = share(colour, queue)
    assert consumer.poll() == {}
    got: list[ShareRecord] = []
    waiter = threading.Thread(target=lambda: got.extend(poll(consumer)))
    waiter.start()
    until_somebody_waits(queue)
    queue.append("t", values(1))
    waiter.join()
    assert [record.offset for record in got] == [0]


def test_waiting_members_are_woken_by_a_release(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(1))
    first, second = share(colour, queue), share(colour, queue)
    (record,) = poll(first)
    got: list[ShareRecord] = []
    waiter = threading.Thread(target=lambda: got.extend(poll(second)))
    waiter.start()
    until_somebody_waits(queue)
    first.acknowledge(record, RELEASE)
    first.commit()
    waiter.join()
    assert [(each.offset, each.delivery_count) for each in got] == [(0, 2)]


def test_a_delay_is_slept_through_exactly(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(1))
    consumer = share(colour, queue)
    (record,) = poll(consumer)
    consumer.acknowledge(record, RELEASE, deliver_after=100)
    (record,) = poll(consumer)
    assert record.delivery_count == 2


def test_polling_can_be_woken_up(colour: Colour, queue: Queue) -> None:
    consumer = share(colour, queue)
    consumer.wakeup()
    with pytest.raises(WakeupError):
        consumer.poll(timeout_ms=ENOUGH_MS)
    assert consumer.poll() == {}


def test_a_lost_connection_is_made_again(colour: Colour, queue: Queue) -> None:
    if queue.connection.pooled:
        pytest.skip("behind a pooler the members' connections are not the server's")
    queue.append("t", values(4))
    consumer = share(colour, queue, client_id="victim")
    records = poll(consumer, max_records=2)
    assert terminate(queue.dsn, "victim") == 1
    for record in records:
        consumer.acknowledge(record)
    consumer.commit()
    assert [row[0] for row in queue.rows()] == []
    assert terminate(queue.dsn, "victim") == 1
    assert [record.offset for record in poll(consumer)] == [2, 3]


def test_keys_keep_their_order(colour: Colour, queue: Queue) -> None:
    queue.append("t", values(4), keys=[b"A", b"A", b"B", b"A"])
    first, second = (share(colour, queue, key_ordered=True) for _ in range(2))
    records = poll(first)
    assert [record.offset for record in records] == [0, 2]
    assert second.poll() == {}
    first.acknowledge(records[0], RELEASE)
    first.acknowledge(records[1])
    first.commit()
    (again,) = poll(second)
    assert (again.offset, again.delivery_count) == (0, 2)
    second.acknowledge(again)
    assert [record.offset for record in poll(second)] == [1]
    with pytest.raises(InvalidGroupError):
        share(colour, queue, key_ordered=False)


def test_subscriptions_change(colour: Colour, queue: Queue) -> None:
    queue.create("u")
    queue.append("t", values(1))
    queue.append("u", values(1))
    consumer = share(colour, queue, share_acknowledgement_mode="implicit")
    assert consumer.subscription() == {"t"}
    assert [record.topic for record in poll(consumer)] == ["t"]
    consumer.subscribe(["u"])
    assert [record.topic for record in poll(consumer)] == ["u"]
    consumer.subscribe("nowhere")
    with pytest.raises(UnknownTopicOrPartitionError):
        consumer.poll()
    consumer.unsubscribe()
    with pytest.raises(IllegalStateError):
        consumer.poll()
    assert queue.rows() == []


def test_what_does_not_fit_is_refused(colour: Colour, queue: Queue) -> None:
    for options in (
        {"group_id": ""},
        {"share_acknowledgement_mode": "auto"},
        {"key_ordered": 1},
        {"max_pol_records": 5},
    ):
        with pytest.raises(ConfigurationError):
            share(colour, queue, **options)
    with pytest.raises(UnknownTopicOrPartitionError):
        share(colour, queue, "nowhere")
    queue.append("t", values(1))
    consumer = share(colour, queue)
    (record,) = poll(consumer)
    for arguments, options in (
        ((record, 9), {}),
        ((record, "ACCEPT"), {}),
        (("record",), {}),
        ((record, ACCEPT), {"deliver_after": 5}),
        ((record, RELEASE), {"deliver_after": -1}),
        ((record, ACCEPT), {"reason": "why"}),
        ((record, REJECT), {"reason": 5}),
    ):
        with pytest.raises(InvalidArgumentError):
            consumer.acknowledge(*arguments, **options)
    for count in (0, True, "5"):
        with pytest.raises(InvalidArgumentError):
            consumer.poll(max_records=count)
    for timeout_ms in ("soon", None, float("nan")):
        with pytest.raises(InvalidArgumentError, match="number of milliseconds"):
            consumer.poll(timeout_ms=timeout_ms)
    consumer.acknowledge(record)
    implicit = share(colour, queue, share_acknowledgement_mode="implicit")
    with pytest.raises(IllegalStateError):
        implicit.acknowledge(record)


@pytest.mark.every_server
def test_a_queue_works_on_every_server(colour: Colour, database: str) -> None:
    with Queue(database) as queue:
        queue.append("t", values(20), keys=[b"%d" % (number % 5) for number in range(20)])
        consumer = share(
            colour, queue, share_acknowledgement_mode="implicit", key_ordered=True, consumer_timeout_ms=100
        )
        got = [record.offset for record in consumer]
    assert sorted(got) == list(range(20))
    for key in range(5):
        assert [offset for offset in got if offset % 5 == key] == list(range(key, 20, 5))
