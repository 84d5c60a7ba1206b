# Generated from logstore/_async/questions.py by tools/unasync.py; edit that file.
"""What the user's side of a consumer wants to know from the server, and how it waits for that."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from logstore._core.call import Call
from logstore._core.calls import LATEST, Calls, ListedOffset
from logstore._core.pace import Pace
from logstore._core.subscription import Subscription
from logstore._sync.concurrency import Condition, Lock
from logstore._sync.tiered import resolved
from logstore.errors import ClientClosedError, LogstoreError, RequestTimedOutError

__all__ = ["Asking", "Question"]

T = TypeVar("T")

NOWHERE: Final = 2**62
"""A fetch from there brings the ends of the partitions, and nothing else."""
SETTLE_S: Final = 0.5


class Question(Generic[T]):
    """Something that the user's side wants to know from the server."""

    __slots__ = ("answer", "call", "done", "error", "then")

    def __init__(self, call: Call[T], then: Callable[[], object] | None) -> None:
        self.call = call
        self.then = then
        """Called, on the fetcher's side, when there is an answer or an error."""
        self.done = False
        self.answer: T | None = None
        self.error: LogstoreError | None = None


class Asking:
    """The user's side of a fetcher."""

    _calls: Calls
    _lock: Lock
    _subscription: Subscription
    _timeout_s: float
    _questions: deque[Question[Any]]
    _told: bool
    _failure: LogstoreError | None
    changed: Condition
    closing: bool
    online: bool
    replicated: bool
    error: LogstoreError | None

    def disturb(self) -> None:
        raise NotImplementedError

    def ask(self, call: Call[T], timeout_s: float | None = None) -> T:
        """What the server answers to ``call``, which only reads: if need be another connection asks again.

        Raises RequestTimedOutError after ``timeout_s`` seconds, by default ``request_timeout_ms``.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        question = self.post(call)
        with self._lock:
            self._resume()
            try:
                while not question.done:
                    self.check()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self.timed_out(call.name)
                    self.changed.wait(left)
            finally:
                if not question.done and question in self._questions:
                    self._questions.remove(question)
        if question.error is not None:
            raise question.error
        return question.answer  # type: ignore[return-value]

    def list_offsets(
        self, topic_ids: Sequence[int], partitions: Sequence[int], specs: Sequence[int]
    ) -> list[ListedOffset]:
        """What :meth:`Calls.list_offsets` answers, looked up in files where need be."""
        ends = [i for i, spec in enumerate(specs) if spec == LATEST]
        known: dict[int, int] = {}
        if self.replicated and ends:
            safe = self._settle([topic_ids[i] for i in ends], [partitions[i] for i in ends])
            known = {i + 1: end for i, end in zip(ends, safe, strict=True)}
        rows = self.ask(self._calls.list_offsets(topic_ids, partitions, specs))
        # A leader that writes knows less the next moment than it did: what was safe still is.
        rows = [
            row._replace(offset=max(row.offset or 0, known[row.idx])) if row.idx in known else row
            for row in rows
        ]
        return [
            resolved(self.ask, self._calls.schema, topic_ids[row.idx - 1], partitions[row.idx - 1], row)
            for row in rows
        ]

    def _settle(self, topic_ids: Sequence[int], partitions: Sequence[int]) -> list[int]:
        """Wait until all that is committed now may be read, if it is soon: a producer's acknowledgement comes
        a moment before.  Returns up to where each partition could be read.
        """
        call = self._calls.fetch(topic_ids, partitions, [NOWHERE] * len(partitions), 1, 1)
        until = time.monotonic() + SETTLE_S
        pace = Pace(woken=False)
        wanted: list[int] | None = None
        while True:
            rows = self.ask(call)
            if wanted is None:
                wanted = [row.log_end or 0 for row in rows]
            reached = all((row.high_watermark or 0) >= end for row, end in zip(rows, wanted, strict=True))
            if reached or time.monotonic() > until:
                return [row.high_watermark or 0 for row in rows]
            self.ask(self._calls.seal())
            with self._lock:
                self.changed.wait(pace.hasten().seconds)

    def post(self, call: Call[T], then: Callable[[], object] | None = None) -> Question[T]:
        """Ask without waiting: the answer will be in what this returns, once it is ``done``.

        ``then`` is called at that time, on the fetcher's side.
        """
        question = Question(call, then)
        with self._lock:
            self._questions.append(question)
            self.disturb()
        return question

    def timed_out(self, what: str) -> LogstoreError:
        """Why there is no answer to ``what`` in time."""
        if not self.online and self._failure is not None:
            return self._failure
        return RequestTimedOutError(f"The server did not answer {what!r} in time.")

    def check(self) -> None:
        """Raises when the consumer is closed or cannot go on.  The lock must be held."""
        if self.closing:
            raise ClientClosedError("The consumer is closed.")
        if self.error is not None:
            self._told = True
            raise self.error

    def try_again(self) -> None:
        """The user is back after an error: what it stopped is tried once more.  The lock must be held."""
        self._resume()
        if self._subscription.try_again():
            self.disturb()

    def _resume(self) -> None:
        if self._told:
            self._told, self.error = False, None
            self.disturb()
