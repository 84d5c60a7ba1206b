"""Records that are produced with a delay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from logstore.errors import InvalidArgumentError
from logstore.share import deliver_after
from tests.support.appender import values
from tests.support.share import Queue, Row


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database) as made:
        yield made


def test_a_record_is_not_delivered_before_its_time(queue: Queue) -> None:
    name, after = deliver_after(timedelta(seconds=20))
    queue.append("t", values(6), headers=[(1, "x", b"y"), (3, name, after), (4, name, after)])
    assert queue.take("a") == [(0, 1), (1, 1), (4, 1), (5, 1)]
    assert queue.rows() == [Row(0, 1, "a", 1), Row(4, 5, "a", 1)]
    answer = queue.ask("b")
    assert answer.wait_ms is not None
    assert 5_000 < answer.wait_ms <= 20_000, "before the locks of the others run out"
    queue.acknowledge("a", 0, 1)
    queue.acknowledge("a", 4, 5)
    assert queue.start() == 2
    queue.pass_time(20.1)
    assert queue.take("b") == [(2, 1), (3, 1)]


def test_a_delay_counts_from_the_time_stamp_and_a_time_is_itself(queue: Queue) -> None:
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(minutes=5)
    queue.append(
        "t",
        values(3),
        timestamps=[1_000, 1_000, 1_000],
        headers=[
            (1, *deliver_after(timedelta(hours=1))),
            (2, *deliver_after(past)),
            (3, *deliver_after(future)),
        ],
    )
    assert queue.offsets("a") == [0, 1]
    due = queue.one("select (extract(epoch from due_at) * 1000)::int8 from share_delay")
    assert abs(due - future.timestamp() * 1000) <= 1


def test_a_header_that_is_no_time_is_ignored(queue: Queue) -> None:
    for ordinal, text in enumerate((b"soon", b"", None, b"+", b"-5", b"9" * 30, b"\xff", b"+1 ")):
        queue.append("t", [b"v"], headers=[(1, "logstore.deliver-after", text)])
        assert queue.offsets("a") == [ordinal]


def test_the_last_header_counts(queue: Queue) -> None:
    now = b"%d" % (time.time() * 1000)
    late = b"%d" % (time.time() * 1000 + 60_000)
    name = "logstore.deliver-after"
    queue.append("t", values(2), headers=[(1, name, late), (1, name, now), (2, name, now), (2, name, late)])
    assert queue.offsets("a") == [0]


def test_any_number_of_records_may_be_delayed(queue: Queue) -> None:
    queue.alter(share_partition_max_record_locks="10")
    name, after = deliver_after(timedelta(minutes=1))
    queue.append("t", values(100), headers=[(ordinal, name, after) for ordinal in range(1, 101)])
    queue.append("t", values(3))
    assert queue.offsets("a") == [100, 101, 102]
    queue.pass_time(61)
    assert queue.offsets("a") == [*range(7), 100, 101, 102]


@pytest.mark.parametrize("when", [timedelta(seconds=-1), datetime(2026, 1, 1), 5, "soon"])
def test_nonsense_makes_no_header(when: object) -> None:
    with pytest.raises(InvalidArgumentError):
        deliver_after(when)  # type: ignore[arg-type]
