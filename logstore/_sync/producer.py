# Generated from logstore/_async/producer.py by tools/unasync.py; edit that file.
"""The producer: what users call."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from random import randrange
from time import monotonic, time
from types import TracebackType
from typing import Any, Self, Unpack

from logstore._core.batch import RECORD_OVERHEAD, BulkBatch, Columns, Headers
from logstore._core.bulk import Piece, check_sizes, parts, pieces
from logstore._core.intake import Intake, as_headers, as_timestamp, check_target
from logstore._core.partitioner import as_partitioner
from logstore._core.queues import Topic
from logstore._core.row_batch import RowBatch
from logstore._core.staging_calls import StagedRecord, StagingCalls
from logstore._core.timeouts import seconds
from logstore._sync.borrowed import run_borrowed
from logstore._sync.concurrency import Mutex, breathe, start_at_once
from logstore._sync.futures import BulkFuture, SendFuture, StagedFuture, settled
from logstore._sync.lifetimes import living
from logstore._sync.sender import Sender
from logstore._sync.session import Session
from logstore._sync.transacting import Transacting
from logstore._sync.transactions import Transactions
from logstore.config import ProducerConfig, ProducerOptions
from logstore.errors import (
    BufferExhaustedError,
    ClientClosedError,
    ForkedClientError,
    IllegalStateError,
    LogstoreError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)
from logstore.options import read_options
from logstore.records import CREATE_TIME, Header, RecordMetadata

__all__ = ["Producer"]

INTERRUPTED_CLOSE_S = 0.5
"""How long leaving a ``with`` block by Ctrl-C or cancellation still tries to deliver."""


class Producer(Transacting):
    """Appends records to topics, in batches that a background task sends.

    ::

        with Producer() as producer:
            future = producer.send("orders", b"value", key=b"key")
            metadata = future

    ``dsn`` is a libpq URI or key/value string; without it ``LOGSTORE_DSN`` counts, and without that the
    embedded server, which is started or joined.  The other options are those of :class:`ProducerConfig`;
    Kafka's dotted names are understood as well (``**{"linger.ms": 5}``).

    Guarantees.  Records of one partition are in the log in the order in which they were sent, each once, also
    across retries (see ``enable_idempotence``).  A record whose future succeeded is in the log at the level
    of ``acks``.  A record whose future failed is not there, unless the error is UnknownOutcomeError, because
    the connection was lost during the commit and nothing was learned until ``delivery_timeout_ms`` had
    passed, or ClientClosedError, because the producer was closed while the record was on its way.

    Ending.  :meth:`close`, and leaving the ``with`` block, deliver what was sent before.  A program that ends
    without either loses what was still waiting, with a warning in the log, and never hangs.

    A producer may be used by several tasks at once.  It cannot be used in a child process of fork():
    ForkedClientError.  Semantics follow
    https://kafka.apache.org/documentation/#producerapi where nothing else is said.
    """

    def __init__(self, dsn: str | None = None, **options: Unpack[ProducerOptions]) -> None:
        config = read_options(ProducerConfig, options, elsewhere=("dsn",))
        self.config = config
        self._intake = Intake(config.key_serializer, config.value_serializer)
        self._plain_keys = config.key_serializer is None
        self._plain_values = config.value_serializer is None
        self._max_block_s = config.max_block_ms / 1000
        session = Session(
            dsn,
            config.schema,
            timeout_s=config.request_timeout_ms / 1000,
            application_name=config.client_id,
        )
        self._session = session
        self._sender = Sender(session, config, self)
        self._accumulator = self._sender.accumulator
        self._lock = self._sender.lock
        # Without the lock that every interpreter used to have, send() takes one of its own.
        locked = getattr(sys, "_is_gil_enabled", lambda: True)()
        plain = self._plain_keys and self._plain_values and locked
        self._hashed = self._accumulator.hashed if plain else None
        self._transactions = (
            None if config.transactional_id is None else Transactions(session, config, self._sender)
        )
        self._partitioner = as_partitioner(config.partitioner)
        self._limits = self._accumulator.limits
        self._staging = StagingCalls(config.schema)
        self._identity: str | None = None
        self._starting = Mutex()
        self._started = False
        """It is connecting, or has."""
        self._connected = False
        self._others_wait = False
        """There is something to do for the sender, who has to be let run: this one has not waited since."""
        self._unusable: type[IllegalStateError] | None = None
        start_at_once(self)

    def start(self) -> None:
        """Connect to the log.  Done by ``with`` and by the first use as well.

        Raises ConnectionFailedError when no server answers within ``request_timeout_ms``, SchemaMissingError
        and SchemaVersionError with the command to run, UnsupportedServerError.
        """
        self._check_usable()
        if not self._connected:
            with self._starting:
                self._connect()

    def _connect(self) -> None:
        if self._connected:  # somebody was quicker
            return
        self._check_usable()
        self._started = True
        try:
            self._sender.start()
        except BaseException:
            self._started = False
            self._session.close()
            raise
        self._connected = True
        living.add(self)

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Iterable[Header] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        *,
        connection: Any = None,
    ) -> SendFuture:
        """Hand over one record; its future says where it is, once it is acknowledged.

        ``value`` and ``key`` are bytes (or what the serializers take); a value of None is a tombstone.
        ``headers`` are pairs of a str and bytes or None.  ``partition`` overrides the partitioner.
        ``timestamp_ms`` is in milliseconds since the epoch, now by default.

        Returns at once unless the topic is not known yet or the buffer is full; then it waits, at most
        ``max_block_ms``.

        Raises UnknownTopicOrPartitionError, RecordTooLargeError (naming the limit), InvalidArgumentError,
        SerializationError, BufferExhaustedError, RequestTimedOutError, ClientClosedError: in each case the
        record was not taken.  What goes wrong later is raised by the future.

        ``connection``: the record becomes a part of the transaction that is open on this connection of the
        program's, and is in the log if, and soon after, that commits; it waits for nobody and keeps nobody
        waiting.  An asyncpg connection, a psycopg AsyncConnection or SQLAlchemy's AsyncSession or
        AsyncConnection (in threads a psycopg Connection, Session or Connection), of the producer's database
        and not in autocommit.  The future is done at once and has no offset: see StagedFuture.  Raises
        OutboxConnectionError and SchemaMissingError besides.
        """
        if (
            type(key) is bytes
            and type(value) is bytes
            and headers is None
            and partition is None
            and timestamp_ms is None
            and connection is None
            and (hashed := self._hashed) is not None
        ):
            # Most records have a key and go into a batch that is open and has room. For those this is
            # accumulator.add() spelled out, without the lock: see logstore._core.row_batch.
            try:
                known = self._accumulator.addressable[topic]
                batch: Any = known.queues[hashed(key) % known.count].open
                if batch is not None:
                    size = RECORD_OVERHEAD + len(key) + len(value)
                    if (room := batch.room - size) >= 0:
                        batch.room = room
                        place = next(batch.places)
                        if (time_s := time()) >= batch.until:
                            batch.tick(place, time_s)
                        future = SendFuture()
                        future.batch = batch
                        future.place = place
                        batch.keys[place] = key
                        batch.values[place] = value
                        if not batch.closed or self._is_in(batch, place):
                            return future
            except (KeyError, IndexError, StopIteration, TypeError):
                pass  # the topic is not known, or not even a topic's name; or the batch was taken away
        return self._send_checked(topic, value, key, headers, partition, timestamp_ms, connection)

    def _send_checked(
        self,
        topic: str,
        value: Any,
        key: Any,
        headers: Iterable[Header] | None,
        partition: int | None,
        timestamp_ms: int | None,
        connection: Any,
    ) -> SendFuture:
        if type(value) is not bytes or not self._plain_values:
            value = self._intake.value(value)
        if key is not None and (type(key) is not bytes or not self._plain_keys):
            key = self._intake.key(key)
        pairs = None if headers is None else as_headers(headers)
        if timestamp_ms is not None:
            as_timestamp(timestamp_ms)
        if partition is not None:
            check_target(topic, partition)
        if connection is not None:
            return self._stage(connection, topic, partition, key, value, pairs, timestamp_ms)
        accumulator = self._accumulator
        if self._others_wait:
            self._let_others()
        try:
            with self._lock:
                future = accumulator.add(topic, partition, key, value, pairs, timestamp_ms, time())
                if accumulator.attention:
                    accumulator.attention = False
                    self._others_wait = True
                    self._sender.work.notify_all()
        except TypeError:
            check_target(topic, partition)
            raise
        if future is None:
            return self._send_patiently(topic, partition, key, value, pairs, timestamp_ms)
        return future

    def send_and_wait(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Iterable[Header] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordMetadata:
        """:meth:`send`, and wait for the acknowledgement."""
        future = self.send(topic, value, key, headers, partition, timestamp_ms)
        return future.get()

    def send_many(
        self,
        topic: str,
        values: Iterable[Any],
        keys: Iterable[Any] | None = None,
        headers: Iterable[Iterable[Header] | None] | None = None,
        partition: int | None = None,
        timestamps_ms: Iterable[int] | int | None = None,
    ) -> BulkFuture:
        """Hand over many records of one topic at once: several times faster than :meth:`send` for each.

        ``keys``, ``headers`` and ``timestamps_ms`` are as long as ``values``, or None; one int for all is a
        time stamp as well.  Everything is checked before the first record is taken.  Returns when all records
        are in the buffer, so it waits for room, at most ``max_block_ms`` for each part of them.

        Raises what :meth:`send` raises.  BufferExhaustedError and ClientClosedError may come after a part of
        the records was taken: ``details["accepted"]`` says how many, from the first on.
        """
        check_target(topic, partition)
        columns = self._intake.columns(values, keys, headers, timestamps_ms, int(time() * 1000))
        known = self._known(topic, partition, monotonic() + self._max_block_s)
        longest = check_sizes(columns, known, self._accumulator.limits)
        taken: list[tuple[BulkBatch, int, int]] = []
        accepted = 0
        for part in parts(columns, longest, self._accumulator.limits):
            try:
                taken += self._take(topic, partition, part)
            except LogstoreError as error:
                error.details["accepted"] = accepted
                raise
            accepted += len(part.values)
        return BulkFuture(taken)

    def flush(self, timeout: float | None = None) -> None:
        """Send at once whatever waits, and wait until every record sent before is done, well or badly.

        By then its callbacks have returned, too.

        ``timeout`` is in seconds; None waits as long as delivery may take (``delivery_timeout_ms``).
        Raises RequestTimedOutError when it is over; the records stay on their way.  Raises
        InvalidArgumentError when it is no number.
        """
        self._check_usable()
        if self._sender.is_current:
            raise IllegalStateError("flush() cannot be called in a callback: it would wait for itself.")
        timeout = seconds(timeout)
        until = None if timeout is None else monotonic() + timeout
        with self._lock:
            waiting = self._accumulator.incomplete()
            self._accumulator.urgent += 1
            self._sender.work.notify_all()
        try:
            for batch in waiting:
                settled(batch, None if until is None else max(0.0, until - monotonic()))
            with self._lock:
                telling = list(self._sender.telling.values())
            for told in telling:
                if not told.wait(None if until is None else max(0.0, until - monotonic())):
                    raise RequestTimedOutError("")
        except RequestTimedOutError:
            raise RequestTimedOutError(
                f"Not every record was acknowledged, and called back for, within {timeout:g} s.",
                advice="They stay on their way.",
            ) from None
        finally:
            with self._lock:
                self._accumulator.urgent -= 1

    def close(self, timeout: float | None = None) -> None:
        """Deliver what was sent, then end.  Harmless when it is closed already.

        ``timeout`` is in seconds; None waits as long as delivery may take (``delivery_timeout_ms``).  What is
        not acknowledged by then fails with ClientClosedError, as it does when Ctrl-C ends the wait.
        """
        timeout = seconds(timeout)
        if self._unusable is not None:
            return
        with self._lock:
            self._unusable = ClientClosedError
            self._accumulator.close()
        living.discard(self)
        if self._transactions is not None:
            self._transactions.close()
        if self._started:
            self._sender.close(timeout)
        else:
            self._session.close()

    stop = close

    def partitions_for(self, topic: str) -> set[int]:
        """The partitions of ``topic``.  Raises UnknownTopicOrPartitionError, RequestTimedOutError."""
        check_target(topic, None)
        return set(range((self._known(topic, None, monotonic() + self._max_block_s)).count))

    def metrics(self) -> dict[str, float]:
        """Counters since the start, by Kafka's names; times in milliseconds, sizes in bytes."""
        with self._lock:
            accumulator = self._accumulator
            return {
                **self._sender.tally.by_name(),
                **self._sender.throttle.by_name("produce"),
                "requests-in-flight": accumulator.in_flight,
                "buffer-total-bytes": accumulator.limits.buffer_memory,
                "buffer-available-bytes": accumulator.limits.buffer_memory - accumulator.used,
            }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = error is not None and not isinstance(error, Exception)
        self.close(INTERRUPTED_CLOSE_S if interrupted else None)

    # ---- inside

    def _is_in(self, batch: RowBatch, place: int) -> bool:
        with self._lock:
            return batch.has(place)

    def _stage(
        self,
        connection: Any,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int | None,
    ) -> StagedFuture:
        check_target(topic, partition)
        if self._transactions is not None:
            raise IllegalStateError(
                "The producer has a transactional_id: its records are a part of its own transactions.",
                advice="Send with connection= on a producer without one.",
            )
        # What can be found out without the program's transaction does not make that fail.
        known = self._known(topic, partition, monotonic() + self._max_block_s)
        check_sizes(Columns([key], [value], [0], None if headers is None else [headers]), known, self._limits)
        if partition is None:
            partition = randrange(known.count) if key is None else self._partitioner(key, known.count)
        if timestamp_ms is None:
            timestamp_ms = int(time() * 1000)
        if self._identity is None:
            self._identity = self._ask_identity()
        record = StagedRecord(topic, partition, key, value, headers, timestamp_ms)
        call = self._staging.stage(self._identity, record)
        run_borrowed(connection, call, self._staging.schema)
        sizes = (-1 if each is None else len(each) for each in (key, value))
        return StagedFuture(RecordMetadata(topic, partition, -1, timestamp_ms, CREATE_TIME, *sizes))

    def _ask_identity(self) -> str:
        own, _ = self._session.open()
        try:
            return own.run(self._staging.log_identity(), timeout_s=self.config.request_timeout_ms / 1000)
        finally:
            own.close()

    def _send_patiently(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int | None,
    ) -> SendFuture:
        check_target(topic, partition)
        deadline = monotonic() + self._max_block_s
        while True:
            self._known(topic, partition, deadline)
            with self._lock:
                self._check_usable()
                self._check_transaction()
                future = self._accumulator.add(topic, partition, key, value, headers, timestamp_ms, time())
                if future is not None:
                    self._sender.work.notify_all()
                    return future
                if self._accumulator.known(topic, partition) is not None:
                    self._room(deadline)

    def _take(self, topic: str, partition: int | None, part: Columns) -> list[tuple[BulkBatch, int, int]]:
        deadline = monotonic() + self._max_block_s
        accumulator = self._accumulator
        assigned: list[Piece] = []
        assigned_for = 0
        while True:
            if self._others_wait:
                self._let_others()
            known = self._known(topic, partition, deadline)
            if assigned_for != known.count:
                assigned_for = known.count
                assigned = pieces(part, partition, known.count, self._partitioner, known.max_record)
            with self._lock:
                self._check_usable()
                self._check_transaction()
                taken = accumulator.add_pieces(known, assigned)
                if taken is None:
                    self._room(deadline)
                    continue
                accumulator.attention = False
                self._others_wait = True
                self._sender.work.notify_all()
            return taken

    def _let_others(self) -> None:
        """Before a record is taken, for whoever is cancelled here has not sent it."""
        self._others_wait = False
        breathe()

    def _known(self, topic: str, partition: int | None, deadline: float) -> Topic:
        """The topic, if need be as soon as the server has been asked about it."""
        asked = False
        while True:
            if not self._connected:
                self.start()
            with self._lock:
                self._check_usable()
                known = self._accumulator.known(topic, partition)
            if known is not None:
                return known
            if asked:
                raise UnknownTopicOrPartitionError(
                    f"Topic {topic!r} has no partition {partition}.",
                    details={"topic": topic, "partition": partition},
                )
            self._sender.look_up(topic, max(0.0, deadline - monotonic()))
            asked = True

    def _room(self, deadline: float) -> None:
        """Under the lock: wait until something has left the buffer."""
        if self._transactions is not None:
            raise self._transactions.no_room()
        left = deadline - monotonic()
        if left <= 0:
            limits = self._accumulator.limits
            raise BufferExhaustedError(
                f"The buffer of {limits.buffer_memory} bytes stayed full for {self.config.max_block_ms} ms."
            )
        self._accumulator.urgent += 1
        try:
            self._sender.work.notify_all()
            self._sender.progress.wait(left)
        finally:
            self._accumulator.urgent -= 1

    def _check_transaction(self) -> None:
        """The lock must be held."""
        if self._transactions is not None:
            self._transactions.check_open("a record")

    def _topic(self, topic: str, partition: int | None) -> Topic:
        check_target(topic, partition)
        return self._known(topic, partition, monotonic() + self._max_block_s)

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise self._unusable()

    def forked(self) -> None:
        """In the child of a fork: nothing here may be used, and nothing may touch the parent's connection."""
        self._unusable = ForkedClientError
        self._accumulator.close()
        self._sender.forked(ForkedClientError())
        self._lock = self._sender.lock

    def at_exit(self) -> None:
        """The interpreter ends: do not wait for anybody."""
        self._unusable = ClientClosedError
        self._accumulator.close()
        self._sender.abort(ClientClosedError("The program ended before the record was acknowledged."))
