"""Record batches on their way to the log, and what has become of them.

A batch is filled in one of two ways: :class:`~logstore._core.row_batch.RowBatch` record by record,
:class:`BulkBatch` by whole columns, with a single C call, so that a Ctrl-C can never leave a key without its
value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from logstore._core.arrays import ArrayParameter, ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.calls import AppendBatch, AppendResult
from logstore._core.sequences import Number
from logstore._core.stamps import Stamps
from logstore.errors import LogstoreError
from logstore.records import BatchMetadata, Header

if TYPE_CHECKING:
    from logstore._core.queues import PartitionQueue

__all__ = [
    "BATCH_OVERHEAD",
    "HEADER_OVERHEAD",
    "RECORD_OVERHEAD",
    "Batch",
    "BulkBatch",
    "Columns",
    "headers_size",
]

BATCH_OVERHEAD: Final = 192
RECORD_OVERHEAD: Final = 24
HEADER_OVERHEAD: Final = 20
"""With these, a batch's size here is an upper bound of what the server measures."""

Headers = Sequence[Header]


def headers_size(headers: Headers) -> int:
    """What headers add to the size of a record, in bytes."""
    return sum(HEADER_OVERHEAD + len(name.encode()) + len(value or b"") for name, value in headers)


class Columns(NamedTuple):
    """Records, column by column."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    timestamps: Sequence[int]
    headers: list[Headers | None] | None
    """None: no record has any."""

    def cut(self, start: int, stop: int) -> Columns:
        """The records from ``start`` up to ``stop``."""
        headers = None if self.headers is None else self.headers[start:stop]
        return Columns(self.keys[start:stop], self.values[start:stop], self.timestamps[start:stop], headers)


class Batch:
    """Records of one partition that are appended together: all or none of them get into the log."""

    __slots__ = (
        "append_time",
        "attempts",
        "base_offset",
        "callbacks",
        "count",
        "created",
        "done",
        "doubtful",
        "error",
        "event",
        "held",
        "last_error",
        "lock",
        "mark",
        "number",
        "pieces",
        "prepared",
        "queue",
        "reserved",
        "room",
        "throttle_ms",
    )

    def __init__(self, queue: PartitionQueue, lock: Any) -> None:
        self.queue = queue
        self.lock = lock
        """Guards ``done``, ``callbacks`` and ``event``."""
        self.reserved = BATCH_OVERHEAD
        """Bytes of the buffer that are set aside for this batch."""
        self.room = 0
        """Those of them that are still free."""
        self.mark = 0
        """The size at which the sender is told again."""
        self.count = 0
        """How many records there were when they were released."""
        self.created: float | None = None
        """When the sender first saw it; linger and delivery time-out count from there."""
        self.attempts = 0
        self.last_error: LogstoreError | None = None
        self.number: Number | None = None
        """Given when it is first sent, and kept; None with a producer that is not idempotent."""
        self.doubtful = False
        """It may be in the log."""
        self.pieces = 1
        """Into how many rows it is cut, after the server found it too large."""
        self.prepared: AppendBatch | None = None
        """The row to append, encoded ahead of time."""
        self.held = False
        """It waits for the commit of a transaction that is still open."""
        self.done = False
        self.error: LogstoreError | None = None
        self.base_offset = -1
        self.append_time = -1
        self.throttle_ms = 0
        self.callbacks: list[Callable[[], None]] | None = None
        """Called once, after the batch is done and outside of the lock."""
        self.event: Any = None
        """Made by whoever waits for this batch first."""

    @property
    def size(self) -> int:
        """Bytes, an upper bound of what the server will measure."""
        return self.reserved - self.room

    def __len__(self) -> int:
        raise NotImplementedError

    def seal(self) -> None:
        """No further records: from now on they are what they are.  The lock must be held."""

    def columns(self) -> Columns:
        """The records.  Once it is sealed, and not after :meth:`release`."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget keys and values: whoever keeps a future does not keep its record.

        For after the batch is done, and outside of the lock: it takes as long as the batch is large.
        """
        raise NotImplementedError

    def encode(self) -> list[AppendBatch]:
        """The rows to append, usually one.  For the sender, outside of the lock, while the batch is in
        flight.
        """
        if self.pieces == 1 and self.prepared is not None:
            # The topic may have been deleted and made again meanwhile.
            return [self._numbered(self.prepared._replace(topic_id=self.queue.topic.topic_id))]
        columns = self.columns()
        if self.pieces == 1:
            return [self._numbered(self._row(columns, *self.lengths(columns)))]
        count = len(columns.values)
        step = -(-count // self.pieces)
        self.lengths(columns)
        return [
            self._numbered(self._row(columns.cut(start, start + step)), start)
            for start in range(0, count, step)
        ]

    def prepare(self) -> None:
        """Encode ahead of time.  For the sender, once the batch takes no further records."""
        if self.prepared is None:
            (row,) = self.encode()
            for part in row:
                if isinstance(part, ArrayParameter):
                    part.binary = part.encode()
            self.prepared = row

    def lengths(self, columns: Columns) -> tuple[list[int] | None, list[int] | None]:
        """The lengths of keys and of values, where they are known; None where one of them is missing."""
        return None, None

    def settle(self, results: Sequence[AppendResult]) -> None:
        """The batch is in the log.  Its rows were appended under one lock, so their offsets are dense."""
        self.base_offset = results[0].base_offset
        self.append_time = results[0].append_time
        self.throttle_ms = results[-1].throttle_ms
        self.done = True

    def fail(self, error: LogstoreError) -> None:
        """The batch does not get into the log any more."""
        self.error = error
        self.done = True

    def vanish(self) -> None:
        """There is no record in it.  The lock must be held."""
        self.done = True
        if self.event is not None:
            self.event.set()

    def _numbered(self, row: AppendBatch, start: int = 0) -> AppendBatch:
        if self.number is None:
            return row
        producer_id, epoch, sequence = self.number.after(start)
        return row._replace(producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)

    def _row(
        self,
        columns: Columns,
        key_lengths: list[int] | None = None,
        value_lengths: list[int] | None = None,
    ) -> AppendBatch:
        keys, values, timestamps, headers = columns
        count = len(values)
        if isinstance(timestamps, Stamps):
            latest, constant = timestamps.highest(), timestamps.constant
        else:
            latest = max(timestamps)
            constant = timestamps.count(latest) == count
        queue = self.queue
        return AppendBatch(
            queue.topic.topic_id,
            queue.partition,
            count,
            latest,
            None if constant else Int8Array(timestamps),
            None if keys[0] is None and keys.count(None) == count else ByteaArray(keys, key_lengths),
            None if values[0] is None and values.count(None) == count else ByteaArray(values, value_lengths),
            *_header_columns(headers),
        )


class BulkBatch(Batch):
    """A batch that ``send_many`` fills."""

    __slots__ = ("chunks",)

    def __init__(self, queue: PartitionQueue, lock: Any) -> None:
        super().__init__(queue, lock)
        self.chunks: list[Columns] = []

    def __len__(self) -> int:
        return self.count or sum(len(chunk.values) for chunk in self.chunks)

    def columns(self) -> Columns:
        if len(self.chunks) == 1:
            return self.chunks[0]
        with_headers = any(chunk.headers is not None for chunk in self.chunks)
        all_headers: list[Headers | None] = []
        if with_headers:
            for chunk in self.chunks:
                all_headers += chunk.headers or [None] * len(chunk.values)
        return Columns(
            list(chain.from_iterable(chunk.keys for chunk in self.chunks)),
            list(chain.from_iterable(chunk.values for chunk in self.chunks)),
            list(chain.from_iterable(chunk.timestamps for chunk in self.chunks)),
            all_headers if with_headers else None,
        )

    def release(self) -> None:
        self.count = len(self)
        self.chunks = []
        self.prepared = None

    def run(self, start: int, count: int) -> BatchMetadata:
        """Where ``count`` records from ``start`` on are, once the batch is done without an error."""
        offset = -1 if self.base_offset < 0 else self.base_offset + start
        topic, partition = self.queue.topic.name, self.queue.partition
        return BatchMetadata(topic, partition, offset, count, self.append_time, self.throttle_ms)


def _header_columns(
    headers: list[Headers | None] | None,
) -> tuple[Int4Array | None, TextArray | None, ByteaArray | None]:
    if headers is None:
        return None, None, None
    ordinals: list[int] = []
    names: list[str] = []
    values: list[bytes | None] = []
    for ordinal, pairs in enumerate(headers, 1):
        for name, value in pairs or ():
            ordinals.append(ordinal)
            names.append(name)
            values.append(value)
    if not ordinals:
        return None, None, None
    return Int4Array(ordinals), TextArray(names), ByteaArray(values)
