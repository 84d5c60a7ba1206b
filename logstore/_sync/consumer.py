# Generated from logstore/_async/consumer.py by tools/unasync.py; edit that file.
"""The consumer."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from logstore._core.calls import EARLIEST, LATEST, ListedOffset
from logstore._core.fetched import Deserializers
from logstore._core.listener import ConsumerRebalanceListener
from logstore._core.reset import ResetPolicy
from logstore._core.subscription import Subscription
from logstore._core.timeouts import milliseconds
from logstore._core.topic_name import check_partition, check_topic_name
from logstore._sync.concurrency import Lock, breathe, start_at_once
from logstore._sync.fetcher import Fetcher
from logstore._sync.group import Group, waiting_in
from logstore._sync.key_lookup import KeyLookup
from logstore._sync.measured import Measured
from logstore._sync.processing import Processing
from logstore._sync.session import Session
from logstore.consumer_config import ConsumerConfig, ConsumerOptions
from logstore.errors import (
    ConfigurationError,
    ForkedClientError,
    IllegalStateError,
    InvalidArgumentError,
    UnknownTopicOrPartitionError,
    WakeupError,
)
from logstore.options import read_options
from logstore.records import (
    ConsumerRecord,
    OffsetAndTimestamp,
    TopicPartition,
)

if TYPE_CHECKING:
    from typing import Unpack

__all__ = ["Consumer"]

T = TypeVar("T")


class Consumer(Processing, KeyLookup, Measured):
    """Reads records from topics.

    ::

        with Consumer("orders", auto_offset_reset="earliest") as consumer:
            for record in consumer:
                print(record.offset, record.value)

    ``topics``: every partition of these is read, also those that are added later; none: :meth:`assign`
    partitions. ``dsn``: a libpq URI or key/value string; by default ``LOGSTORE_DSN``, else the embedded
    server. ``options``: see :class:`~logstore.consumer_config.ConsumerConfig`.

    What it promises: the records of a partition come in the order of their offsets, none twice and none
    left out, from the position on.  Among partitions there is no order; they take turns.  A record is handed
    out only after its transaction has committed.  Nothing is remembered on the server: without a group,
    positions are the program's.

    A background task with one connection fetches ahead while the program works, and connects again when the
    connection is lost; the program notices only that no records come.  An idle consumer makes less than one
    query a second.

    One consumer is for one thread (or task); only :meth:`wakeup` and :meth:`close` may be called from
    others.  It cannot be used in a child process after a fork.

    The constructor raises ConfigurationError for options that do not fit.  :meth:`start` raises
    ConnectionFailedError, SchemaMissingError, SchemaVersionError, UnsupportedServerError and, for a topic
    that does not exist, UnknownTopicOrPartitionError.  Afterwards every method raises ClientClosedError once
    the consumer is closed.
    """

    def __init__(
        self,
        *topics: str,
        dsn: str | None = None,
        group_id: str | None = None,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        self._config = config = read_options(
            ConsumerConfig, {"group_id": group_id, **options}, elsewhere=("dsn",)
        )
        self._pid = os.getpid()
        self._lock = Lock()
        self._session = Session(
            dsn,
            config.schema,
            timeout_s=config.request_timeout_ms / 1000,
            application_name=config.client_id,
        )
        self._calls = self._session.calls
        self._subscription = Subscription(
            ResetPolicy.parse(config.auto_offset_reset),
            Deserializers(config.key_deserializer, config.value_deserializer),
            max_buffered=config.fetch_max_bytes,
        )
        self._fetcher = Fetcher(config, self._session, self._subscription, self._lock)
        self._topics = _names(topics)
        self._group: Group | None = None
        if config.group_id is not None:
            self._group = Group(config, self._session, self._subscription, self._fetcher, self._lock)
            if self._topics:
                self._group.subscribe(self._topics, None, None)
        self._started = False
        self._wakeup = False
        self._iterator: Iterator[ConsumerRecord] = iter(())
        start_at_once(self)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect.  ``with`` does it, and so does the first use; harmless when it is done already."""
        self._usable()
        if self._started:
            return
        self._started = True
        try:
            self._fetcher.start(None if self._group is not None else self._topics)
            if self._group is not None:
                self._group.start()
        except BaseException:
            self.close()
            raise
        self._finalizer = weakref.finalize(self, self._fetcher.abandon)
        self._finalizer.atexit = False
        if self._group is not None:
            self._leaver = weakref.finalize(self, self._group.heart.abandon)
            self._leaver.atexit = False

    def close(self) -> None:
        """Stop, at once.  Records that were fetched ahead are forgotten.

        Any thread may call it: a :meth:`poll` that waits raises ClientClosedError.  Harmless when it is
        closed already, and in a forked child.
        """
        if os.getpid() == self._pid and not self._fetcher.closing:
            self._started = True
            try:
                if self._group is not None:
                    self._group.close()
            finally:
                self._fetcher.stop()
                self._close_link()
                self._session.close()

    stop = close

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wakeup(self) -> None:
        """Make the :meth:`poll` (or iteration) that is waiting raise WakeupError, or the next one.

        In the threaded client any thread may call it; in asyncio use ``loop.call_soon_threadsafe``.  See
        Kafka's KafkaConsumer.wakeup.
        """
        self._usable()
        with self._lock:
            self._wakeup = True
            self._fetcher.changed.notify_all()

    @property
    def dsn(self) -> str | None:
        """Where the consumer is connected; None: it has not been yet."""
        return self._session.dsn

    # -- what is read ----------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: Iterable[str] | str = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """Read these topics, instead of whatever was read before.

        With a group, the group's members share the partitions; ``pattern``, a regular expression of
        PostgreSQL's that has to match the whole name, stands for every topic that matches now or later, and
        ``listener`` is told what comes and goes.  Topics that do not exist yet are read once they do.
        Without a group every consumer reads all partitions; a topic that does not exist is told by the next
        :meth:`poll`.  No topics and no pattern: as :meth:`unsubscribe`.

        Raises IllegalStateError when the consumer of a group has partitions that were assigned by hand.
        """
        self._usable()
        names = _names([topics] if isinstance(topics, str) else topics)
        if self._group is None:
            if pattern is not None or listener is not None:
                raise ConfigurationError("A pattern and a listener need a group_id.")
            self._read_whole_topics(names)
            return
        if names and pattern is not None:
            raise InvalidArgumentError("A subscription is topics or a pattern, not both.")
        if not names and pattern is None:
            self.unsubscribe()
            return
        if not self._group.subscribed and self._subscription.assignment:
            raise IllegalStateError(
                "Partitions have been assigned by hand.", advice="unsubscribe() before subscribe()."
            )
        self._topics = names
        self._group.subscribe(names, pattern, listener)

    def _read_whole_topics(self, names: tuple[str, ...] | None) -> None:
        with self._lock:
            self._topics = names
            self._subscription.assign(tp for tp in self._subscription.assignment if tp.topic in (names or ()))
            self._fetcher.follow(names)

    def unsubscribe(self) -> None:
        """Read nothing, and leave the group."""
        self._usable()
        if self._group is not None and self._group.subscribed:
            self._group.unsubscribe()
        self._assign([])

    def subscription(self) -> frozenset[str]:
        """The topics that are read as a whole or shared with the group; empty with a pattern, and when
        partitions were assigned.
        """
        return frozenset(self._topics or ())

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read exactly these partitions, instead of whatever was read before.

        Partitions that were read already keep their position.  One that does not exist is told by the next
        :meth:`poll`.  With a ``group_id``, those that are new begin at the group's committed offsets; the
        consumer is no member.

        Raises IllegalStateError when a consumer with a group has subscribed.
        """
        self._usable()
        if self._group is not None and self._group.subscribed:
            raise IllegalStateError(
                "The consumer has subscribed: its group assigns its partitions.",
                advice="unsubscribe() before assign().",
            )
        self._assign(partitions)

    def _assign(self, partitions: Iterable[TopicPartition]) -> None:
        wanted = [check_partition(tp) for tp in partitions]
        with self._lock:
            self._topics = None
            self._subscription.assign(wanted, awaiting=self._group is not None)
            self._fetcher.follow(None)

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that are read."""
        self._usable()
        with self._lock:
            return self._subscription.assignment

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """The numbers of the partitions of a topic; None: there is no such topic."""
        self._ready()
        found = self._fetcher.ask(self._calls.metadata([check_topic_name(topic)]))
        return set(range(found[0].partitions)) if found else None

    def topics(self) -> set[str]:
        """The names of all topics there are."""
        self._ready()
        return {each.topic for each in self._fetcher.ask(self._calls.metadata())}

    # -- records ---------------------------------------------------------------------------------------------

    def poll(
        self, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """The next records, by partition; empty if none came within ``timeout_ms`` milliseconds (default 0).

        ``max_records``: the most to return, by default ``max_poll_records``.  The position of each partition
        moves past what is returned.  The first call looks positions up, whatever the timeout: what is
        appended after it is read.

        Raises what happened to a partition, when no records come before it: NoOffsetForPartitionError and
        OffsetOutOfRangeError (with ``auto_offset_reset="none"``), UnknownTopicOrPartitionError (the topic
        was deleted), SerializationError (the position stays: :meth:`seek` past the record).  Raises
        WakeupError after :meth:`wakeup`.
        """
        return self._poll(timeout_ms, max_records, ())

    def getmany(
        self, *partitions: TopicPartition, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """:meth:`poll`, of some partitions when they are given."""
        return self._poll(timeout_ms, max_records, [check_partition(tp) for tp in partitions])

    def getone(self, *partitions: TopicPartition) -> ConsumerRecord:
        """The next record, of some partitions when they are given; waits for it.  Raises what :meth:`poll`
        raises.
        """
        while True:
            for records in (self.getmany(*partitions, timeout_ms=3_600_000, max_records=1)).values():
                return records[0]

    def __iter__(self) -> Iterator[ConsumerRecord]:
        return self._records()

    def __next__(self) -> ConsumerRecord:
        while True:
            for record in self._iterator:
                return record
            self._iterator = self._next_records()

    def _records(self) -> Iterator[ConsumerRecord]:
        try:
            while True:
                yield from self._iterator
                self._iterator = self._next_records()
        except StopIteration:
            return

    def _next_records(self) -> Iterator[ConsumerRecord]:
        """Some records to iterate over; StopIteration when ``consumer_timeout_ms`` has passed."""
        self._ready()
        timeout_ms = self._config.consumer_timeout_ms
        until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        group = self._group
        while True:
            if group is not None:
                group.attend()
                if group.at_most_once:
                    return self._committed_records(until)
            with self._lock, waiting_in(group):
                self._fetcher.try_again()
                while group is None or not group.wanted:
                    self._check()
                    records = self._forgiving(
                        lambda: self._subscription.hand_out(self._config.max_poll_records)
                    )
                    self._make_use_of_room()
                    if records is not None:
                        return records
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        if self._fetcher.caught_up or not self._fetcher.online:
                            raise StopIteration
                        left = None  # what is there already is not left behind because looking takes long
                    self._fetcher.changed.wait(left)

    def _committed_records(self, until: float | None) -> Iterator[ConsumerRecord]:
        """Some records whose offsets have been committed, to iterate over."""
        while True:
            now = time.monotonic()
            polled = self._take(self._config.max_poll_records, (), now + 3600 if until is None else until)
            if polled:
                return iter([record for records in polled.values() for record in records])
            if until is not None and now >= until:
                raise StopIteration

    def _poll(
        self, timeout_ms: float, max_records: int | None, only: Iterable[TopicPartition]
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        count = self._config.max_poll_records if max_records is None else max_records
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidArgumentError(f"max_records is an integer from 1, not {max_records!r}.")
        timeout_s = milliseconds(timeout_ms)
        self._ready()
        records = self._take(count, only, time.monotonic() + timeout_s)
        if not records:
            breathe()
        return records

    def _take(
        self, count: int, only: Iterable[TopicPartition], until: float
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        group = self._group
        while True:
            if group is not None:
                group.attend()
            with self._lock, waiting_in(group):
                records = self._take_here(count, only, until)
            if records is not None and records and group is not None and group.at_most_once:
                return records if group.before_handing_out(records) else {}
            if records is not None:
                return records

    def _take_here(
        self, count: int, only: Iterable[TopicPartition], until: float
    ) -> dict[TopicPartition, list[ConsumerRecord]] | None:
        """Records; None: the group wants attention first.  The lock must be held."""
        self._fetcher.try_again()
        while self._group is None or not self._group.wanted:
            self._check()
            records = self._forgiving(lambda: self._subscription.take(count, only))
            self._make_use_of_room()
            if records:
                return records
            left = until - time.monotonic()
            if left > 0:
                self._fetcher.changed.wait(left)
            elif self._subscription.positioned or not self._fetcher.online:
                return {}
            else:
                self._fetcher.changed.wait()
        return None

    def _forgiving(self, take: Callable[[], T]) -> T:
        """What ``take`` returns.  A partition that a group assigned and that is deleted is no error: the
        group is about to take it back.
        """
        while True:
            try:
                return take()
            except UnknownTopicOrPartitionError as error:
                if self._group is None or not self._group.subscribed:
                    raise
                self._group.missing(error)

    def _make_use_of_room(self) -> None:
        if self._subscription.has_room:
            self._subscription.has_room = False
            self._fetcher.disturb()

    # -- positions -------------------------------------------------------------------------------------------

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next record of ``partition`` is the one at ``offset``, or the first one after it.

        Whether the log goes that far is found out by the next fetch: see ``auto_offset_reset``.
        """
        self._usable()
        with self._lock:
            self._subscription.seek(check_partition(partition), offset)
            self._fetcher.disturb()

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Read these partitions (default: all that are assigned) from their first record on.

        The offset is looked up by the next :meth:`poll` or :meth:`position`.
        """
        self._seek_to(partitions, EARLIEST)

    def seek_to_end(self, *partitions: TopicPartition) -> None:
        """Read only what is appended from now on to these partitions (default: all that are assigned).

        The offset is looked up by the next :meth:`poll` or :meth:`position`.
        """
        self._seek_to(partitions, LATEST)

    def _seek_to(self, partitions: Iterable[TopicPartition], spec: int) -> None:
        self._ready()
        with self._lock:
            self._subscription.seek_to([check_partition(tp) for tp in partitions], spec)
            self._fetcher.disturb()

    def position(self, partition: TopicPartition) -> int:
        """The offset of the next record of ``partition`` that the program gets.

        Looks it up if need be, within ``request_timeout_ms``.
        """
        self._ready()
        tp = check_partition(partition)
        until = time.monotonic() + self._config.request_timeout_ms / 1000
        with self._lock:
            self._fetcher.try_again()
            while True:
                self._fetcher.check()
                found = self._subscription.position(tp)
                if found is not None:
                    return found
                self._subscription.raise_error(tp)
                left = until - time.monotonic()
                if left <= 0:
                    raise self._fetcher.timed_out("position")
                self._fetcher.changed.wait(left)

    def highwater(self, partition: TopicPartition) -> int | None:
        """The end of the partition's log (the offset of the next record to be appended) as of the last fetch.

        None: nothing has been fetched yet.  :meth:`end_offsets` asks the server.
        """
        self._usable()
        with self._lock:
            return self._subscription.high_watermark(check_partition(partition))

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing of these partitions (default: all) until :meth:`resume`; their positions stay."""
        self._usable()
        with self._lock:
            self._subscription.pause([check_partition(tp) for tp in partitions])
            self._fetcher.disturb()

    def resume(self, *partitions: TopicPartition) -> None:
        """Hand out records of these partitions (default: all) again."""
        self._usable()
        with self._lock:
            self._subscription.resume([check_partition(tp) for tp in partitions])
            self._fetcher.disturb()
            self._fetcher.changed.notify_all()

    def paused(self) -> frozenset[TopicPartition]:
        """The partitions that are paused."""
        self._usable()
        with self._lock:
            return self._subscription.paused()

    # -- what there is to read -------------------------------------------------------------------------------

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the log of each partition begins: the offset of its first record, if it has any."""
        return self._offsets(partitions, EARLIEST)

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the log of each partition ends: the offset that the next record will get."""
        return self._offsets(partitions, LATEST)

    def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition, the first record whose timestamp (milliseconds) is at or after the one given.

        None where there is no such record.
        """
        for tp, timestamp in timestamps.items():
            if isinstance(timestamp, bool) or not isinstance(timestamp, int) or timestamp < 0:
                raise InvalidArgumentError(f"A timestamp is an integer from 0, not {timestamp!r} for {tp}.")
        found = self._list_offsets(timestamps)
        return {
            tp: None
            if row.offset is None
            else OffsetAndTimestamp(row.offset, row.timestamp or 0, row.leader_epoch or 0)
            for tp, row in found.items()
        }

    def _offsets(self, partitions: Iterable[TopicPartition], spec: int) -> dict[TopicPartition, int]:
        found = self._list_offsets(dict.fromkeys(partitions, spec))
        return {tp: row.offset or 0 for tp, row in found.items()}

    def _list_offsets(self, specs: Mapping[TopicPartition, int]) -> dict[TopicPartition, ListedOffset]:
        self._ready()
        tps = [check_partition(tp) for tp in specs]
        if not tps:
            return {}
        metadata = self._fetcher.ask(self._calls.metadata(sorted({tp.topic for tp in tps})))
        ids = {each.topic: each.topic_id for each in metadata}
        for tp in tps:
            if tp.topic not in ids:
                raise UnknownTopicOrPartitionError(f"There is no topic {tp.topic!r}.", details=tp._asdict())
        rows = self._fetcher.list_offsets(
            [ids[tp.topic] for tp in tps], [tp.partition for tp in tps], list(specs.values())
        )
        return {tps[row.idx - 1]: row for row in rows}

    # -- checks ----------------------------------------------------------------------------------------------

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClientError("The consumer was made in another process, before a fork.")
        if self._fetcher.closing:
            with self._lock:
                self._fetcher.check()

    def _ready(self) -> None:
        self._usable()
        if not self._started:
            self.start()

    def _check(self) -> None:
        if self._wakeup:
            self._wakeup = False
            raise WakeupError
        self._fetcher.check()
        member = self._group is not None and self._group.subscribed
        if self._topics is None and not member and not self._subscription.assignment:
            raise IllegalStateError(
                "There is nothing to read.",
                advice="Name topics when making the consumer, or assign() partitions.",
            )


def _names(topics: Iterable[str]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(check_topic_name(name) for name in topics)) or None
