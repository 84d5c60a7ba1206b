"""Batches are cut and joined as bytes: every record stays what and where it is, from whichever offset on."""

from __future__ import annotations

from struct import unpack_from
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.mirrored import MOST_RECORDS, Batch, fitted
from logstore.errors import MirrorError


class Record(NamedTuple):
    offset: int
    epoch: int
    kind: int
    stamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def elements(array: bytes | None, count: int) -> list[bytes | None]:
    if array is None:
        return [None] * count
    dimensions, flag, _, length, lower = unpack_from(">5i", array)
    assert (dimensions, flag in (0, 1), length, lower) == (1, True, count, 1)
    found: list[bytes | None] = []
    place = 20
    for _ in range(count):
        (size,) = unpack_from(">i", array, place)
        found.append(None if size < 0 else array[place + 4 : place + 4 + size])
        place += 4 + max(size, 0)
    assert place == len(array)
    return found


def numbers(array: bytes | None, count: int) -> list[int]:
    return [int.from_bytes(each or b"", signed=True) for each in elements(array, count)]


def records(batch: Batch) -> list[Record]:
    count = batch.record_count
    deltas = list(range(count)) if batch.offset_deltas is None else numbers(batch.offset_deltas, count)
    stamps = [batch.max_timestamp] * count if batch.timestamps is None else numbers(batch.timestamps, count)
    assert max(stamps) == batch.max_timestamp
    assert deltas == sorted(set(deltas))
    assert deltas[0] >= 0
    assert batch.base_offset + deltas[-1] <= batch.last_offset
    assert (batch.offset_deltas is not None) or batch.last_offset - batch.base_offset + 1 == count
    headers: list[list[tuple[str, bytes | None]]] = [[] for _ in range(count)]
    if batch.header_records is not None:
        total = unpack_from(">5i", batch.header_records)[3]
        places = numbers(batch.header_records, total)
        assert places == sorted(places)
        names, values = elements(batch.header_keys, total), elements(batch.header_values, total)
        for place, name, value in zip(places, names, values, strict=True):
            headers[place - 1].append(((name or b"").decode(), value))
    return [
        Record(batch.base_offset + deltas[i], batch.leader_epoch, batch.timestamp_type, stamps[i], key, value,
               tuple(headers[i]))
        for i, (key, value) in enumerate(
            zip(elements(batch.keys, count), elements(batch.values, count), strict=True))
    ]  # fmt: skip


optional = st.none() | st.binary(max_size=5)
header = st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), optional)


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    found = []
    base = draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, 5))):
        base += draw(st.integers(0, 4))  # a hole
        count = draw(st.integers(0, 5))
        deltas = sorted(draw(st.sets(st.integers(0, 8), min_size=count, max_size=count)))
        last = base + max([*deltas, draw(st.integers(0, 9))])
        stamps = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
        heads = [(i + 1, *each) for i in range(count) for each in draw(st.lists(header, max_size=2))]
        keys = draw(st.none() | st.lists(optional, min_size=count, max_size=count))
        values = draw(st.none() | st.lists(optional, min_size=count, max_size=count))
        once = not count or draw(st.booleans())
        dense = last - base + 1 == count
        found.append(
            Batch(
                base, last, count, draw(st.integers(0, 1)), 0, 7, max(stamps, default=3),
                None if once else Int8Array(stamps).encode(),
                None if keys is None or not count else ByteaArray(keys).encode(),
                None if values is None or not count else ByteaArray(values).encode(),
                Int4Array([each[0] for each in heads]).encode() if heads else None,
                TextArray([each[1] for each in heads]).encode() if heads else None,
                ByteaArray([each[2] for each in heads]).encode() if heads else None,
                None if dense else Int4Array(deltas).encode(),
            )
        )  # fmt: skip
        base = last + 1
    return found


@given(batches(), st.integers(0, 60))
def test_every_record_from_any_offset_on(given_batches: list[Batch], position: int) -> None:
    wanted = [
        record
        for batch in given_batches
        if batch.record_count
        for record in records(batch)
        if record.offset >= position
    ]
    found = list(fitted(given_batches, position))
    assert [record for batch in found for record in records(batch)] == wanted
    for batch in found:
        assert batch.base_offset == position
        position = batch.last_offset + 1


def plain(base: int, count: int, **changes: Any) -> Batch:
    batch = Batch(base, base + count - 1, count, 0, 0, 0, 0, None, None, ByteaArray([b"v"] * count).encode(),
                  None, None, None, None)  # fmt: skip
    return batch._replace(**changes)


def test_what_fits_passes_as_it_is() -> None:
    batch = plain(5, 3)
    assert next(fitted([batch], 5)) is batch


@pytest.mark.parametrize(
    ("second", "joined"),
    [
        (plain(3, 3), True),
        (plain(3, 3, leader_epoch=1), False),
        (plain(3, 3, timestamp_type=1), False),
        (plain(3, MOST_RECORDS), False),
    ],
)
def test_neighbours_that_agree_are_joined(second: Batch, joined: bool) -> None:
    assert len(list(fitted([plain(0, 3), second], 0))) == (1 if joined else 2)


def test_batches_that_the_server_stamped_at_other_times_are_not_joined() -> None:
    stamped = {"timestamp_type": 1, "append_time": 5, "max_timestamp": 5}
    later = {"timestamp_type": 1, "append_time": 6, "max_timestamp": 6}
    assert len(list(fitted([plain(0, 1, **stamped), plain(1, 1, **stamped)], 0))) == 1
    assert len(list(fitted([plain(0, 1, **stamped), plain(1, 1, **later)], 0))) == 2


def test_a_hole_that_is_too_large_for_a_batch() -> None:
    with pytest.raises(MirrorError, match="too many"):
        list(fitted([plain(2**31, 3)], 0))
