"""Many records at once: each gets to its partition, in order, in pieces that fit."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.batch import BATCH_OVERHEAD, RECORD_OVERHEAD, Columns, Headers, headers_size
from logstore._core.bulk import check_sizes, parts, pieces
from logstore._core.calls import TopicMetadata
from logstore._core.partitioner import Partitioner, as_partitioner
from logstore._core.queues import Limits, Topic
from logstore.errors import RecordTooLargeError
from logstore.records import Header

T = TypeVar("T")

LIMITS = Limits(
    batch_size=100,
    buffer_memory=4000,
    max_request_size=1000,
    linger_s=0,
    delivery_timeout_s=1,
    retries=0,
)


def topic() -> Topic:
    made = Topic("t")
    made.describe(TopicMetadata("t", 1, 3, 0, 900, {}), LIMITS, 0.0)
    return made


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    count = draw(st.integers(0, 40))

    def column(each: st.SearchStrategy[T]) -> list[T]:
        return draw(st.lists(each, min_size=count, max_size=count))

    keys: list[bytes | None] = column(
        draw(st.sampled_from([st.none(), st.binary(max_size=5), st.none() | st.binary(max_size=5)]))
    )
    some: Headers = [("h", b"1")]
    return Columns(
        keys,
        column(st.none() | st.binary(max_size=300)),
        draw(st.sampled_from([[7] * count, column(st.integers(0, 9))])),
        draw(st.sampled_from([None, column(st.none() | st.just(some))])),
    )


def rows(columns: Columns) -> list[tuple[bytes | None, bytes | None, int, tuple[Header, ...]]]:
    headers = columns.headers or [None] * len(columns.values)
    return [
        (key, value, stamp, tuple(pairs or ()))
        for key, value, stamp, pairs in zip(*columns[:3], headers, strict=True)
    ]


def size_of(columns: Columns) -> int:
    return sum(24 + len(k or b"") + len(v or b"") + headers_size(h) for k, v, _, h in rows(columns))


@given(
    columns(),
    st.none() | st.integers(0, 2),
    st.integers(1, 4),
    st.sampled_from([as_partitioner("crc32"), as_partitioner("murmur2")]),
)
def test_every_record_is_in_one_piece_in_order(
    given: Columns, partition: int | None, count: int, partitioner: Partitioner
) -> None:
    def target_of(key: bytes | None) -> int | None:
        return partition if partition is not None or key is None else partitioner(key, count)

    cut = pieces(given, partition, count, partitioner, 400)
    for piece in cut:
        assert piece.size == size_of(piece.columns) <= 400
    for target in (*range(count), None):
        wanted = [
            row
            for row in rows(given)
            if target
            == (partition if partition is not None or row[0] is None else partitioner(row[0], count))
        ]
        got = chain.from_iterable(rows(piece.columns) for piece in cut if piece.partition == target)
        assert list(got) == wanted


@given(columns())
def test_parts_are_the_whole_and_leave_room_in_the_buffer(given: Columns) -> None:
    longest = check_sizes(given, topic(), LIMITS)
    cut = list(parts(given, longest, LIMITS))
    assert list(chain.from_iterable(map(rows, cut))) == rows(given)
    for part in cut:
        assert size_of(part) <= LIMITS.buffer_memory // 4 or len(part.values) == 1


@given(columns(), st.integers(0, 40))
def test_too_large_record_is_found_wherever_it_is(given: Columns, place: int) -> None:
    place = min(place, len(given.values))

    def with_key(key: bytes) -> Columns:
        keys = [*given.keys[:place], key, *given.keys[place:]]
        values = [*given.values[:place], b"v" * 600, *given.values[place:]]
        return Columns(keys, values, [*given.timestamps, 7], None)

    fits = 900 - BATCH_OVERHEAD - RECORD_OVERHEAD - 600
    assert check_sizes(with_key(b"k" * fits), topic(), LIMITS) == 900 - BATCH_OVERHEAD
    with pytest.raises(RecordTooLargeError, match=r"of 901 bytes .* which is 900"):
        check_sizes(with_key(b"k" * (fits + 1)), topic(), LIMITS)
