"""What a fetched batch turns into."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.fetched import DecodedBatch, Deserializers, FetchedBatch, HandedOut
from logstore.errors import SerializationError
from logstore.records import ConsumerRecord, TopicPartition
from tests.unit.log_model import batch_row

TP = TopicPartition("orders", 2)
RAW = Deserializers()


def number(data: bytes) -> int:
    return int(data)


def offsets(records: Sequence[ConsumerRecord]) -> list[int]:
    return [record.offset for record in records]


def test_record_has_every_field() -> None:
    row = batch_row(
        7, [b"a", None], keys=[None, b"k"], timestamps=[11, 12], headers=[(2, "h", b"1"), (2, "h", None)]
    )
    first, second = FetchedBatch(TP, row, 0).take(10, RAW)
    assert first == ConsumerRecord("orders", 2, 7, 11, 0, None, b"a", (), 3)
    assert second == ConsumerRecord("orders", 2, 8, 12, 0, b"k", None, (("h", b"1"), ("h", None)), 3)
    assert type(first) is ConsumerRecord
    assert first.topic_partition == TP


def test_what_is_the_same_for_all_records_is_sent_once() -> None:
    records = FetchedBatch(TP, batch_row(0, None, count=3), 0).take(10, RAW)
    assert [(r.timestamp, r.key, r.value, r.headers) for r in records] == [(1000, None, None, ())] * 3


@given(st.integers(1, 40), st.integers(0, 60), st.lists(st.integers(1, 9), min_size=1), st.data())
def test_each_record_from_the_offset_on_comes_once(
    count: int, offset: int, takes: list[int], data: st.DataObject
) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    deltas = [delta - kept[0] for delta in kept]
    base = 10 + kept[0]
    row = batch_row(base, [b"%d" % d for d in kept], deltas=deltas, last_offset=10 + count - 1)
    batch = FetchedBatch(TP, row, offset)
    expected = [10 + d for d in kept if 10 + d >= offset]
    assert batch.remaining == len(expected)
    got: list[int] = []
    for take in takes * count:
        assert batch.next_offset == (expected[len(got)] if len(got) < len(expected) else 10 + count)
        records = batch.take(take, RAW)
        assert len(records) == min(take, len(expected) - len(got))
        assert [b"%d" % (r.offset - 10) for r in records] == [r.value for r in records]
        got += offsets(records)
    assert got == expected


def test_deserializers_never_see_none() -> None:
    row = batch_row(0, [b"1", None, b"3"], keys=[b"4", b"5", b"6"])
    records = FetchedBatch(TP, row, 0).take(3, Deserializers(number, number))
    assert [(r.key, r.value) for r in records] == [(4, 1), (5, None), (6, 3)]


@pytest.mark.parametrize("part", ["key", "value"])
def test_record_that_cannot_be_deserialized_is_named_and_stays(part: str) -> None:
    bad: list[bytes | None] = [b"1", b"2", b"x", b"4"]
    good: list[bytes | None] = [b"0"] * 4
    row = batch_row(20, good if part == "key" else bad, keys=bad if part == "key" else good)
    batch = FetchedBatch(TP, row, 0)
    deserializers = Deserializers(number, number)
    assert offsets(batch.take(4, deserializers)) == [20, 21]
    for _ in range(2):
        with pytest.raises(
            SerializationError, match=f"{part} .*offset 22 .*partition 2 .*'orders'"
        ) as caught:
            batch.take(4, deserializers)
        assert caught.value.details == {"topic": "orders", "partition": 2, "offset": 22, "part": part}
        assert isinstance(caught.value.__cause__, ValueError)
        assert batch.next_offset == 22
    past = FetchedBatch(TP, row, 23)
    assert offsets(past.take(4, deserializers)) == [23]


def test_first_failure_of_key_and_value_counts() -> None:
    row = batch_row(0, [b"1", b"x", b"3"], keys=[b"1", b"2", b"x"])
    batch = FetchedBatch(TP, row, 0)
    deserializers = Deserializers(number, number)
    assert offsets(batch.take(3, deserializers)) == [0]
    with pytest.raises(SerializationError) as caught:
        batch.take(3, deserializers)
    assert caught.value.details["part"] == "value"


def test_iteration_knows_how_far_it_has_come() -> None:
    records = FetchedBatch(TP, batch_row(5, [b"a", b"b", b"c"]), 0).take(3, RAW)
    handed = HandedOut(TP, records, 8)
    assert handed.next_offset == 5
    assert next(handed.iterator).offset == 5
    assert handed.next_offset == 6
    rest = handed.take_back()
    assert isinstance(rest, DecodedBatch)
    assert rest.next_offset == 6
    assert offsets(rest.take(9, RAW)) == [6, 7]
    assert rest.next_offset == 8
    assert list(handed.iterator) == []
    assert handed.take_back() is None
