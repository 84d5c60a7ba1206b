"""A batch that is taken away while records are being added: each record is in it or its sender knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from logstore._core.batch import Columns
from logstore._core.calls import AppendResult
from logstore._core.queues import PartitionQueue, Topic
from logstore._core.row_batch import RowBatch


def new_batch() -> RowBatch:
    batch = RowBatch(PartitionQueue(Topic("t"), 3), threading.Lock())
    batch.room = 1000
    return batch


def add(batch: RowBatch, value: bytes | None, timestamp_ms: int | None = None, time_s: float = 1.0) -> int:
    return batch.add(b"k", value, None, timestamp_ms, time_s)


def sealed(batch: RowBatch) -> Columns:
    batch.seal()
    return batch.columns()


class Sender:
    """One record on its way, one step after the other, as ``Producer.send`` takes them."""

    def __init__(self, batch: RowBatch, number: int) -> None:
        self.batch = batch
        self.record = (b"key %d" % number, b"value %d" % number)
        self.place = -1
        self.is_in: bool | None = None
        self.steps = self.send()

    def send(self) -> Iterator[None]:
        batch, (key, value) = self.batch, self.record
        yield
        try:
            self.place = next(batch.places)
            yield
            if batch.until <= 1.0:
                batch.tick(self.place, 1.0)
            yield
            batch.keys[self.place] = key
            yield
            batch.values[self.place] = value
            yield
        except (IndexError, StopIteration):
            self.is_in = False
            return
        self.is_in = not batch.closed or batch.has(self.place)


@given(
    senders=st.integers(1, 6),
    choices=st.lists(st.integers(0, 6), max_size=40),
    struck=st.sets(st.integers(0, 5)),
)
def test_every_sender_knows_whether_its_record_is_in(
    senders: int, choices: list[int], struck: set[int]
) -> None:
    """``struck``: whom Ctrl-C stops where he stands when the batch is taken."""
    batch = new_batch()
    batch.make_slots(0)
    those = [Sender(batch, number) for number in range(senders)]
    for choice in choices:
        if choice < senders:
            next(those[choice].steps, None)
    taken = sealed(batch)
    for number, sender in enumerate(those):
        if number not in struck:
            for _ in sender.steps:
                pass
    batch.settle([AppendResult(100, -1, 0)])
    records = list(zip(cast(list[bytes], taken.keys), cast(list[bytes], taken.values), strict=True))
    assert len(records) == len(set(records)) == len(batch)
    assert not records or list(taken.timestamps) == [1000] * len(records)
    for number, sender in enumerate(those):
        if number not in struck or sender.is_in is not None:
            assert (sender.record in records) is sender.is_in
        if sender.record in records:
            offset = batch.metadata(sender.place).offset
            assert records[offset - 100] == sender.record
    assert sealed(batch) is taken


def test_places_without_records_are_left_out() -> None:
    batch = new_batch()
    next(batch.places)
    first = batch.add(b"k", b"first", None, None, 1.0)
    next(batch.places)
    second = batch.add(None, b"second!", [("h", b"1")], 5, 1.0)
    third = batch.add(b"k", None, None, None, 2.0)
    columns = sealed(batch)
    assert list(columns.values) == [b"first", b"second!", None]
    assert list(columns.keys) == [b"k", None, b"k"]
    assert list(columns.timestamps) == [1000, 5, 2000]
    assert columns.headers == [None, [("h", b"1")], None]
    batch.settle([AppendResult(10, -1, 0)])
    found = [batch.metadata(place) for place in (first, second, third)]
    assert [each.offset for each in found] == [10, 11, 12]
    assert [each.timestamp for each in found] == [1000, 5, 2000]
    assert [each.serialized_value_size for each in found] == [5, 7, -1]
    assert [each.serialized_key_size for each in found] == [1, -1, 1]
    assert [batch.has(place) for place in range(6)] == [False, True, False, True, True, False]


def test_time_stamp_that_is_given_is_that_of_one_record() -> None:
    batch = new_batch()
    add(batch, b"a")
    add(batch, b"b", timestamp_ms=7)
    # A sender who looked at the clock before, and is late.
    place = next(batch.places)
    batch.keys[place], batch.values[place] = b"k", b"c"
    for value in (b"d", b"e"):
        add(batch, value, timestamp_ms=9)
    add(batch, b"f", time_s=1.0015)
    add(batch, b"g", time_s=1.0019)
    assert list(sealed(batch).timestamps) == [1000, 7, 1000, 9, 9, 1001, 1001]


def test_clocks_that_are_read_out_of_turn_are_put_in_order() -> None:
    batch = new_batch()
    batch.make_slots(3)
    for place in (0, 1, 2):
        assert next(batch.places) == place
        batch.keys[place], batch.values[place] = b"k", b"v"
    batch.tick(2, 1.25)
    batch.tick(1, 1.125)  # the sender of place 0 saw that this is done
    assert list(sealed(batch).timestamps) == [1125, 1125, 1250]


def test_same_time_stamp_given_again_is_written_down_once() -> None:
    batch = new_batch()
    for _ in range(50):
        add(batch, b"v", timestamp_ms=7)
    assert len(batch.changes) == 2
    assert list(sealed(batch).timestamps) == [7] * 50


def test_batch_that_was_never_sent_is_released() -> None:
    batch = new_batch()
    add(batch, b"a")
    batch.release()
    assert len(batch) == 1
    assert not batch.has(1)


def test_room_that_others_have_taken_meanwhile_is_made_up_for() -> None:
    """Whoever finds no room makes some, under the lock; those who take none may be quicker."""
    batch = new_batch()
    batch.room = -30
    assert [add(batch, b""), add(batch, b"")] == [0, 1]
    assert len(sealed(batch).values) == 2


def test_places_for_which_there_was_no_slot_are_not_in() -> None:
    batch = new_batch()
    batch.room = 24
    batch.make_slots(0)
    for _ in range(2):
        place = next(batch.places)
        with suppress(IndexError):
            batch.keys[place], batch.values[place] = b"", b""
    assert place == 1
    assert len(sealed(batch).values) == len(batch) == 1
    assert [batch.has(place) for place in range(2)] == [True, False]
