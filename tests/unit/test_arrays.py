"""Arrays in PostgreSQL's binary format, against an encoder that does it one element at a time."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.arrays import ArrayParameter, ByteaArray, Int4Array, Int8Array, TextArray
from logstore.errors import InvalidArgumentError

BYTES = st.lists(
    st.none() | st.binary(max_size=40) | st.sampled_from([b"", b"x" * 4095, b"y" * 4096, b"z" * 70000])
)
EQUALLY_LONG = st.integers(0, 20).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size)))


def plainly(oid: int, items: Sequence[bytes | None]) -> bytes:
    if not items:
        return struct.pack(">3i", 0, 0, oid)
    encoded = struct.pack(">5i", 1, None in items, oid, len(items), 1)
    for item in items:
        encoded += struct.pack(">i", -1) if item is None else struct.pack(">i", len(item)) + item
    return encoded


@given(BYTES | EQUALLY_LONG)
def test_bytea(items: list[bytes | None]) -> None:
    assert ByteaArray(items).encode() == plainly(17, items)
    assert ByteaArray(tuple(items)).encode() == plainly(17, items)


@given(EQUALLY_LONG | st.lists(st.binary(max_size=40)))
def test_bytea_with_known_lengths(items: list[bytes]) -> None:
    assert ByteaArray(items, [len(item) for item in items]).encode() == plainly(17, items)


@given(st.lists(st.none() | st.text()))
def test_text(items: list[str | None]) -> None:
    try:
        wanted = plainly(25, [item if item is None else item.encode() for item in items])
    except UnicodeEncodeError:  # a lone surrogate is text for Python alone
        return
    assert TextArray(items).encode() == wanted


@pytest.mark.parametrize(("kind", "oid", "bits"), [(Int4Array, 23, 32), (Int8Array, 20, 64)])
def test_integers(kind: type[ArrayParameter], oid: int, bits: int) -> None:
    integers = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @given(st.lists(integers) | st.lists(st.none() | integers))
    def check(items: list[int | None]) -> None:
        parts = [None if item is None else item.to_bytes(bits // 8, signed=True) for item in items]
        assert kind(items).encode() == plainly(oid, parts)

    check()


@pytest.mark.parametrize("items", [[2**31], [None, 2**31], [-(2**31) - 1]])
def test_number_that_does_not_fit_is_refused(items: list[int | None]) -> None:
    with pytest.raises(InvalidArgumentError, match="4 bytes"):
        Int4Array(items).encode()
