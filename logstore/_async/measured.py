"""The methods of a consumer that say what it has done, and how far it may read."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from logstore._async.concurrency import Lock
from logstore._async.fetcher import Fetcher
from logstore._core.call import Call
from logstore._core.calls import Calls, Watermarks
from logstore._core.pace import Pace
from logstore._core.subscription import Subscription
from logstore._core.timeouts import milliseconds
from logstore._core.topic_name import check_partition
from logstore.consumer_config import ConsumerConfig
from logstore.errors import InvalidArgumentError, RequestTimedOutError
from logstore.records import TopicPartition

__all__ = ["Measured"]

SEAL_S: Final = 0.5
"""How long the end of the log waits for what is committed to become readable."""


class Measured:
    _calls: Calls
    _config: ConsumerConfig
    _fetcher: Fetcher
    _lock: Lock
    _subscription: Subscription
    _check: Callable[[], None]

    async def _ready(self) -> None:
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Counters since the start, by Kafka's names where Kafka has them; times in milliseconds.

        With ``read_from``: ``reading-from-follower`` (1, or 0 while the leader is read from),
        ``replica-lag-ms`` (for how long, at least, the follower has lacked something that the leader has),
        ``replica-fetch-total`` and ``replica-fallback-total`` (how often reading went back to the leader).
        """
        fetcher = self._fetcher
        with self._lock:
            replica = {} if fetcher.replica is None else fetcher.replica.by_name()
            return {**fetcher.tally.by_name(), **fetcher.throttle.by_name("fetch"), **replica}

    @property
    def reads_from(self) -> str | None:
        """The server that records are read from (``db2:5432/orders as alice``); None: no one, now."""
        return self._fetcher.reads_from

    async def wait_for_offset(
        self, partition: TopicPartition, offset: int, *, timeout_ms: float | None = None
    ) -> None:
        """Wait until this consumer can read the record at ``offset``, wherever it reads from.

        For a program that reads what it has written: give it the offset that the producer answered.  It is
        enough that the record is there and safe; the position stays.  ``timeout_ms``: by default
        ``request_timeout_ms``.

        Raises RequestTimedOutError, and IllegalStateError when ``partition`` is not assigned.
        """
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise InvalidArgumentError(f"An offset is an integer from 0, not {offset!r}.")
        tp = check_partition(partition)
        timeout_ms = self._config.request_timeout_ms if timeout_ms is None else timeout_ms
        timeout_s = milliseconds(timeout_ms)
        await self._ready()
        until = monotonic() + timeout_s
        pace = Pace(woken=False)
        watermark: int | None = None
        while True:
            found = await self._asked_here(tp, until)
            if found is not None:
                watermark = found[0].high_watermark
                if watermark is not None and watermark > offset:
                    return
                self._fetcher.seal_soon()
            with self._lock:
                self._check()
                left = until - monotonic()
                if left > 0:
                    await self._fetcher.changed.wait(min(left, pace.hasten().seconds))
                    continue
            raise RequestTimedOutError(
                f"The record at offset {offset} of partition {tp.partition} of topic {tp.topic!r} could not "
                f"be read within {timeout_ms:g} ms: the high watermark is "
                f"{'not known' if watermark is None else watermark}.",
                details={**tp._asdict(), "offset": offset, "high_watermark": watermark},
            )

    async def _asked_here(self, tp: TopicPartition, until: float) -> list[Watermarks] | None:
        """The watermark of a partition, as it is where records are read from; None: no answer in time."""
        with self._lock:
            topic_id = self._subscription.topic_id(tp)
        if topic_id is None:
            metadata = await self._fetcher.ask(self._calls.metadata([tp.topic]), until - monotonic())
            topic_id = metadata[0].topic_id if metadata else 0
        call: Call[list[Watermarks]] = self._calls.high_watermarks([topic_id], [tp.partition])
        question = self._fetcher.post_to_reader(call)
        with self._lock:
            while not question.done:
                self._check()
                left = until - monotonic()
                if left <= 0:
                    return None
                await self._fetcher.changed.wait(left)
        if question.error is not None:
            raise question.error
        return question.answer
