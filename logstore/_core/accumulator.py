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

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final, Generic, Protocol, TypeVar

from logstore._core.backoff import Backoff
from logstore._core.batch import (
    BATCH_OVERHEAD,
    RECORD_OVERHEAD,
    Batch,
    BulkBatch,
    Headers,
    headers_size,
)
from logstore._core.bulk import Piece
from logstore._core.calls import AppendResult, TopicMetadata
from logstore._core.partitioner import Partitioner, hash_of
from logstore._core.queues import Limits, PartitionQueue, Topic, too_large
from logstore._core.row_batch import RowBatch
from logstore._core.sequences import Numbering
from logstore.errors import (
    DeliveryTimeoutError,
    LogstoreError,
    OutOfOrderSequenceError,
    ProducerFencedError,
    UnknownOutcomeError,
    UnknownTopicOrPartitionError,
)

__all__ = ["Accumulator"]

F = TypeVar("F", bound="Place")
B = TypeVar("B", bound=Batch)

GRANT: Final = 8192
"""Bytes of the buffer that a batch is given at a time, if there are enough."""

_FOREVER: Final = float("inf")


class Place(Protocol):
    """What a future is to the accumulator: the place of a record in a batch.

    It has no ``__init__``: setting two attributes costs a third of calling one that does.
    """

    batch: RowBatch
    place: int


class Accumulator(Generic[F]):
    """Takes records, gives batches.

    ``promise`` is the class of the futures; ``choose(n)`` is a random number below
    n; ``lock`` is handed to each batch for those who wait for it.  With ``new_producer_id`` batches are
    numbered, so that sending one again does no harm.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        partitioner: Partitioner,
        choose: Callable[[int], int],
        backoff: Backoff,
        promise: Callable[[], F],
        lock: Any,
        new_producer_id: Callable[[], int] | None = None,
    ) -> None:
        self.limits = limits
        self.topics: dict[str, Topic] = {}
        self.addressable = self.topics
        """The same, until the accumulator is closed."""
        self.used = 0
        """Bytes of all records that are not done."""
        self.attention = False
        """Something changed that the sender has to look at."""
        self.urgent = 0
        """How many callers wait for everything to be sent, whatever linger says."""
        self.hindrance = ""
        """What keeps everything from being sent, for the errors of what does not get sent in time."""
        self._partitioner = partitioner
        self.hashed = hash_of(partitioner)
        """The number that decides, modulo the partitions; None: a partitioner of the program's own."""
        self._choose = choose
        self._backoff = backoff
        self._promise = promise
        self._lock = lock
        # Queues with something to send, in the order in which they had their turn.
        self._active: dict[PartitionQueue, None] = {}
        self._in_flight: dict[Batch, None] = {}
        self._new_producer_id = new_producer_id
        self._producer_id = -1 if new_producer_id is None else new_producer_id()
        self._first_epoch = 0

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
            for queue in topic.describe(metadata, self.limits, now):  # deleted, and made again with fewer
                self._retire(queue)
                orphans += self._fail_all(queue, _unknown(topic.name, queue.partition))
        return orphans

    def forget(self, name: str) -> list[Batch]:
        """The topic does not exist any more; the result are its batches, failed."""
        topic = self.topics.pop(name, None)
        if topic is None:
            return []
        for queue in topic.queues:
            self._retire(queue)
        return [batch for queue in topic.queues for batch in self._fail_all(queue, _unknown(name))]

    def known(self, name: str, partition: int | None) -> Topic | None:
        """The topic, if it is known and has that partition."""
        topic = self.topics.get(name)
        return topic if topic is not None and (partition is None or partition < topic.count) else None

    def stale(self, before: float) -> list[str]:
        """Topics that were last described before that time."""
        return [name for name, topic in self.topics.items() if topic.refreshed < before]

    def postpone(self, names: Iterable[str], now: float) -> None:
        """What is known of these topics has to do for another while."""
        for name in names:
            if topic := self.topics.get(name):
                topic.refreshed = now

    # ---- records in

    def add(
        self,
        topic_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int | None,
        time_s: float,
    ) -> F | None:
        """The future of a new record; None when the buffer is full or the topic (or partition) not known.

        Without ``timestamp_ms`` the record's time is ``time_s``, seconds since the epoch.  What is decided
        here is only whether :meth:`room_for` has to decide.  A producer's ``send`` spells this out for its
        most common case.

        Raises RecordTooLargeError.
        """
        topic = self.addressable.get(topic_name)
        if topic is None:
            return None
        size = RECORD_OVERHEAD if value is None else RECORD_OVERHEAD + len(value)
        if key is not None:
            size += len(key)
        if headers is not None:
            size += headers_size(headers)
        if partition is not None:
            if partition >= topic.count:
                return None
            queue = topic.queues[partition]
        elif key is not None:
            if (hashed := self.hashed) is not None:
                queue = topic.queues[hashed(key) % topic.count]
            else:
                queue = topic.queues[self._partitioner(key, topic.count)]
        else:
            queue = self._stick(topic, size)
        batch = queue.open
        if type(batch) is not RowBatch or batch.room < size:
            batch = self.room_for(queue, size)
            if batch is None:
                return None
        batch.room -= size
        future = self._promise()
        future.batch = batch
        future.place = batch.add(key, value, headers, timestamp_ms, time_s)
        return future

    def room_for(self, queue: PartitionQueue, size: int) -> RowBatch | None:
        """A batch with room for a record of ``size`` bytes; None when the buffer is full.

        Room is set aside for many records at once, so that most of them need not be asked for.
        """
        topic = queue.topic
        if size > topic.max_record:
            raise too_large(topic, size, self.limits)
        batch = queue.open
        room, taken, mark, left = (
            0,
            BATCH_OVERHEAD,
            self.limits.batch_size,
            self.limits.buffer_memory - self.used,
        )
        if isinstance(batch, RowBatch) and batch.size + size <= topic.max_batch:
            room, taken, mark = batch.room, batch.size, batch.mark
        else:
            batch = None
            left -= BATCH_OVERHEAD
        needed = size - room
        if needed > left:
            self.attention = True
            return None
        taken += size
        if taken >= mark:
            self.attention = True
            mark = taken + max(self.limits.batch_size, 1)
        # As much as comes before the next decision: the mark, or a batch that is full.
        spare = min(max(GRANT, taken // 8), mark - 1 - taken, topic.max_batch - taken, (left - needed) // 4)
        if batch is None:
            batch = self._open(queue, RowBatch(queue, self._lock))
        batch.mark = mark
        self.used += needed + spare
        batch.reserved += needed + spare
        batch.room += needed + spare
        batch.make_slots(len(batch))
        return batch

    def add_pieces(self, topic: Topic, pieces: Sequence[Piece]) -> list[tuple[BulkBatch, int, int]] | None:
        """Add all of ``pieces``; for each the batch it is in, where it begins there and how long it is.

        None, and nothing is added, when the buffer has no room for all of them, or the topic has changed.
        """
        needed = sum(piece.size + BATCH_OVERHEAD for piece in pieces)
        # An empty buffer takes them in any case, or they would wait for ever.
        if self.used and self.used + needed > self.limits.buffer_memory:
            self.attention = True
            return None
        if self.addressable.get(topic.name) is not topic:
            return None
        if any(piece.partition is not None and piece.partition >= topic.count for piece in pieces):
            return None
        return [self._add_piece(topic, piece) for piece in pieces]

    def _add_piece(self, topic: Topic, piece: Piece) -> tuple[BulkBatch, int, int]:
        size = piece.size
        queue = self._stick(topic, size) if piece.partition is None else topic.queues[piece.partition]
        batch = queue.open
        if not isinstance(batch, BulkBatch) or batch.size + size > topic.max_batch:
            batch = self._open(queue, BulkBatch(queue, self._lock))
        start = len(batch)
        self.used += size
        batch.reserved += size
        batch.chunks.append(piece.columns)
        self.attention = True
        return batch, start, len(piece.columns.values)

    def close(self) -> None:
        """Take no further records."""
        self.addressable = {}

    # ---- batches out

    def drain(self, now: float, share: int = 1) -> list[Batch]:
        """The batches of the next request, one of a partition, by ascending topic and partition; now in
        flight.

        Empty when nothing is due.  As soon as anything is due everything goes that may: a commit more
        costs more than a batch more.  Only when there is so much that ``share`` requests would be full does
        this one take no more than its share, and leaves the others to other connections.
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
        full = sum(queue.batches[0].size >= self.limits.batch_size for queue in due) >= share
        most = min(-(-len(due) // share) if full else len(due), self.limits.request_batches)
        for queue in due:
            batch = queue.batches[0]
            if taken and (size + batch.size > self.limits.request_bytes or len(taken) >= most):
                break
            self._take(queue)
            if not len(batch):
                self._leave(batch)
                batch.vanish()
                continue
            size += batch.size
            taken.append(batch)
            if batch.number is None and self._new_producer_id is not None:
                batch.number = self._numbering(queue).take(len(batch))
        taken.sort(key=lambda batch: (batch.queue.topic.topic_id, batch.queue.partition))
        return taken

    def due(self, now: float) -> bool:
        """There is a batch that does not have to wait any longer."""
        return any(
            queue.in_flight is None
            and queue.retry_at <= now
            and self._any(queue)
            and self._due_at(queue, now) <= now
            for queue in list(self._active)
        )

    def wait_s(self, now: float) -> float | None:
        """Seconds until :meth:`drain` or :meth:`expire` may have something; None: not before something
        changes.
        """
        due = _FOREVER
        timeout = self.limits.delivery_timeout_s
        for queue in list(self._active):
            if self._any(queue):
                oldest = self._oldest(queue, now)
                if queue.in_flight is None:
                    due = min(due, self._due_at(queue, now), oldest + timeout)
        return None if due == _FOREVER else max(0.0, due - now)

    def due_by(self, batches: Iterable[Batch]) -> float:
        """When the first of ``batches``, and of those that nobody else has under way, has to be done."""
        free = (queue for queue in list(self._active) if queue.batches and queue.in_flight is None)
        heads = (queue.batches[0] for queue in free)
        created = (batch.created for batch in chain(batches, heads) if batch.created is not None)
        return min(created, default=_FOREVER) + self.limits.delivery_timeout_s

    def upcoming(self, sent: Iterable[Batch]) -> list[Batch]:
        """What goes next after ``sent``, which are under way, as far as it takes no further records.

        Nobody else sends it, or releases it, as long as they are.
        """
        following = (queue.batches[0] for batch in sent if (queue := batch.queue).batches)
        closed = [batch for batch in following if batch is not batch.queue.open]
        for batch in closed:
            batch.seal()
        return [batch for batch in closed if len(batch)]

    def settle(self, batch: Batch, results: Sequence[AppendResult]) -> None:
        """The batch in flight is in the log.  Nothing happens when it was abandoned meanwhile."""
        if batch in self._in_flight:
            batch.settle(results)
            self._leave(batch)

    def fail(self, batch: Batch, error: LogstoreError) -> None:
        """The batch in flight will not be tried again.  Nothing happens when it was abandoned meanwhile."""
        if batch in self._in_flight:
            batch.fail(self._given_up(batch, error))
            self._leave(batch)

    def retry(
        self,
        batch: Batch,
        error: LogstoreError,
        now: float,
        *,
        at_once: bool = False,
        counted: bool = True,
    ) -> bool:
        """Try the batch in flight again later, before all later ones of its partition.

        ``counted``: this was one of its attempts; otherwise it only has to wait.

        False when it has run out of retries or of time, or may be in the log and has no number by which it
        would be found there: then it has failed.
        """
        if batch not in self._in_flight:
            return False
        if isinstance(error, UnknownOutcomeError):
            batch.doubtful = True
            if batch.number is None:
                self.fail(batch, error)
                return False
        batch.last_error = error
        if counted:
            batch.attempts += 1
        queue = batch.queue
        delay = 0.0 if at_once else self._backoff.delay(batch.attempts)
        assert batch.created is not None
        if batch.attempts > self.limits.retries:
            self.fail(batch, error)
            return False
        if now + delay >= batch.created + self.limits.delivery_timeout_s:
            self.fail(batch, _overdue(batch, self.limits.delivery_timeout_s, self.hindrance))
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
                self.fail(batch, _overdue(batch, self.limits.delivery_timeout_s, self.hindrance))
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
        """Fail everything that is not done; the batches that were not."""
        failed = list(self._in_flight)
        for batch in failed:
            self.fail(batch, error)
        return [*failed, *(batch for queue in list(self._active) for batch in self._fail_all(queue, error))]

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
        self._active[queue] = None
        self.used += batch.reserved
        queue.batches.append(batch)
        queue.open = batch
        if queue.in_flight is None:
            self.attention = True
        return batch

    def _any(self, queue: PartitionQueue) -> bool:
        # An interrupt may have left a batch without records, or a queue without batches.
        while queue.batches and not len(empty := queue.batches[0]):
            if queue.open is empty:
                queue.open = None
            empty.seal()
            if len(empty):  # somebody was quicker
                break
            queue.batches.popleft()
            self.used -= empty.reserved
            empty.vanish()
        if not queue.batches:
            self._active.pop(queue, None)
        return bool(queue.batches)

    def _take(self, queue: PartitionQueue) -> Batch:
        batch = queue.batches.popleft()
        if queue.open is batch:
            queue.open = None
        batch.seal()
        self.used -= batch.room
        batch.reserved -= batch.room
        batch.room = 0
        queue.in_flight = batch
        self._in_flight[batch] = None
        # To the back of the line, or out of it.
        del self._active[queue]
        if queue.batches:
            self._active[queue] = None
        return batch

    def _numbering(self, queue: PartitionQueue) -> Numbering:
        if queue.numbering is None:
            assert self._new_producer_id is not None
            queue.numbering = Numbering(self._new_producer_id, self._producer_id, self._first_epoch)
        return queue.numbering

    def _retire(self, queue: PartitionQueue) -> None:
        # Perhaps it was not deleted, and only not to be seen for a while: should there be another queue for
        # this partition it must not repeat any number.
        if queue.numbering is not None:
            queue.numbering.begin_epoch()
            producer_id, epoch, _ = queue.numbering.following
            if producer_id == self._producer_id:
                self._first_epoch = max(self._first_epoch, epoch)
            elif self._new_producer_id is not None:
                self._producer_id, self._first_epoch = self._new_producer_id(), 0

    def _given_up(self, batch: Batch, error: LogstoreError) -> LogstoreError:
        """What becomes of the batch's number; the error as it has to be told."""
        queue = batch.queue
        if batch.number is not None and queue.numbering is not None:
            # A partition's batches go one at a time: none behind this one has a number yet.
            if batch.doubtful or isinstance(error, OutOfOrderSequenceError | ProducerFencedError):
                queue.numbering.begin_epoch()
            else:
                queue.numbering.give_back(batch.number)
        if not batch.doubtful or isinstance(error, UnknownOutcomeError | UnknownTopicOrPartitionError):
            return error
        if isinstance(error, OutOfOrderSequenceError) and batch.number is not None:
            # Not even what comes before it is in the log, so there is no doubt any more.
            expected = error.details.get("expected_sequence", batch.number.base_sequence)
            if batch.number.is_beyond(expected):
                return error
        return UnknownOutcomeError(
            f"It is not known whether {len(batch)} records for partition {queue.partition} of topic "
            f"{queue.topic.name!r} are in the log.  {error.message}",
            advice="The partition's later records follow in any case. Read the log to see.",
            details=error.details,
        )

    def _leave(self, batch: Batch) -> None:
        del self._in_flight[batch]
        batch.queue.in_flight = None
        self._free(batch)

    def _free(self, batch: Batch) -> None:
        self.used -= batch.reserved
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


def _unknown(topic: str, partition: int | None = None) -> UnknownTopicOrPartitionError:
    if partition is None:
        return UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    return UnknownTopicOrPartitionError(
        f"Topic {topic!r} has no partition {partition}.", details={"topic": topic, "partition": partition}
    )


def _overdue(batch: Batch, timeout_s: float, hindrance: str) -> DeliveryTimeoutError:
    cause = hindrance and f"  {hindrance}"
    if batch.last_error is not None:
        cause = f"  The last error: {batch.last_error.message}"
    queue = batch.queue
    return DeliveryTimeoutError(
        f"{len(batch)} records for partition {queue.partition} of topic {queue.topic.name!r} were not "
        f"acknowledged within {timeout_s * 1000:g} ms.{cause}",
        details={"topic": queue.topic.name, "partition": queue.partition, "attempts": batch.attempts},
    )
