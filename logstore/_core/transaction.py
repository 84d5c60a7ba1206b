"""A producer's transactions: what may be done when, what waits for the commit, and what the commit writes.

Pure, as everything here: times are seconds of a monotonic clock, and whoever owns it holds one lock.

::

    OUTSIDE ──init──> READY ──begin──> OPEN ──commit──> COMMITTING ──written──> READY
                        ^                │                 │ │
                        ├─────abort──────┘                 │ └─ nobody knows ──> IN_DOUBT ──commit──> …
                        └──abort── FAILED <── not written ─┘
    and from everywhere, when another producer has taken the transactional id: FENCED
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, TypeVar

from logstore._core.accumulator import Accumulator, Place
from logstore._core.batch import Batch
from logstore._core.calls import AppendBatch, AppendResult
from logstore._core.queues import PartitionQueue
from logstore._core.transaction_calls import ProducerIdentity
from logstore.errors import (
    BufferExhaustedError,
    IllegalStateError,
    LogstoreError,
    ProducerFencedError,
    TransactionTimedOutError,
)

__all__ = ["HeldRecords", "Phase", "Sequences", "TransactionState", "requests"]

B = TypeVar("B", bound=Batch)
F = TypeVar("F", bound=Place)

MOST_ROWS: Final = 64
"""Batches in one statement: each number of them is a text of its own."""


class Phase(Enum):
    OUTSIDE = "outside"
    """The transactional id has not been taken yet."""
    READY = "ready"
    OPEN = "open"
    COMMITTING = "committing"
    IN_DOUBT = "in doubt"
    """The connection was lost during the commit, and nobody could say yet what came of it."""
    FAILED = "failed"
    """The commit was refused; nothing was written."""
    FENCED = "fenced"


class TransactionState:
    """What a producer with a ``transactional_id`` may do now."""

    def __init__(self, transactional_id: str, timeout_s: float) -> None:
        self.transactional_id = transactional_id
        self.timeout_s = timeout_s
        self.phase = Phase.OUTSIDE
        self._deadline = 0.0

    def initialised(self) -> None:
        """The transactional id is this producer's."""
        self.phase = Phase.READY

    def check_init(self) -> None:
        """Raises when the producer cannot take its transactional id now."""
        self._check_fenced()
        if self.phase is not Phase.OUTSIDE:
            raise IllegalStateError(
                "init_transactions() was called before.", advice="Once in the life of a producer is enough."
            )

    def begin(self, now: float) -> None:
        """A transaction begins."""
        self._check_fenced()
        match self.phase:
            case Phase.OUTSIDE:
                raise IllegalStateError(
                    "The producer has not taken its transactional id.",
                    advice="Call init_transactions() first.",
                )
            case Phase.OPEN | Phase.COMMITTING:
                raise IllegalStateError(
                    "A transaction is open already, and transactions do not nest.",
                    advice="Commit or abort it first; a second one at the same time needs another producer, "
                    "with a transactional_id of its own.",
                )
            case Phase.IN_DOUBT:
                raise _in_doubt()
            case Phase.FAILED:
                raise _failed()
        self.phase = Phase.OPEN
        self._deadline = now + self.timeout_s

    def check_open(self, now: float, what: str) -> None:
        """Raises unless a transaction is open and has not timed out."""
        self._check_fenced()
        if self.phase is Phase.FAILED:
            raise _failed()
        if self.phase is not Phase.OPEN:
            raise IllegalStateError(
                f"There is no open transaction: {what} belongs into one.",
                advice="Use `with producer.transaction():`, or begin_transaction() first; a producer without "
                "transactional_id sends outside of transactions.",
            )
        if now >= self._deadline:
            raise TransactionTimedOutError(
                f"The transaction was open for more than transaction_timeout_ms, {self.timeout_s * 1000:g}; "
                "nothing of it was written.",
                details={"transaction_timeout_ms": round(self.timeout_s * 1000)},
            )

    def commit(self, now: float) -> bool:
        """The commit begins; whether it is that of a transaction in doubt, tried again."""
        again = self.phase is Phase.IN_DOUBT
        if not again:
            self.check_open(now, "commit_transaction()")
        self.phase = Phase.COMMITTING
        return again

    def committed(self) -> None:
        """Everything of the transaction is in the log."""
        self.phase = Phase.READY

    def aborted(self) -> None:
        """Nothing of the transaction is in the log, nor will be."""
        if self.phase is not Phase.FENCED:
            self.phase = Phase.READY

    def check_abort(self) -> None:
        """Raises unless there is something to abort."""
        self._check_fenced()
        if self.phase is Phase.IN_DOUBT:
            raise _in_doubt()
        if self.phase not in (Phase.OPEN, Phase.FAILED):
            raise IllegalStateError("There is no open transaction.", advice="begin_transaction() begins one.")

    def failed(self) -> None:
        """The commit was refused; nothing is in the log."""
        if self.phase is not Phase.FENCED:
            self.phase = Phase.FAILED

    def doubted(self) -> None:
        """Nobody knows whether the transaction is in the log."""
        self.phase = Phase.IN_DOUBT

    def fenced(self) -> None:
        """Another producer has the transactional id."""
        self.phase = Phase.FENCED

    def _check_fenced(self) -> None:
        if self.phase is Phase.FENCED:
            raise ProducerFencedError(
                f"Another producer holds the transactional id {self.transactional_id!r} now.",
                details={"transactional_id": self.transactional_id},
            )


class HeldRecords(Accumulator[F]):
    """An accumulator whose records wait for a commit: no lane is given any of them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.held: list[Batch] = []
        """What :meth:`take_all` took."""
        self.addressable = {}

    def open(self) -> None:
        """Take records."""
        self.addressable = self.topics

    def take_all(self) -> list[Batch]:
        """All batches there are, by ascending topic and partition, each partition's in order; no further
        records are taken.
        """
        self.addressable = {}
        self.held = []
        for queue in list(self._active):
            for batch in queue.batches:
                batch.seal()
            self.held += [batch for batch in queue.batches if len(batch)]
            self._empty(queue)
        for batch in self.held:
            batch.held = False
        self.held.sort(key=lambda batch: (batch.queue.topic.topic_id, batch.queue.partition))
        return self.held

    def written(self, results: Mapping[Batch, Sequence[AppendResult]]) -> list[Batch]:
        """What was taken is in the log; the batches."""
        done, self.held = self.held, []
        for batch in done:
            batch.settle(results[batch])
        self.used = 0
        return done

    def give_up(self, error: LogstoreError) -> list[Batch]:
        """Nothing of what was taken, or waits, gets into the log; the batches."""
        self.take_all_again()
        failed, self.held = self.held, []
        for batch in failed:
            batch.fail(error)
        self.used = 0
        return failed

    def take_all_again(self) -> None:
        """As :meth:`take_all`, with what was taken before."""
        held = self.held
        self.take_all()
        self.held = held + self.held

    def no_room(self) -> LogstoreError:
        """The buffer is full, and nothing but the end of the transaction empties it."""
        return BufferExhaustedError(
            "The records of the transaction do not fit into buffer_memory, "
            f"{self.limits.buffer_memory} bytes.",
            advice="All of them wait in the producer until the commit: raise buffer_memory, or commit more "
            "often.",
        )

    # ---- what lanes see: nothing

    def drain(self, now: float, share: int = 1) -> list[Batch]:
        return []

    def due(self, now: float) -> bool:
        return False

    def wait_s(self, now: float) -> float | None:
        return None

    def upcoming(self, sent: Iterable[Batch]) -> list[Batch]:
        return []

    def expire(self, now: float) -> list[Batch]:
        return []

    def incomplete(self) -> list[Batch]:
        return []

    def abandon(self, error: LogstoreError) -> list[Batch]:
        return self.give_up(error)

    @property
    def idle(self) -> bool:
        return True

    def _fail_all(self, queue: PartitionQueue, error: LogstoreError) -> list[Batch]:
        # The topic is gone, or smaller.  A transaction does not lose a part of itself: its commit will fail.
        return []

    def _open(self, queue: PartitionQueue, batch: B) -> B:
        batch.held = True
        return super()._open(queue, batch)

    def _empty(self, queue: PartitionQueue) -> None:
        queue.batches.clear()
        queue.open = None
        self._active.pop(queue, None)


class Sequences:
    """The sequences of a producer's batches, partition by partition.

    They are given for one attempt to commit; only when it succeeds do the next ones begin after them.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, int], int] = {}

    def number(self, rows: Iterable[AppendBatch], identity: ProducerIdentity) -> list[AppendBatch]:
        """The rows, numbered on from what was kept."""
        following = dict(self._next)
        numbered: list[AppendBatch] = []
        for row in rows:
            key = (row.topic_id, row.partition)
            sequence = following.get(key, 0)
            numbered.append(
                row._replace(
                    producer_id=identity.producer_id,
                    producer_epoch=identity.epoch,
                    base_sequence=sequence,
                )
            )
            following[key] = (sequence + row.record_count) & 0x7FFFFFFF
        return numbered

    def keep(self, rows: Iterable[AppendBatch]) -> None:
        """These rows, numbered by :meth:`number`, are in the log."""
        for row in rows:
            assert row.base_sequence is not None
            self._next[row.topic_id, row.partition] = (row.base_sequence + row.record_count) & 0x7FFFFFFF


def requests(rows: Sequence[tuple[AppendBatch, int]], request_bytes: int) -> list[list[AppendBatch]]:
    """Rows with their sizes in bytes, as the statements that carry them."""
    listed: list[list[AppendBatch]] = []
    size = 0
    for row, weight in rows:
        if not listed or size + weight > request_bytes or len(listed[-1]) >= MOST_ROWS:
            listed.append([])
            size = 0
        listed[-1].append(row)
        size += weight
    return listed


def _in_doubt() -> IllegalStateError:
    return IllegalStateError(
        "It is not known yet whether the last transaction was committed.",
        advice="Call commit_transaction() again: it finds out, and writes nothing twice.",
    )


def _failed() -> IllegalStateError:
    return IllegalStateError(
        "The transaction could not be committed, and nothing of it was written.",
        advice="Call abort_transaction(), then begin again.",
    )
