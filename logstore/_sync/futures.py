# Generated from logstore/_async/futures.py by tools/unasync.py; edit that file.
"""What ``send`` and ``send_many`` promise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Generic, Self, TypeVar

from logstore._core.batch import Batch, BulkBatch
from logstore._core.row_batch import RowBatch
from logstore._sync.concurrency import Event, Promise
from logstore.errors import IllegalStateError, LogstoreError, RequestTimedOutError
from logstore.records import BatchMetadata, RecordMetadata

__all__ = ["BulkFuture", "SendFuture", "StagedFuture"]

T = TypeVar("T")

_log = logging.getLogger("logstore.producer")


def settled(batch: Batch, timeout_s: float | None) -> None:
    """Wait until ``batch`` is done.  Raises RequestTimedOutError after ``timeout_s`` seconds."""
    with batch.lock:
        if batch.done:
            return
        if batch.held:
            raise IllegalStateError(
                "The record's transaction is still open: nothing is sent before its commit.",
                advice="Commit first, then ask; or use add_callback().",
            )
        if batch.event is None:
            batch.event = Event()
        event: Event = batch.event
    if not event.wait(timeout_s):
        raise RequestTimedOutError(
            f"The record was not acknowledged within {timeout_s:g} s.",
            advice="It may still be: the future stays valid.",
        )


class _Future(Promise[T], Generic[T]):
    __slots__ = ()

    def done(self) -> bool:
        """Acknowledged or failed."""
        raise NotImplementedError

    def outcome(self) -> T | LogstoreError:
        """What has become of it, once it is done."""
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> T:
        """The same as :meth:`get`."""
        return self.get(timeout)

    def succeeded(self) -> bool:
        """Done without an error."""
        return self.done() and not isinstance(self.outcome(), LogstoreError)

    def failed(self) -> bool:
        """Done with an error."""
        return self.done() and isinstance(self.outcome(), LogstoreError)

    def add_callback(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Self:
        """Call ``function(*args, metadata, **kwargs)`` when the record is acknowledged; at once if it is.

        It runs in the background, between requests: keep it short.  What it raises is logged.
        """
        self._when_done(lambda outcome: function(*args, outcome, **kwargs), failure=False)
        return self

    def add_errback(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Self:
        """Call ``function(*args, error, **kwargs)`` when the record fails; at once if it has.

        It runs in the background, between requests: keep it short.  What it raises is logged.
        """
        self._when_done(lambda outcome: function(*args, outcome, **kwargs), failure=True)
        return self

    def _when_done(self, function: Callable[[Any], object], *, failure: bool) -> None:
        raise NotImplementedError

    def _tell(self, function: Callable[[Any], object], failure: bool) -> None:
        outcome = self.outcome()
        if isinstance(outcome, LogstoreError) is failure:
            try:
                function(outcome)
            except Exception:
                _log.exception("A producer's callback raised.")


class SendFuture(_Future[RecordMetadata]):
    """The future of one record.

    ``get(timeout)`` or ``result(timeout)`` waits, in an async producer as does ``future``.  It holds
    a place in a batch and nothing else: what it answers is made when somebody asks.
    """

    __slots__ = ("batch", "place")

    batch: RowBatch
    place: int

    def done(self) -> bool:
        return self.batch.done

    def outcome(self) -> RecordMetadata | LogstoreError:
        batch = self.batch
        return batch.metadata(self.place) if batch.error is None else batch.error

    def get(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record is, as soon as it is acknowledged at the level of ``acks``.

        ``timeout`` is in seconds; None waits as long as delivery may take (``delivery_timeout_ms``).  Raises
        RequestTimedOutError when it is over, and whatever kept the record from being delivered.
        """
        batch = self.batch
        if not batch.done:
            settled(batch, timeout)
        if batch.error is not None:
            raise batch.error
        return batch.metadata(self.place)

    def _when_done(self, function: Callable[[Any], object], *, failure: bool) -> None:
        def call() -> None:
            self._tell(function, failure)

        batch = self.batch
        with batch.lock:
            waiting = not batch.done
            if waiting:
                if batch.callbacks is None:
                    batch.callbacks = []
                batch.callbacks.append(call)
        if not waiting:
            call()


class StagedFuture(SendFuture):
    """What ``send(…, connection=…)`` answers: the record is staged in the caller's transaction.

    It is done from the start.  Its metadata has the partition but no offset (-1): offsets are given out
    when the transaction has committed, and if it does not commit there will be none.
    """

    __slots__ = ("_metadata",)

    def __init__(self, metadata: RecordMetadata) -> None:
        self._metadata = metadata

    def done(self) -> bool:
        return True

    def outcome(self) -> RecordMetadata | LogstoreError:
        return self._metadata

    def get(self, timeout: float | None = None) -> RecordMetadata:
        """Topic, partition, time stamp and sizes; the offset is -1."""
        return self._metadata

    def _when_done(self, function: Callable[[Any], object], *, failure: bool) -> None:
        self._tell(function, failure)


class BulkFuture(_Future[list[BatchMetadata]]):
    """The future of all records of one ``send_many``.

    ``get(timeout)`` or ``result(timeout)`` waits, in an async producer as does ``future``.
    """

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Sequence[tuple[BulkBatch, int, int]]) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return sum(count for _, _, count in self._pieces)

    def done(self) -> bool:
        return all(batch.done for batch, _, _ in self._pieces)

    def outcome(self) -> list[BatchMetadata] | LogstoreError:
        failed = next((batch.error for batch, _, _ in self._pieces if batch.error is not None), None)
        return failed or [batch.run(start, count) for batch, start, count in self._pieces]

    def get(self, timeout: float | None = None) -> list[BatchMetadata]:
        """Where the records are, as runs of contiguous offsets, as soon as all are acknowledged.

        Runs of one partition come in the order of its records.  ``timeout`` is in seconds; None waits as
        long as delivery may take.  Raises RequestTimedOutError when it is over.  When some of the records
        could not be delivered it raises their (first) error, after all of them are done; :meth:`runs` tells
        which.
        """
        until = None if timeout is None else monotonic() + timeout
        for batch, _, _ in self._pieces:
            if not batch.done:
                settled(batch, None if until is None else max(0.0, until - monotonic()))
        outcome = self.outcome()
        if isinstance(outcome, LogstoreError):
            raise outcome
        return outcome

    def runs(self) -> list[BatchMetadata | LogstoreError]:
        """Once done: where each run of records is, or why it is not there."""
        return [
            batch.run(start, count) if batch.error is None else batch.error
            for batch, start, count in self._pieces
        ]

    def _when_done(self, function: Callable[[Any], object], *, failure: bool) -> None:
        def call() -> None:
            self._tell(function, failure)

        left = 0

        def one_less() -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                call()

        if not self._pieces:
            call()
            return
        lock = self._pieces[0][0].lock
        with lock:
            waiting = {batch for batch, _, _ in self._pieces if not batch.done}
            left = len(waiting)
            for batch in waiting:
                if batch.callbacks is None:
                    batch.callbacks = []
                batch.callbacks.append(one_less)
        if not waiting:
            call()
