"""The SQL functions that go by a record's key, as calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from logstore._core.call import Call, Row, quoted
from logstore._core.calls import FetchRow
from logstore.errors import InvalidArgumentError

__all__ = ["ErasureRow", "KeyCalls", "key_bytes"]


class ErasureRow(NamedTuple):
    erasure_id: int
    topic: str
    key_sha256: str
    requested_by: str
    requested_at_ms: int
    records: int
    removed_at_ms: int | None
    finished_at_ms: int | None


class KeyCalls:
    """The SQL functions of one log that go by keys."""

    def __init__(self, schema: str = "logstore") -> None:
        prefix = quoted(schema) + "."
        columns = ", ".join(
            "NULL" if name in ("log_start", "high_watermark", "local_start", "log_end") else f'"{name}"'
            for name in FetchRow._fields[1:]
        )
        self._latest = (
            f"SELECT found_partition, {columns} FROM {prefix}latest_batch($1::text, $2::bytea, $3::int4)"  # noqa: S608
        )
        self._erase = f"SELECT {prefix}erase_key($1::text, $2::bytea)"
        times = ", ".join(
            f"(extract(epoch FROM {name}) * 1000)::int8"
            for name in ("requested_at", "removed_at", "finished_at")
        )
        requested, removed, finished = times.split(", ")
        self._erasures = (
            f"SELECT erasure_id, topic, key_sha256, requested_by::text, {requested}, records, {removed}, "  # noqa: S608
            f"{finished} FROM {prefix}erasures WHERE $1::text IS NULL OR topic = $1 ORDER BY erasure_id"
        )

    def latest(self, topic: str, key: bytes, partition: int | None) -> Call[FetchRow | None]:
        """The last record of a key, as a batch; ``idx`` is its partition.  None: there is none."""
        return Call(self._latest, (topic, key, partition), _batch, "latest")

    def erase_key(self, topic: str, key: bytes) -> Call[int]:
        """Have every record of the key that there is now erased; the erasure's id."""
        return Call(self._erase, (topic, key), _id, "erase_key", writes=True)

    def erasures(self, topic: str | None) -> Call[list[ErasureRow]]:
        """Every erasure that was asked for, in order; of one topic or of all."""
        return Call(self._erasures, (topic,), _erasures, "erasures")


def key_bytes(key: bytes | str) -> bytes:
    """What is stored of a key; raises InvalidArgumentError for what is none."""
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"A key that is a str has to be Unicode: {error}.") from None
    if not isinstance(key, bytes | bytearray | memoryview):
        raise InvalidArgumentError(f"A key is bytes or a str (UTF-8), not {key!r}.")
    return bytes(key)


def _batch(rows: Sequence[Row]) -> FetchRow | None:
    return FetchRow(*rows[0]) if rows else None


def _id(rows: Sequence[Row]) -> int:
    return int(rows[0][0])


def _erasures(rows: Sequence[Row]) -> list[ErasureRow]:
    return [ErasureRow(*row) for row in rows]
