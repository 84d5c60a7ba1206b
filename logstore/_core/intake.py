"""What users hand over, as the bytes that records are made of, or a typed error before anything is taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from logstore._core.batch import Columns, Headers
from logstore.errors import InvalidArgumentError, LogstoreError, SerializationError
from logstore.records import Header
from logstore.serde import Serializer

__all__ = ["Intake", "as_headers", "as_timestamp", "check_target"]

LATEST_TIMESTAMP_MS: Final = 253_402_300_799_999
"""The end of the year 9999, which is as late as the server takes."""

_PLAIN: Final = frozenset((bytes, type(None)))


class Intake:
    """Serializes for one producer."""

    def __init__(self, key_serializer: Serializer | None, value_serializer: Serializer | None) -> None:
        self._key_serializer = key_serializer
        self._value_serializer = value_serializer

    def key(self, key: object) -> bytes | None:
        """The bytes of a key."""
        return _serialized("key", self._key_serializer, key)

    def value(self, value: object) -> bytes | None:
        """The bytes of a value."""
        return _serialized("value", self._value_serializer, value)

    def columns(
        self,
        values: Iterable[Any],
        keys: Iterable[Any] | None,
        headers: Iterable[Iterable[Header] | None] | None,
        timestamps_ms: Iterable[int] | int | None,
        now_ms: int,
    ) -> Columns:
        """Many records at once.  Raises InvalidArgumentError when the columns are not of one length."""
        ready_values = _column("value", self._value_serializer, _listed("values", values))
        count = len(ready_values)
        ready_keys: list[bytes | None] = [None] * count
        if keys is not None:
            ready_keys = _column("key", self._key_serializer, _listed("keys", keys))
        pairs: list[Headers | None] | None = None
        if headers is not None:
            given = _listed("headers", headers)
            pairs = [None if each is None else as_headers(each) for each in given]
        if timestamps_ms is None:
            stamps = [now_ms] * count
        elif isinstance(timestamps_ms, int):
            stamps = [as_timestamp(timestamps_ms)] * count
        else:
            stamps = [as_timestamp(each) for each in _listed("timestamps_ms", timestamps_ms)]
        lengths = {"values": count, "keys": len(ready_keys), "timestamps_ms": len(stamps)}
        if pairs is not None:
            lengths["headers"] = len(pairs)
        if set(lengths.values()) != {count}:
            told = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise InvalidArgumentError(f"Every column has to have one entry for each record, not {told}.")
        return Columns(ready_keys, ready_values, stamps, pairs)


def as_headers(headers: Iterable[Header]) -> Headers:
    """Headers as pairs of a str and bytes or None, in their order."""
    pairs: list[Header] = []
    try:
        for name, value in headers.items() if isinstance(headers, dict) else headers:
            if type(name) is not str or "\0" in name:
                raise InvalidArgumentError(f"A header's name is a str without NUL, not {name!r}.")
            name.encode()
            pairs.append((name, _plain("header", value)))
    except (TypeError, ValueError) as error:
        if isinstance(error, LogstoreError):
            raise
        raise InvalidArgumentError(
            f"Headers are pairs of a name (str) and a value (bytes or None), not {headers!r}: {error}."
        ) from None
    return pairs


def as_timestamp(timestamp_ms: object) -> int:
    """A time stamp that the server can hold."""
    if type(timestamp_ms) is int and 0 <= timestamp_ms <= LATEST_TIMESTAMP_MS:
        return timestamp_ms
    raise InvalidArgumentError(
        f"timestamp_ms={timestamp_ms!r}: an int is wanted, milliseconds from 1970 (0) to the end of 9999 "
        f"({LATEST_TIMESTAMP_MS})."
    )


def check_target(topic: object, partition: object) -> None:
    """Check where a record is to go."""
    if type(topic) is not str:
        raise InvalidArgumentError(f"topic={topic!r}: a str is wanted.")
    if partition is not None and (type(partition) is not int or partition < 0):
        raise InvalidArgumentError(f"partition={partition!r}: an int from 0 is wanted, or None.")


def _listed(name: str, column: Iterable[Any]) -> list[Any]:
    # A str or bytes is iterable too, and never what was meant.
    if isinstance(column, str | bytes | bytearray | memoryview | dict) or not isinstance(column, Iterable):
        raise InvalidArgumentError(
            f"{name} is a list with one entry for each record, not {type(column).__name__}."
        )
    return column if isinstance(column, list) else list(column)


def _column(what: str, serializer: Serializer | None, column: list[Any]) -> list[bytes | None]:
    if serializer is None and set(map(type, column)) <= _PLAIN:
        return column
    return [_serialized(what, serializer, item) for item in column]


def _serialized(what: str, serializer: Serializer | None, item: object) -> bytes | None:
    if item is None or serializer is None:
        return _plain(what, item)
    try:
        result = serializer(item)
    except Exception as error:
        raise SerializationError(
            f"The {what}_serializer raised {error!r} for a {type(item).__name__}."
        ) from error
    if result is None or type(result) is bytes:
        return result
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result)
    raise SerializationError(f"The {what}_serializer returned {type(result).__name__} instead of bytes.")


def _plain(what: str, item: object) -> bytes | None:
    if item is None or type(item) is bytes:
        return item
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    advice = "" if what == "header" else f"Encode it, or set {what}_serializer."
    raise InvalidArgumentError(f"A {what} is bytes or None, not {type(item).__name__}.", advice=advice)
