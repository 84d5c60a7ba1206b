"""Arrays as PostgreSQL's binary wire format has them, encoded at C speed.

A driver's general-purpose array codec looks at every element in Python; at millions of elements a second
that is the bottleneck.  Here a whole array is built by a few calls that loop in C (``map``, ``join``, slice
assignment).

A parameter that is an array travels in one of the wrappers below.  The psycopg driver sends
:meth:`ArrayParameter.encode` as one binary parameter; the asyncpg driver, whose codecs are in C, takes the
plain list from ``items``.

Format: dimensions int4, has-null flag int4, element type int4; then (for a non-empty array) length int4,
lower bound int4; then for each element its length int4 (-1 for NULL) and its bytes.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import ClassVar, Final

from logstore._core.stamps import Stamps
from logstore.errors import InvalidArgumentError

__all__ = ["ARRAYS", "ArrayParameter", "ByteaArray", "Int4Array", "Int8Array", "TextArray"]

_HEADER: Final = Struct(">5i")
_EMPTY: Final = Struct(">3i")
_INT4: Final = Struct(">i")
_NULL: Final = _INT4.pack(-1)

# The length prefix of every short element, made once: looking one up costs a fifth of packing it.
_PREFIXES: Final = tuple(_INT4.pack(length) for length in range(4096))
_PREFIX: Final = _PREFIXES.__getitem__


class ArrayParameter(ABC):
    """A list that is sent as a PostgreSQL array; an element may be None."""

    __slots__ = ("binary", "items")

    element_oid: ClassVar[int]

    def __init__(self, items: Sequence[object]) -> None:
        self.items = items
        self.binary: bytes | None = None
        """What :meth:`encode` returns, where that was worked out ahead of time."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.items!r})"

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def encode(self) -> bytes:
        """The array in PostgreSQL's binary format."""

    def _header(self, has_null: bool) -> bytes:
        return _HEADER.pack(1, has_null, self.element_oid, len(self.items), 1)


class ByteaArray(ArrayParameter):
    """``bytea[]`` of ``bytes | None``.

    ``lengths``, where the caller knows them, spares counting them again.
    """

    __slots__ = ("lengths",)
    element_oid = 17
    items: Sequence[bytes | None]

    def __init__(self, items: Sequence[bytes | None], lengths: list[int] | None = None) -> None:
        super().__init__(items)
        self.lengths = lengths

    def encode(self) -> bytes:
        items = self.items
        if not items:
            return _EMPTY.pack(0, 0, self.element_oid)
        try:
            lengths = self.lengths or list(map(len, items))  # type: ignore[arg-type]
            return _join_bytes(self._header(False), items, lengths)  # type: ignore[arg-type]
        except (TypeError, IndexError):  # a None, or an element longer than the table knows
            return _join_nullable(self._header(None in items), items)


class TextArray(ArrayParameter):
    """``text[]`` of ``str | None``."""

    __slots__ = ()
    element_oid = 25
    items: Sequence[str | None]

    def encode(self) -> bytes:
        if not self.items:
            return _EMPTY.pack(0, 0, self.element_oid)
        try:
            items = [item if item is None else item.encode() for item in self.items]
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"Not every text is Unicode: {error}.") from None
        return _join_nullable(self._header(None in items), items)


class _IntArray(ArrayParameter):
    __slots__ = ()
    items: Sequence[int | None]
    width: ClassVar[int]
    typecode: ClassVar[str]

    def encode(self) -> bytes:
        items = self.items
        if not items:
            return _EMPTY.pack(0, 0, self.element_oid)
        prefix = _PREFIX(self.width)
        try:
            if not isinstance(items, Stamps) and None in items:
                parts = [
                    _NULL if item is None else prefix + item.to_bytes(self.width, signed=True)
                    for item in items
                ]
                return self._header(True) + b"".join(parts)
            if isinstance(items, Stamps) and len(runs := items.runs()) * 8 <= len(items):
                parts = [(prefix + item.to_bytes(self.width, signed=True)) * count for item, count in runs]
                return self._header(False) + b"".join(parts)
            raw = array(self.typecode, items)  # type: ignore[type-var]
        except OverflowError:
            raise InvalidArgumentError(f"A number does not fit into {self.width} bytes.") from None
        if sys.byteorder == "little":
            raw.byteswap()
        digits = raw.tobytes()
        step = 4 + self.width
        out = bytearray((prefix + bytes(self.width)) * len(items))
        for place in range(self.width):
            out[4 + place :: step] = digits[place :: self.width]
        return self._header(False) + bytes(out)


class Int4Array(_IntArray):
    """``int4[]`` of ``int | None``."""

    __slots__ = ()
    element_oid = 23
    width = 4
    typecode = "i"


class Int8Array(_IntArray):
    """``int8[]`` of ``int | None``."""

    __slots__ = ()
    element_oid = 20
    width = 8
    typecode = "q"


ARRAYS: Final = (ByteaArray, TextArray, Int4Array, Int8Array)


def _join_bytes(header: bytes, items: Sequence[bytes], lengths: list[int]) -> bytes:
    first = lengths[0]
    if lengths.count(first) == len(lengths):
        prefix = _INT4.pack(first)
        return prefix.join([header + prefix + items[0], *items[1:]])
    parts: list[bytes] = [header] * (2 * len(items) + 1)
    parts[1::2] = map(_PREFIX, lengths)
    parts[2::2] = items
    return b"".join(parts)


def _join_nullable(header: bytes, items: Sequence[bytes | None]) -> bytes:
    pack = _INT4.pack
    parts = [header]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts.append(pack(len(item)))
            parts.append(item)
    return b"".join(parts)
