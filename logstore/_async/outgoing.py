"""The records that a consumer's transaction produces: they wait for its commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import random, randrange
from time import monotonic, time
from typing import Any, Final

from logstore._async.concurrency import Lock
from logstore._async.fetcher import Fetcher
from logstore._async.futures import SendFuture
from logstore._core.backoff import Backoff
from logstore._core.batch import Batch
from logstore._core.calls import AppendBatch, AppendResult, Calls
from logstore._core.intake import Intake, as_headers, as_timestamp, check_target
from logstore._core.partitioner import crc32_partition
from logstore._core.queues import Limits, Topic
from logstore._core.quota_calls import QuotaCalls
from logstore._core.throttle import Throttle, refused_for_ms
from logstore._core.transaction import HeldRecords, requests
from logstore.config import ProducerConfig
from logstore.errors import LogstoreError, ThrottlingQuotaExceededError, UnknownTopicOrPartitionError
from logstore.records import Header

__all__ = ["Outgoing"]

DEFAULTS: Final = ProducerConfig()
"""What a producer has if it is told nothing."""


class Outgoing:
    """One consumer's, used by one transaction after the other.  ``lock`` is the consumer's."""

    def __init__(self, fetcher: Fetcher, calls: Calls, lock: Lock, metadata_max_age_s: float) -> None:
        self._fetcher = fetcher
        self._calls = calls
        self._lock = lock
        self._metadata_max_age_s = metadata_max_age_s
        self._intake = Intake(None, None)
        self.quota_calls = QuotaCalls(calls.schema)
        self.throttle = Throttle()
        """Set by what the server says of the producer quota; no transaction begins before it is over."""
        self._held: HeldRecords[SendFuture] = HeldRecords(
            Limits(
                batch_size=DEFAULTS.batch_size,
                buffer_memory=DEFAULTS.buffer_memory,
                max_request_size=DEFAULTS.max_request_size,
                linger_s=0.0,
                delivery_timeout_s=float("inf"),
                retries=0,
            ),
            partitioner=crc32_partition,
            choose=randrange,
            backoff=Backoff(0.0, 0.0, random),
            promise=SendFuture,
            lock=lock,
        )

    def open(self) -> None:
        """Take records."""
        with self._lock:
            self._held.open()

    async def add(
        self,
        topic: str,
        value: Any,
        key: Any,
        headers: Iterable[Header] | None,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> SendFuture:
        """The future of a new record."""
        value, key = self._intake.value(value), self._intake.key(key)
        pairs = None if headers is None else as_headers(headers)
        if timestamp_ms is not None:
            as_timestamp(timestamp_ms)
        check_target(topic, partition)
        await self._known(topic, partition)
        with self._lock:
            future = self._held.add(topic, partition, key, value, pairs, timestamp_ms, time())
        if future is None:
            raise self._held.no_room()
        return future

    async def _known(self, name: str, partition: int | None) -> Topic:
        held = self._held
        with self._lock:
            topic = held.known(name, partition)
        if topic is not None and monotonic() - topic.refreshed < self._metadata_max_age_s:
            return topic
        described = await self._fetcher.ask(self._calls.metadata([name]))
        with self._lock:
            held.update(described, monotonic())
            if not described:
                held.forget(name)
            topic = held.known(name, partition)
        if topic is None:
            what = f"topic {name!r}" if not described else f"partition {partition} of topic {name!r}"
            raise UnknownTopicOrPartitionError(
                f"There is no {what}.", details={"topic": name, "partition": partition}
            )
        return topic

    def take(self) -> list[list[AppendBatch]]:
        """No further records are taken; those that were, as the statements that append them."""
        with self._lock:
            batches = self._held.take_all()
        rows: list[tuple[AppendBatch, int]] = []
        for batch in batches:
            (row,) = batch.encode()
            rows.append((row, batch.size))
        return requests(rows, self._held.limits.request_bytes)

    def written(self, results: Sequence[AppendResult]) -> None:
        """What was taken is in the log."""
        self.throttle.told(max((result.throttle_ms for result in results), default=0), monotonic())
        with self._lock:
            by_batch: Mapping[Batch, Sequence[AppendResult]] = {
                batch: [result] for batch, result in zip(self._held.held, results, strict=True)
            }
            done = self._held.written(by_batch)
        self._tell(done)

    def give_up(self, error: LogstoreError) -> None:
        """Nothing of what was taken, or waits, gets into the log."""
        if isinstance(error, ThrottlingQuotaExceededError):
            self.throttle.told(refused_for_ms(error.details), monotonic())
        with self._lock:
            failed = self._held.give_up(error)
            if isinstance(error, UnknownTopicOrPartitionError):
                for batch in failed:
                    self._held.forget(batch.queue.topic.name)
        self._tell(failed)

    def _tell(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            with self._lock:
                callbacks, batch.callbacks = batch.callbacks, None
                if batch.event is not None:
                    batch.event.set()
            for callback in callbacks or ():
                callback()
            batch.release()
