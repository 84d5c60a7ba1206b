"""Records that wait to be sent, and the rules of when and in which order they go.

Pure: it takes ``now`` (seconds of a monotonic clock) and knows no threads.  Whoever owns it calls every
method under one lock.  A Ctrl-C may strike in the middle of what the sending thread calls (``add``,
``add_columns``, ``incomplete``): each step there is one C call, and in an order in which stopping after any
of them is harmless.

A partition's batches go one at a time: while one is under way the queue is *muted*, so that a batch that
has to be sent again is never overtaken by a later one.  Meanwhile the next batch grows beyond
``batch_size``, up to what one row of the log may hold: the slower the server, the larger the batches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Generic, TypeVar

from logstore._core.backoff import Backoff
from logstore._core.batch import (
    BATCH_OVERHEAD,
    RECORD_OVERHEAD,
    Batch,
    BulkBatch,
    Columns,
    Headers,
    RowBatch,
    headers_size,
)
from logstore._core.calls import AppendResult, TopicMetadata
from logstore._core.partitioner import Partitioner
from logstore.errors import (
    DeliveryTimeoutError,
    LogstoreError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)

__all__ = ["Accumulator", "Limits", "PartitionQueue", "Topic"]

F = TypeVar("F")
B = TypeVar("B", bound=Batch)

_FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    batch_size: int
    buffer_memory: int
    max_request_size: int
    linger_s: float
    delivery_timeout_s: float
    retries: int
    request_bytes: int = 4 << 20
    """How much one request carries before further partitions have to wait for the next."""


class PartitionQueue:
    """The batches of one partition."""

    __slots__ = ("batches", "in_flight", "open", "partition", "retry_at", "topic")

    def __init__(self, topic: Topic, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.batches: deque[Batch] = deque()
        """Those that are not under way, in order."""
        self.open: Batch | None = None
        """The last of them, while it takes new records."""
        self.in_flight: Batch | None = None
        self.retry_at = 0.0


class Topic:
    """A topic as the server last described it, with a queue for each partition."""

    __slots__ = (
        "count",
        "max_batch",
        "max_message_bytes",
        "max_record",
        "name",
        "queues",
        "refreshed",
        "sticky",
        "sticky_left",
        "topic_id",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id = 0
        self.count = 0
        self.queues: list[PartitionQueue] = []
        self.max_message_bytes = 0
        self.max_batch = 0
        """The largest row that the log takes, by size."""
        self.max_record = 0
        self.sticky: PartitionQueue | None = None
        self.sticky_left = 0
        self.refreshed = 0.0


class Accumulator(Generic[F]):
    """Takes records, gives batches.

    ``promise`` makes the future of the record at an index of a batch; ``choose(n)`` is a random number below
    n; ``lock`` is handed to each batch for those who wait for it.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        partitioner: Partitioner,
        choose: Callable[[int], int],
        backoff: Backoff,
        promise: Callable[[RowBatch, int], F],
        lock: Any,
    ) -> None:
        self.limits = limits
        self.topics: dict[str, Topic] = {}
        self.used = 0
        """Bytes of all records that are not done."""
        self.attention = False
        """Something changed that the sender has to look at."""
        self.urgent = 0
        """How many callers wait for everything to be sent, whatever linger says."""
        self._partitioner = partitioner
        self._choose = choose
        self._backoff = backoff
        self._promise = promise
        self._lock = lock
        # Queues with something to send, in the order in which they had their turn.
        self._active: dict[PartitionQueue, None] = {}
        self._in_flight: dict[Batch, None] = {}

    # ---- topics

    def update(self, described: Iterable[TopicMetadata], now: float) -> list[Batch]:
        """Take over what the server says of topics; the result are batches that have nowhere to go any
        more.
        """
        orphans: list[Batch] = []
        for metadata in described:
            topic = self.topics.get(metadata.topic)
            if topic is None:
                topic = self.topics[metadata.topic] = Topic(metadata.topic)
            topic.refreshed = now
            topic.topic_id = metadata.topic_id
            topic.max_message_bytes = metadata.max_message_bytes
            largest = min(metadata.max_message_bytes, self.limits.max_request_size)
            topic.max_batch = max(largest, BATCH_OVERHEAD + RECORD_OVERHEAD)
            topic.max_record = min(topic.max_batch, self.limits.buffer_memory) - BATCH_OVERHEAD
            for partition in range(len(topic.queues), metadata.partitions):
                topic.queues.append(PartitionQueue(topic, partition))
            for queue in topic.queues[metadata.partitions :]:  # deleted and made again with fewer
                orphans += self._fail_all(queue, _unknown(topic.name, queue.partition))
            del topic.queues[metadata.partitions :]
            topic.count = metadata.partitions
            if topic.sticky is not None and topic.sticky.partition >= topic.count:
                topic.sticky = None
        return orphans

    def forget(self, name: str) -> list[Batch]:
        """The topic does not exist any more; the result are its batches, failed."""
        topic = self.topics.pop(name, None)
        if topic is None:
            return []
        return [batch for queue in topic.queues for batch in self._fail_all(queue, _unknown(name))]

    def stale(self, before: float) -> list[str]:
        """Topics that were last described before that time."""
        return [name for name, topic in self.topics.items() if topic.refreshed < before]

    # ---- records in

    def add(
        self,
        topic_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int,
    ) -> F | None:
        """The future of a new record; None when the buffer is full or the topic (or partition) not known.

        Raises RecordTooLargeError.
        """
        topic = self.topics.get(topic_name)
        if topic is None:
            return None
        size = RECORD_OVERHEAD if value is None else RECORD_OVERHEAD + len(value)
        if key is not None:
            size += len(key)
        if headers is not None:
            size += headers_size(headers)
        if size > topic.max_record:
            raise self._too_large(topic, size)
        if self.used + size > self.limits.buffer_memory:
            self.attention = True
            return None
        if partition is not None:
            if partition >= topic.count:
                return None
            queue = topic.queues[partition]
        elif key is not None:
            queue = topic.queues[self._partitioner(key, topic.count)]
        else:
            queue = self._stick(topic, size)
        batch = queue.open
        if not isinstance(batch, RowBatch) or batch.size + size > topic.max_batch:
            batch = self._open(queue, RowBatch(queue, self._lock))
        records = batch.records
        position = len(records)
        records.extend((key, value, timestamp_ms, headers))
        self.used += size
        size += batch.size
        batch.size = size
        if size >= batch.mark:
            batch.mark = size + self.limits.batch_size
            self.attention = True
        return self._promise(batch, position >> 2)

    def add_columns(self, queue: PartitionQueue, columns: Columns, size: int) -> tuple[Batch, int] | None:
        """Add records of ``size`` bytes altogether; the batch they are in and where they begin there.

        None when the buffer is full.  ``size`` is at most ``queue.topic.max_record``: see :meth:`cuts`.
        """
        if self.used + size > self.limits.buffer_memory:
            self.attention = True
            return None
        topic = queue.topic
        batch = queue.open
        if not isinstance(batch, BulkBatch) or batch.size + size > topic.max_batch:
            batch = self._open(queue, BulkBatch(queue, self._lock))
        start = len(batch)
        batch.chunks.append(columns)
        self.used += size
        batch.size += size
        self.attention = True
        return batch, start

    def cuts(self, topic: Topic, columns: Columns) -> list[tuple[int, int, int]]:
        """Cut ``columns`` into (start, stop, size) that fit into a batch each.

        Raises RecordTooLargeError when a single record does not fit.
        """
        keys, values, _, headers = columns
        count = len(values)
        total = RECORD_OVERHEAD * count + _bytes_of(keys) + _bytes_of(values)
        if headers is not None:
            total += sum(headers_size(pairs) for pairs in headers if pairs)
        if total <= topic.max_record:
            return [(0, count, total)]
        sizes = [
            RECORD_OVERHEAD + len(key or b"") + len(value or b"")
            for key, value in zip(keys, values, strict=True)
        ]
        if headers is not None:
            sizes = [size + headers_size(pairs or ()) for size, pairs in zip(sizes, headers, strict=True)]
        largest = max(sizes)
        if largest > topic.max_record:
            raise self._too_large(topic, largest)
        pieces: list[tuple[int, int, int]] = []
        ends = list(accumulate(sizes))
        start = taken = 0
        while start < count:
            stop = bisect_right(ends, taken + topic.max_record, start)
            pieces.append((start, stop, ends[stop - 1] - taken))
            start, taken = stop, ends[stop - 1]
        return pieces

    # ---- batches out

    def drain(self, now: float, share: int = 1) -> list[Batch]:
        """The batches of the next request, one of a partition, by ascending topic and partition; now in
        flight.

        Empty when nothing is due.  As soon as anything is due everything goes that may: a commit more
        costs more than a batch more.  ``share``: leave work for that many requests at a time.
        """
        due: list[PartitionQueue] = []
        waiting: list[PartitionQueue] = []
        for queue in list(self._active):
            if queue.in_flight is None and queue.retry_at <= now and self._any(queue):
                (due if self._due_at(queue, now) <= now else waiting).append(queue)
        if not due:
            return []
        due += waiting
        taken: list[Batch] = []
        size = 0
        most = -(-len(due) // share)
        for queue in due:
            batch = queue.batches[0]
            if taken and (size + batch.size > self.limits.request_bytes or len(taken) >= most):
                break
            size += batch.size
            taken.append(self._take(queue))
        taken.sort(key=lambda batch: (batch.queue.topic.topic_id, batch.queue.partition))
        return taken

    def wait_s(self, now: float) -> float | None:
        """Seconds until :meth:`drain` or :meth:`expire` may have something; None: not before something
        changes.
        """
        due = _FOREVER
        timeout = self.limits.delivery_timeout_s
        for queue in list(self._active):
            if queue.in_flight is None and self._any(queue):
                due = min(due, self._due_at(queue, now), self._oldest(queue, now) + timeout)
        return None if due == _FOREVER else max(0.0, due - now)

    def settle(self, batch: Batch, results: Sequence[AppendResult]) -> None:
        """The batch in flight is in the log."""
        batch.settle(results)
        self._leave(batch)

    def fail(self, batch: Batch, error: LogstoreError) -> None:
        """The batch in flight will not be tried again."""
        batch.fail(error)
        self._leave(batch)

    def retry(self, batch: Batch, error: LogstoreError, now: float, *, at_once: bool = False) -> bool:
        """Try the batch in flight again later, before all later ones of its partition.

        False when it has run out of retries or of time: then it has failed.
        """
        batch.last_error = error
        batch.attempts += 1
        queue = batch.queue
        delay = 0.0 if at_once else self._backoff.delay(batch.attempts)
        assert batch.created is not None
        if batch.attempts > self.limits.retries:
            self.fail(batch, error)
            return False
        if now + delay >= batch.created + self.limits.delivery_timeout_s:
            self.fail(batch, _overdue(batch, self.limits.delivery_timeout_s))
            return False
        del self._in_flight[batch]
        queue.in_flight = None
        queue.batches.appendleft(batch)
        queue.retry_at = now + delay
        self._active[queue] = None
        self.attention = True
        return True

    def expire(self, now: float) -> list[Batch]:
        """Fail what has waited too long; the batches that did."""
        oldest = now - self.limits.delivery_timeout_s
        expired: list[Batch] = []
        for queue in list(self._active):
            while queue.in_flight is None and self._any(queue) and self._oldest(queue, now) <= oldest:
                batch = self._take(queue)
                self.fail(batch, _overdue(batch, self.limits.delivery_timeout_s))
                expired.append(batch)
        return expired

    def incomplete(self) -> list[Batch]:
        """Every batch that is not done; none of them takes further records."""
        waiting: list[Batch] = []
        for queue in self._active:
            queue.open = None
            waiting += queue.batches
        return [*self._in_flight, *waiting]

    def abandon(self, error: LogstoreError) -> list[Batch]:
        """Fail everything that is not in flight."""
        return [batch for queue in list(self._active) for batch in self._fail_all(queue, error)]

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._active and not self._in_flight

    @property
    def in_flight(self) -> int:
        """How many batches are under way."""
        return len(self._in_flight)

    # ---- inside

    def _open(self, queue: PartitionQueue, batch: B) -> B:
        batch.mark = self.limits.batch_size
        self._active[queue] = None
        self.used += batch.size
        queue.batches.append(batch)
        queue.open = batch
        if queue.in_flight is None:
            self.attention = True
        return batch

    def _any(self, queue: PartitionQueue) -> bool:
        # An interrupt may have left a batch without records, or a queue without batches.
        while queue.batches and not len(queue.batches[0]):
            empty = queue.batches.popleft()
            self.used -= empty.size
            if queue.open is empty:
                queue.open = None
        if not queue.batches:
            del self._active[queue]
        return bool(queue.batches)

    def _take(self, queue: PartitionQueue) -> Batch:
        batch = queue.batches.popleft()
        if queue.open is batch:
            queue.open = None
        queue.in_flight = batch
        self._in_flight[batch] = None
        # To the back of the line, or out of it.
        del self._active[queue]
        if queue.batches:
            self._active[queue] = None
        return batch

    def _leave(self, batch: Batch) -> None:
        del self._in_flight[batch]
        batch.queue.in_flight = None
        self._free(batch)

    def _free(self, batch: Batch) -> None:
        self.used -= batch.size
        self.attention = True
        if self.idle:
            # An interrupt can come between the two counts of one record.
            self.used = 0

    def _fail_all(self, queue: PartitionQueue, error: LogstoreError) -> list[Batch]:
        failed = list(queue.batches)
        queue.batches.clear()
        queue.open = None
        self._active.pop(queue, None)
        for batch in failed:
            batch.fail(error)
            self._free(batch)
        return failed

    def _due_at(self, queue: PartitionQueue, now: float) -> float:
        oldest = self._oldest(queue, now)
        first = queue.batches[0]
        if self.urgent or first is not queue.open or first.size >= self.limits.batch_size:
            return queue.retry_at
        return max(queue.retry_at, oldest + self.limits.linger_s)

    def _oldest(self, queue: PartitionQueue, now: float) -> float:
        for batch in reversed(queue.batches):
            if batch.created is not None:
                break
            batch.created = now
        created = queue.batches[0].created
        assert created is not None
        return created

    def _stick(self, topic: Topic, size: int) -> PartitionQueue:
        queue = topic.sticky
        if queue is None or topic.sticky_left <= 0:
            others = [other for other in topic.queues if other is not queue] or topic.queues
            queue = topic.sticky = others[self._choose(len(others))]
            topic.sticky_left = max(self.limits.batch_size, 1)
        topic.sticky_left -= size
        return queue

    def _too_large(self, topic: Topic, size: int) -> RecordTooLargeError:
        limits = {
            "max_request_size": self.limits.max_request_size,
            "buffer_memory": self.limits.buffer_memory,
            f"max.message.bytes of topic {topic.name!r}": topic.max_message_bytes,
        }
        name = min(limits, key=limits.__getitem__)
        needed = size + BATCH_OVERHEAD
        return RecordTooLargeError(
            f"A record of {needed} bytes is larger than {name}, which is {limits[name]}.",
            details={"topic": topic.name, "size": needed, "limit": limits[name]},
        )


def _bytes_of(column: list[bytes | None]) -> int:
    if None in column:
        return sum(len(item) for item in column if item is not None)
    return sum(map(len, column))  # type: ignore[arg-type]


def _unknown(topic: str, partition: int | None = None) -> UnknownTopicOrPartitionError:
    if partition is None:
        return UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    return UnknownTopicOrPartitionError(
        f"Topic {topic!r} has no partition {partition}.", details={"topic": topic, "partition": partition}
    )


def _overdue(batch: Batch, timeout_s: float) -> DeliveryTimeoutError:
    cause = "" if batch.last_error is None else f"  The last error: {batch.last_error.message}"
    queue = batch.queue
    return DeliveryTimeoutError(
        f"{len(batch)} records for partition {queue.partition} of topic {queue.topic.name!r} were not "
        f"acknowledged within {timeout_s * 1000:g} ms.{cause}",
        details={"topic": queue.topic.name, "partition": queue.partition, "attempts": batch.attempts},
    )
