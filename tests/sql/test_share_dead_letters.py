"""Dead letters: written with the state change or not at all, with the record and the reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from logstore.errors import InvalidArgumentError, UnknownTopicOrPartitionError
from logstore.share import REJECT, RELEASE
from tests.support.appender import values
from tests.support.share import Queue, Row


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database, 3) as made:
        made.create("dlq", 2)
        made.alter(errors_deadletterqueue_topic_name="dlq")
        yield made


def why(topic: str, partition: int, offset: int, deliveries: int, message: str) -> dict[str, str]:
    return {
        "__dlq.errors.topic": topic,
        "__dlq.errors.partition": str(partition),
        "__dlq.errors.offset": str(offset),
        "__dlq.errors.group": "g",
        "__dlq.errors.delivery.count": str(deliveries),
        "__dlq.errors.message": message,
    }


def test_a_rejected_record_is_kept_whole_with_the_reason(queue: Queue) -> None:
    queue.append(
        "t", [b"v0", b"v1"], keys=[None, b"k1"], headers=[(2, "x", b"1"), (2, "x", b"2")], partition=1
    )
    queue.take("a")
    queue.acknowledge("a", 1, kind=REJECT, reason="cannot be read", partition=1)
    queue.acknowledge("a", 0, kind=REJECT, partition=1)
    assert queue.dead_letters("dlq") == [
        (b"k1", b"v1", {"x": "2", **why("t", 1, 1, 1, "cannot be read")}),
        (None, b"v0", why("t", 1, 0, 1, "Rejected.")),
    ]
    assert queue.rows(1) == []
    names = queue.one("""select header_keys[1:3] from batches where 'x' = any (header_keys)
                           and '__dlq.errors.topic' = any (header_keys)""")
    assert names == ["x", "x", "__dlq.errors.topic"]


def test_dead_letters_count_against_nobody_s_quota(queue: Queue) -> None:
    for _ in range(3):
        queue.append("t", [b"v" * 1000], partition=1)
    queue.raw.execute(
        """select alter_client_quota('', '<default>', '{"producer_byte_rate": 1, "consumer_byte_rate": 1}')"""
    )
    queue.take("a")
    for offset in range(3):
        queue.acknowledge("a", offset, kind=REJECT, partition=1)
    assert [letter[1] for letter in queue.dead_letters("dlq")] == [b"v" * 1000] * 3
    assert queue.one("select max(throttle_time_ms) from quota_usage") is None


def test_a_record_that_was_released_too_often_is_a_dead_letter(queue: Queue) -> None:
    queue.alter(share_delivery_count_limit="2")
    queue.append("t", values(2))
    queue.take("a")
    queue.acknowledge("a", 0, 1, RELEASE)
    queue.take("a")
    queue.acknowledge("a", 0, kind=RELEASE, reason="always fails")
    queue.acknowledge("a", 1, kind=RELEASE)
    assert [letter[2]["__dlq.errors.message"] for letter in queue.dead_letters("dlq")] == [
        "always fails",
        "Released at delivery 2 of 2.",
    ]


def test_a_record_whose_lock_ran_out_too_often_is_a_dead_letter(queue: Queue) -> None:
    queue.alter(share_delivery_count_limit="2")
    for partition in range(3):
        queue.append("t", values(3), partition)
    for _ in range(2):
        assert len(queue.take("a")) == 9
        queue.pass_time(31)
    answer = queue.ask("b")
    assert answer.ranges == []
    assert answer.wait_ms == 0
    letters = queue.dead_letters("dlq")
    assert len(letters) == 9
    assert {letter[2]["__dlq.errors.message"] for letter in letters} == {
        "The lock ran out at delivery 2 of 2."
    }
    # As in Kafka, a dead letter's partition is the record's, modulo their number.
    assert queue.one("select array_agg(distinct partition) from records where topic = 'dlq'") == [0, 1]
    assert [queue.start(partition) for partition in range(3)] == [3, 3, 3]


def test_dead_letters_of_a_partition_keep_their_order(queue: Queue) -> None:
    queue.append("t", values(3000))
    for first in range(0, 3000, 1000):
        queue.take("a", 1000)
        queue.acknowledge("a", first, first + 999, REJECT)
    assert [value for _, value, _ in queue.dead_letters("dlq")] == values(3000)


def test_without_a_dead_letter_topic_records_are_dropped(queue: Queue) -> None:
    queue.alter(errors_deadletterqueue_topic_name="")
    queue.append("t", values(2))
    queue.take("a")
    queue.acknowledge("a", 0, 1, REJECT)
    assert queue.rows() == []
    assert queue.start() == 2


def test_the_record_may_be_left_out(queue: Queue) -> None:
    queue.alter(errors_deadletterqueue_copy_record_enable="false")
    queue.append("t", [b"secret"], keys=[b"k"], headers=[(1, "x", b"1")])
    queue.take("a")
    queue.acknowledge("a", 0, kind=REJECT, reason="no")
    assert queue.dead_letters("dlq") == [(None, None, why("t", 0, 0, 1, "no"))]


def test_a_record_too_large_for_the_dead_letter_topic_is_only_named(queue: Queue) -> None:
    queue.create("small", 1, max_message_bytes="1000")
    queue.alter(errors_deadletterqueue_topic_name="small")
    queue.append("t", [b"x" * 900, b"y" * 300])
    queue.take("a")
    queue.acknowledge("a", 0, 1, REJECT, reason="no")
    (first, second) = queue.dead_letters("small")
    assert first[:2] == (None, None)
    assert first[2]["__dlq.errors.message"] == "no (The record is too large to be copied.)"
    assert first[2]["__dlq.errors.offset"] == "0"
    assert second[:2] == (None, b"y" * 300)


def test_nothing_happens_without_the_dead_letter_topic_that_is_named(queue: Queue) -> None:
    queue.append("t", values(3))
    queue.take("a")
    queue.connection.run(queue.calls.delete_topic("dlq"))
    with pytest.raises(UnknownTopicOrPartitionError, match="dead-letter"):
        queue.acknowledge_all("a", [(0, 0, 1), (1, 1, REJECT)])
    assert queue.rows() == [Row(0, 2, "a", 1)]


def test_dead_letter_and_state_are_one_transaction(queue: Queue) -> None:
    queue.append("t", values(3))
    queue.take("a")
    with queue.connection.transaction():
        queue.acknowledge("a", 0, kind=REJECT)
        assert queue.dead_letters("dlq") == []
        assert queue.rows() == [Row(0, 2, "a", 1)]
    assert len(queue.dead_letters("dlq")) == 1
    with pytest.raises(ZeroDivisionError), queue.connection.transaction():
        queue.acknowledge("a", 1, kind=REJECT)
        raise ZeroDivisionError
    assert len(queue.dead_letters("dlq")) == 1
    assert queue.rows() == [Row(1, 2, "a", 1)]


def test_a_record_that_has_left_the_log_leaves_no_letter(queue: Queue) -> None:
    queue.append("t", values(3))
    queue.take("a")
    queue.connection.run(queue.calls.delete_records("t", 0, 2))
    queue.acknowledge("a", 0, 2, REJECT)
    assert [value for _, value, _ in queue.dead_letters("dlq")] == [b"2"]


def test_a_group_does_not_consume_its_own_dead_letters(queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError, match="dead-letter"):
        queue.take("a", 1, "t", "dlq")


def test_the_dead_letter_topic_has_to_exist(queue: Queue) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="nowhere"):
        queue.alter(errors_deadletterqueue_topic_name="nowhere")


def test_dead_letters_lock_partitions_in_ascending_order(queue: Queue, database: str) -> None:
    """As append() does, so that nobody waits in a circle."""
    for partition in (0, 1):
        queue.append("t", values(5), partition)
    queue.take("a")
    dlq = queue.topic_id("dlq")
    append = "select logstore.append(%s, %s, 1, 0, null, null, array['x'::bytea], null, null, null, 1::int2)"
    with (
        closing(psycopg.connect(database)) as holder,
        closing(psycopg.connect(database, autocommit=True)) as member,
    ):
        holder.execute(append, [dlq, 0])
        rejecter = threading.Thread(
            target=lambda: member.execute(
                "select from logstore.acknowledge('g', 'a', %s, '{1,0}', '{0,0}', '{4,4}', '{3,3}')",
                [[queue.id, queue.id]],
            )
        )
        rejecter.start()
        queue.until_it_waits(member.info.backend_pid)
        # It waits for partition 0, and so has not locked partition 1.
        queue.raw.execute("set lock_timeout = '10s'")
        queue.raw.execute(append, [dlq, 1])
        holder.rollback()
        rejecter.join()
    assert len(queue.dead_letters("dlq")) == 11
