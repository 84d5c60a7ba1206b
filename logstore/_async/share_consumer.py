"""The share consumer: a member of a share group."""

from __future__ import annotations

import logging
import os
import time
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import timedelta
from random import random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from logstore._async.concurrency import Lock, Mutex, breathe, sleep, start_at_once
from logstore._async.session import Session
from logstore._async.share_member import Delivery, Member
from logstore._core.backoff import Backoff
from logstore._core.share_ledger import Ledger, Settled
from logstore._core.timeouts import milliseconds
from logstore._core.topic_name import check_topic_name
from logstore.errors import (
    ClientClosedError,
    ForkedClientError,
    IllegalStateError,
    InvalidArgumentError,
    InvalidRecordStateError,
    LogstoreError,
    RetriableError,
    WakeupError,
)
from logstore.options import read_options
from logstore.records import TopicPartition
from logstore.share import ACCEPT, REJECT, RELEASE, AcknowledgeType, ShareRecord
from logstore.share_config import ShareConsumerConfig

if TYPE_CHECKING:
    from typing import Unpack

    from logstore.share_config import ShareConsumerOptions

__all__ = ["AsyncShareConsumer"]

_log = logging.getLogger("logstore.share")

CLOSE_S = 2.0
"""How long closing waits for a server that does not answer."""
LONGEST_S = 3600.0
"""How long one wait lasts that has no end."""


class AsyncShareConsumer:
    """Takes records from topics together with the other members of a share group: a queue over the log.

    ::

        async with AsyncShareConsumer("orders", group_id="shipping") as consumer:
            async for record in consumer:
                await ship(record.value)

    ``topics``: where records are taken from, all partitions of each.  ``group_id``: the group, which is made
    when it is new.  ``dsn``: a libpq URI or key/value string; by default ``LOGSTORE_DSN``, else the embedded
    server.  ``options``: see :class:`~logstore.share_config.ShareConsumerConfig`.

    What it promises: each record is given to one member at a time, under a lock that runs out after
    ``share.record.lock.duration.ms``; it is delivered again until a member accepts or rejects it, at most
    ``share.delivery.count.limit`` times; whatever is given up goes to the group's dead-letter topic, if it
    has one, in the transaction that gives it up.  Any number of members can share a partition.  There is no
    order among records, unless ``key_ordered``: then at most one record of a key is in flight, so each key's
    records are processed one after the other, in the order of the log.

    In mode "implicit" asking for more accepts what was handed out before: by :meth:`poll` all records of the
    poll before, by iteration each record when the next one is asked for.  In mode "explicit" the program
    calls :meth:`acknowledge` for each record; acknowledgements travel with the next :meth:`poll`, or with
    :meth:`commit`.

    The constructor raises ConfigurationError for options that do not fit.  :meth:`start` raises
    ConnectionFailedError, SchemaMissingError, SchemaVersionError, UnsupportedServerError,
    UnknownTopicOrPartitionError and InvalidGroupError (a group of another kind, or one that keeps the order
    of keys while this member does not want it).  Afterwards a lost connection is made again by itself.  Every
    method raises ClientClosedError once the consumer is closed, and ForkedClientError in a forked child.

    One consumer is for one thread (or task); only :meth:`acknowledge`, :meth:`wakeup` and :meth:`close` may
    be called from others.
    """

    def __init__(
        self, *topics: str, group_id: str, dsn: str | None = None, **options: Unpack[ShareConsumerOptions]
    ) -> None:
        self._config = config = read_options(
            ShareConsumerConfig, {"group_id": group_id, **options}, elsewhere=("dsn",)
        )
        self._pid = os.getpid()
        self._topics = _names(topics)
        self._implicit = config.share_acknowledgement_mode == "implicit"
        self._lock = Lock()
        self._mutex = Mutex()
        self._ledger = Ledger()
        self._session = Session(
            dsn,
            config.schema,
            timeout_s=config.request_timeout_ms / 1000,
            application_name=config.client_id,
        )
        member_id = f"{config.client_id[:200]}-{uuid.uuid4()}"
        self._member = Member(config, self._session, member_id, self._ledger, self._lock)
        self._backoff = Backoff(
            config.reconnect_backoff_ms / 1000, config.reconnect_backoff_max_ms / 1000, random
        )
        self._left: deque[tuple[Delivery, ShareRecord]] = deque()
        self._current: ShareRecord | None = None
        self._started = False
        self._closing = False
        self._wakeup = False
        self._finalizer = weakref.finalize(self, self._member.abandon)
        self._finalizer.atexit = False
        start_at_once(self)

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and make the group if it is new.

        ``async with`` does it, and so does the first use; harmless when it is done already.
        """
        self._usable()
        if self._started:
            return
        self._started = True
        try:
            async with self._mutex:
                await self._member.connect(self._topics)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send the acknowledgements there are, release what was handed out and not acknowledged, and stop.

        Waits for the server for a moment only: locks run out by themselves.  Any thread may call it: a
        :meth:`poll` that waits raises ClientClosedError.  Harmless when it is closed already, and in a forked
        child.
        """
        if os.getpid() != self._pid or self._closing:
            return
        self._closing = True
        self._member.interrupt()
        async with self._mutex:
            with self._lock:
                self._ledger.acknowledge_open(RELEASE)
                self._member.give_back(self._left)
                self._left.clear()
            with suppress(LogstoreError):
                await self._member.say_goodbye(CLOSE_S)
            self._finalizer.detach()
            await self._member.disconnect()
            await self._session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def wakeup(self) -> None:
        """Make the :meth:`poll` (or iteration) that is waiting raise WakeupError, or the next one.

        In the threaded client any thread may call it; in asyncio use ``loop.call_soon_threadsafe``.
        """
        self._usable()
        self._wakeup = True
        self._member.interrupt()

    @property
    def dsn(self) -> str | None:
        """Where the consumer is connected; None: it has not been yet."""
        return self._session.dsn

    def metrics(self) -> dict[str, float]:
        """Counters since the start, by Kafka's names where Kafka has them; times in milliseconds."""
        return {**self._member.tally.by_name(), **self._member.throttle.by_name("fetch")}

    @property
    def member_id(self) -> str:
        """The member's name: unique, and new for each consumer."""
        return self._member.member_id

    # -- what is taken ---------------------------------------------------------------------------------------

    def subscribe(self, topics: Iterable[str]) -> None:
        """Take records from these topics, instead of whatever was taken from before.

        Records that were handed out stay acquired.  A topic that does not exist is told by the next
        :meth:`poll`.
        """
        self._usable()
        self._topics = _names([topics] if isinstance(topics, str) else topics)

    def unsubscribe(self) -> None:
        """Take records from nowhere."""
        self._usable()
        self._topics = ()

    def subscription(self) -> frozenset[str]:
        """The topics that records are taken from."""
        return frozenset(self._topics)

    # -- records ---------------------------------------------------------------------------------------------

    async def poll(
        self, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ShareRecord]]:
        """Acquire records, by partition; empty if there were none within ``timeout_ms`` ms (default 0).

        ``max_records``: the most to return, by default ``max_poll_records``.  Sends the acknowledgements
        there are first; in mode "implicit" they include all records handed out before.  Refused
        acknowledgements go to ``acknowledgement_commit_callback``, or are logged.

        Raises IllegalStateError in mode "explicit" while records are not acknowledged (RENEW counts),
        SerializationError when a record cannot be deserialized and none comes before it (it is released),
        UnknownTopicOrPartitionError when a topic is gone, WakeupError after :meth:`wakeup`.
        """
        count = self._config.max_poll_records if max_records is None else max_records
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 100_000:
            raise InvalidArgumentError(f"max_records is an integer from 1 to 100000, not {max_records!r}.")
        timeout_s = milliseconds(timeout_ms)
        await self._ready()
        until = time.monotonic() + timeout_s
        polled: dict[TopicPartition, list[ShareRecord]] = {}
        async with self._mutex:
            with self._lock:
                self._current = None
                self._acknowledge_before_more()
            if not self._left:
                await self._fill(until, count)
            with self._lock:
                while count > 0 and (record := self._hand_out()) is not None:
                    polled.setdefault(record.topic_partition, []).append(record)
                    count -= 1
        if not polled:
            await breathe()
        return polled

    def __aiter__(self) -> AsyncIterator[ShareRecord]:
        return self

    async def __anext__(self) -> ShareRecord:
        if not self._started or self._closing:
            await self._ready()
        while True:
            with self._lock:
                current, self._current = self._current, None
                if current is not None and self._implicit:
                    with suppress(InvalidRecordStateError):  # commit() has accepted it already
                        self._ledger.acknowledge(current.topic_partition, current.offset, ACCEPT)
                record = self._current = self._hand_out()
            if record is not None:
                return record
            await self._fill_for_iteration()

    async def _fill_for_iteration(self) -> None:
        """Acquire; StopAsyncIteration when ``consumer_timeout_ms`` has passed without a record."""
        timeout_ms = self._config.consumer_timeout_ms
        until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        async with self._mutex:
            with self._lock:
                self._acknowledge_before_more()
            await self._fill(until, self._config.max_poll_records)
        if not self._left:
            raise StopAsyncIteration

    def _acknowledge_before_more(self) -> None:
        if self._implicit:
            self._ledger.acknowledge_open(ACCEPT)
        elif self._ledger.unacknowledged:
            raise IllegalStateError(
                f"{self._ledger.unacknowledged} records have not been acknowledged.",
                advice="In mode explicit, acknowledge each record before asking for more; RENEW keeps it.",
            )

    def _hand_out(self) -> ShareRecord | None:
        """The next record that was acquired and is not handed out yet, and is still ours.  Needs the lock."""
        while self._left:
            delivery, record = self._left.popleft()
            if time.monotonic() < delivery.deadline:
                self._ledger.opened(delivery.tp.topic, delivery.place, (record.offset,), delivery.deadline)
                return record
        return None

    async def _fill(self, until: float | None, count: int) -> None:
        """Acknowledge, and acquire up to ``count`` records; waits for them no longer than ``until``."""
        member = self._member
        failures = 0
        while True:
            self._check()
            try:
                connection = await member.connect(self._topics)
                self._report(await member.tell(connection))
                deliveries = (
                    await member.acquire(connection, count) if await member.has_quota(connection) else []
                )
                for delivery in deliveries:
                    self._left.extend((delivery, record) for record in delivery.records)
                if deliveries:
                    return
                failures = 0
                error, member.failure = member.failure, None
                if error is not None:
                    raise error
                left = LONGEST_S if until is None else until - time.monotonic()
                if left <= 0:
                    return
                await member.wait(connection, left)
            except RetriableError as error:
                failures += 1
                _log.warning("Acquiring failed, trying again: %s", error)
                await member.disconnect()
                left = LONGEST_S if until is None else until - time.monotonic()
                if left <= 0:
                    return
                await sleep(min(left, self._backoff.delay(failures)))

    # -- acknowledgements ------------------------------------------------------------------------------------

    def acknowledge(
        self,
        record: ShareRecord,
        type: AcknowledgeType = ACCEPT,
        *,
        deliver_after: timedelta | int | None = None,
        reason: str | None = None,
    ) -> None:
        """Say what became of a record that :meth:`poll` or iteration returned.  Mode "explicit" only.

        It is sent by the next :meth:`poll` or :meth:`commit`, or when an iteration needs more records.
        ``deliver_after``: with RELEASE, how long nobody gets the record (a timedelta, or milliseconds), by
        default what the group's ``share.retry.backoff.ms`` comes to.  ``reason``: with REJECT and RELEASE,
        what a dead letter says of it.

        Raises InvalidRecordStateError for a record that was acknowledged already, or is not this member's;
        the record's state stays as it is.  That the lock has run out is found out by the server: see
        :meth:`commit`.
        """
        self._usable()
        if self._implicit:
            raise IllegalStateError(
                "Records are acknowledged by asking for more.",
                advice='Make the consumer with share_acknowledgement_mode="explicit".',
            )
        kind = _acknowledge_type(type)
        if reason is not None and (not isinstance(reason, str) or kind not in (RELEASE, REJECT)):
            raise InvalidArgumentError("reason is a string that goes with RELEASE and REJECT.")
        delay_ms = None
        if deliver_after is not None:
            delay_ms = _delay_ms(deliver_after)
            if kind is not RELEASE:
                raise InvalidArgumentError("deliver_after goes with RELEASE.")
        if not isinstance(record, ShareRecord):
            raise InvalidArgumentError(f"acknowledge takes a record that poll() returned, not {record!r}.")
        with self._lock:
            self._ledger.acknowledge(record.topic_partition, record.offset, kind, delay_ms, reason)

    async def commit(self) -> None:
        """Send the acknowledgements there are now; in mode "implicit", accept all that was handed out.

        When it returns they are durable.  Raises InvalidRecordStateError when some were refused, because the
        lock of the record ran out or the record was finished otherwise: ``details["refused"]`` lists topic,
        partition, first and last offset of these; all others hold.  Raises a RetriableError after trying for
        ``request_timeout_ms``; then the next :meth:`poll` or commit tries again.
        """
        await self._ready()
        until = time.monotonic() + self._config.request_timeout_ms / 1000
        async with self._mutex:
            with self._lock:
                if self._implicit:
                    self._ledger.acknowledge_open(ACCEPT)
            failures = 0
            while True:
                self._check()
                try:
                    settled = await self._member.tell(await self._member.connect(self._topics))
                    break
                except RetriableError:
                    failures += 1
                    await self._member.disconnect()
                    pause = self._backoff.delay(failures)
                    if time.monotonic() + pause >= until:
                        raise
                    await sleep(pause)
        self._report(settled, warn=False)
        if settled.refused:
            raise _refusal(settled)

    def acquisition_lock_timeout_ms(self) -> int | None:
        """How long an acquired record is this member's, in milliseconds; None: not known yet."""
        return self._member.lock_ms

    def _report(self, settled: Settled, *, warn: bool = True) -> None:
        callback = self._config.acknowledgement_commit_callback
        if callback is not None:
            for tp, offsets in settled.done:
                callback(tp, offsets, None)
            for tp, first, last in settled.refused:
                callback(tp, range(first, last + 1), _refusal(settled))
        elif settled.refused and warn:
            _log.warning("%s", _refusal(settled))

    # -- checks ----------------------------------------------------------------------------------------------

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClientError("The consumer was made in another process, before a fork.")
        if self._closing:
            raise ClientClosedError("The consumer is closed.")

    async def _ready(self) -> None:
        self._usable()
        if not self._started:
            await self.start()

    def _check(self) -> None:
        self._usable()
        if self._wakeup:
            self._wakeup = False
            raise WakeupError
        if not self._topics:
            raise IllegalStateError(
                "There is nothing to take records from.",
                advice="Name topics when making the consumer, or subscribe() to some.",
            )


def _names(topics: Iterable[str]) -> tuple[str, ...]:
    return tuple(check_topic_name(name) for name in dict.fromkeys(topics))


def _acknowledge_type(value: Any) -> AcknowledgeType:
    try:
        return AcknowledgeType(value)
    except ValueError:
        known = ", ".join(AcknowledgeType.__members__)
        raise InvalidArgumentError(f"An acknowledgement is one of {known}, not {value!r}.") from None


def _delay_ms(value: timedelta | int) -> int:
    delay_ms = value // timedelta(milliseconds=1) if isinstance(value, timedelta) else value
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, int) or not 0 <= delay_ms < 2**53:
        raise InvalidArgumentError(f"deliver_after is a timedelta, or milliseconds, from 0, not {value!r}.")
    return delay_ms


def _refusal(settled: Settled) -> InvalidRecordStateError:
    (topic, partition), first, _ = settled.refused[0]
    count = sum(each.last_offset - each.first_offset + 1 for each in settled.refused)
    return InvalidRecordStateError(
        f"{count} acknowledgements were refused, the first one of record {first} of partition {partition} of "
        f"topic {topic!r}: these records are not this member's any more.",
        advice="Their locks ran out: acknowledge or renew sooner, or raise share.record.lock.duration.ms.",
        details={"refused": [(*tp, first, last) for tp, first, last in settled.refused]},
    )
