"""Batches as a fetch brought them, made into records only when somebody takes them.

A batch stays as the arrays that the server sent until it is handed out: records are built at C speed, as many
as asked for, so a consumer that takes 500 of 8,000 records pays for 500.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any, Final, NamedTuple

from logstore._core.calls import FetchRow
from logstore.errors import SerializationError
from logstore.records import ConsumerRecord, Header, TopicPartition

__all__ = ["DecodedBatch", "Deserializer", "Deserializers", "FetchedBatch", "HandedOut"]

Deserializer = Callable[[bytes], Any]

# ConsumerRecord(*fields) without a Python frame for each record.
_new: Final[Callable[[type[ConsumerRecord], tuple[Any, ...]], ConsumerRecord]] = tuple.__new__
SAMPLES: Final = 32
_NO_HEADERS: Final[tuple[Header, ...]] = ()


class Deserializers(NamedTuple):
    """What turns the bytes of keys and values into the user's objects; None leaves them bytes.

    Neither is ever called with None: a record without a key has key None, a tombstone has value None.
    """

    key: Deserializer | None = None
    value: Deserializer | None = None


class FetchedBatch:
    """One batch of one partition and how far into it the reader has come."""

    __slots__ = ("_before", "_headers", "_index", "_row", "base_offset", "size", "tp")

    def __init__(self, tp: TopicPartition, row: FetchRow, offset: int, before: int | None = None) -> None:
        """``offset``: records below it are not wanted (a batch may begin before the position); ``before``:
        the leader epoch of what comes before the batch.
        """
        assert row.base_offset is not None
        self.tp = tp
        self.base_offset = row.base_offset
        self._row = row
        self._before = before
        behind = offset - row.base_offset
        deltas = row.offset_deltas
        self._index = (
            0
            if behind <= 0
            else min(behind, row.record_count)
            if deltas is None
            else bisect_left(deltas, behind)
        )
        self._headers: Sequence[tuple[Header, ...]] | None = None
        self.size = _bytes_in(row.keys) + _bytes_in(row.values) + _bytes_in(row.header_values)
        """Bytes of keys, values and headers: what keeping the batch costs, roughly."""

    @property
    def remaining(self) -> int:
        return self._row.record_count - self._index

    @property
    def next_offset(self) -> int:
        """The offset of the next record, or the one after the batch when all are taken."""
        row, index = self._row, self._index
        if index >= row.record_count:
            return row.last_offset + 1
        return self.base_offset + (index if row.offset_deltas is None else row.offset_deltas[index])

    @property
    def epoch_before(self) -> int | None:
        """The leader epoch of the offset before the next record's; None: not known."""
        return self._before if self.next_offset == self.base_offset else self._row.leader_epoch

    def take(self, count: int, deserializers: Deserializers) -> list[ConsumerRecord]:
        """The next records, ``count`` at most.

        A record that cannot be deserialized ends the list before it; when it is the first one,
        :class:`SerializationError` is raised and the batch stays where it is.
        """
        row = self._row
        begin = self._index
        end = min(begin + count, row.record_count)
        keys, key_failure = _deserialized(row.keys, begin, end, deserializers.key)
        values, value_failure = _deserialized(row.values, begin, end, deserializers.value)
        if key_failure is not None or value_failure is not None:
            key_end = begin + len(keys) if key_failure is not None else end
            value_end = begin + len(values) if value_failure is not None else end
            end = min(key_end, value_end)
            if end == begin:
                raise self._failure(
                    *(("key", key_failure) if key_end <= value_end else ("value", value_failure))
                )
        base, deltas = self.base_offset, row.offset_deltas
        offsets = range(base + begin, base + end) if deltas is None else map(base.__add__, deltas[begin:end])
        timestamps = (
            repeat(row.max_timestamp, end - begin) if row.timestamps is None else row.timestamps[begin:end]
        )
        records = list(
            map(
                _new,
                repeat(ConsumerRecord),
                zip(
                    repeat(self.tp.topic),
                    repeat(self.tp.partition),
                    offsets,
                    timestamps,
                    repeat(row.timestamp_type),
                    keys,
                    values,
                    repeat(_NO_HEADERS) if row.header_records is None else self._all_headers()[begin:end],
                    repeat(row.leader_epoch),
                ),
            )
        )
        self._index = end
        return records

    def _all_headers(self) -> Sequence[tuple[Header, ...]]:
        if self._headers is None:
            row = self._row
            headers: list[tuple[Header, ...]] = [_NO_HEADERS] * row.record_count
            assert row.header_records is not None
            assert row.header_keys is not None
            assert row.header_values is not None
            for ordinal, name, value in zip(
                row.header_records, row.header_keys, row.header_values, strict=True
            ):
                headers[ordinal - 1] = (*headers[ordinal - 1], (name, value))
            self._headers = headers
        return self._headers

    def _failure(self, part: str, cause: BaseException | None) -> SerializationError:
        offset = self.next_offset
        error = SerializationError(
            f"The {part} of the record at offset {offset} of partition {self.tp.partition} of topic "
            f"{self.tp.topic!r} cannot be deserialized: {cause!r}.",
            advice=f"The position is still {offset}: seek past it, or read it without the deserializer.",
            details={"topic": self.tp.topic, "partition": self.tp.partition, "offset": offset, "part": part},
        )
        error.__cause__ = cause
        return error


class DecodedBatch:
    """Records that were handed to an iteration, which left them before it came to them."""

    __slots__ = ("_before", "_index", "_next_offset", "_records", "size", "tp")

    def __init__(
        self, tp: TopicPartition, records: list[ConsumerRecord], next_offset: int, before: int | None
    ) -> None:
        """``before``: the leader epoch of what comes before them."""
        self.tp = tp
        self._records = records
        self._index = 0
        self._next_offset = next_offset
        self._before = before
        self.size = 0

    @property
    def remaining(self) -> int:
        return len(self._records) - self._index

    @property
    def next_offset(self) -> int:
        return self._records[self._index].offset if self.remaining else self._next_offset

    @property
    def epoch_before(self) -> int | None:
        return self._records[self._index - 1].leader_epoch if self._index else self._before

    def take(self, count: int, deserializers: Deserializers) -> list[ConsumerRecord]:
        taken = self._records[self._index : self._index + count]
        self._index += len(taken)
        return taken


class HandedOut:
    """A list of records that an iteration walks through at the speed of a list.

    Nothing is written down for each record: how far the iteration has come is what the list's iterator says
    is left.
    """

    __slots__ = ("_epoch", "_next_offset", "_records", "iterator", "tp")

    def __init__(
        self, tp: TopicPartition, records: list[ConsumerRecord], next_offset: int, epoch: int | None = None
    ) -> None:
        """``epoch``: the leader epoch of what was handed out before these."""
        self.tp = tp
        self._epoch = epoch
        self.iterator: Iterator[ConsumerRecord] = iter(records)
        self._records = records
        self._next_offset = next_offset

    @property
    def left(self) -> int:
        return length_hint(self.iterator)

    @property
    def next_offset(self) -> int:
        left = self.left
        return self._records[-left].offset if left else self._next_offset

    @property
    def epoch(self) -> int | None:
        """The leader epoch of the record that the iteration came to last."""
        come_to = len(self._records) - self.left
        return self._records[come_to - 1].leader_epoch if come_to else self._epoch

    def take_back(self) -> DecodedBatch | None:
        """Ends the iteration; what it had not come to yet, if anything."""
        epoch = self.epoch
        rest = list(self.iterator)
        return DecodedBatch(self.tp, rest, self._next_offset, epoch) if rest else None


def _bytes_in(parts: Sequence[bytes | None] | None) -> int:
    """About how many: looking at every part would cost an eighth of what reading costs."""
    if not parts:
        return 0
    step = 1 + len(parts) // SAMPLES
    return sum(map(len, filter(None, parts[::step]))) * step


def _deserialized(
    parts: Sequence[bytes | None] | None, begin: int, end: int, deserializer: Deserializer | None
) -> tuple[Any, Exception | None]:
    """The parts from ``begin`` to ``end``, as far as they could be deserialized, and what stopped it."""
    if parts is None:
        return repeat(None, end - begin), None
    wanted = parts[begin:end]
    if deserializer is None:
        return wanted, None
    done: list[Any] = []
    try:
        if None in wanted:
            done.extend(None if part is None else deserializer(part) for part in wanted)
        else:
            # extend keeps what came before an exception: its length tells which record failed
            done.extend(map(deserializer, wanted))  # type: ignore[arg-type]
    except Exception as failure:
        return done, failure
    return done, None
