# Generated from logstore/_async/share_member.py by tools/unasync.py; edit that file.
"""What a member of a share group says to the server: acquire, fetch, acknowledge, and wait.

Used by one task at a time.  ``lock`` guards the ledger, which the program's acknowledgements touch as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from logstore._core.calls import FetchRow, ServerInfo
from logstore._core.fetch_tally import FetchTally
from logstore._core.fetched import Deserializers, FetchedBatch
from logstore._core.pace import Way
from logstore._core.quota_calls import QuotaCalls
from logstore._core.share_calls import AcquiredRange, ShareCalls
from logstore._core.share_ledger import RETURN, Ledger, Place, Settled
from logstore._core.throttle import Throttle, refused_for_ms
from logstore._sync.concurrency import Lock
from logstore._sync.driver import Connection
from logstore._sync.questions import NOWHERE
from logstore._sync.session import Session
from logstore._sync.waiting import Waiting
from logstore.errors import LogstoreError, SerializationError, ThrottlingQuotaExceededError
from logstore.records import ConsumerRecord, TopicPartition
from logstore.share import ACCEPT, RELEASE, RENEW, ShareRecord
from logstore.share_config import ShareConsumerConfig

__all__ = ["Delivery", "Member"]

_log = logging.getLogger("logstore.share")

SETTING_S: Final = 1.0
"""How often, at most, the server is asked whether followers have to have what is acquired."""


class Delivery(NamedTuple):
    """Records of one partition that were acquired together."""

    tp: TopicPartition
    place: Place
    deadline: float
    """When their lock runs out, or a little earlier; seconds of the monotonic clock."""
    records: list[ShareRecord]


class Member:
    def __init__(
        self, config: ShareConsumerConfig, session: Session, member_id: str, ledger: Ledger, lock: Lock
    ) -> None:
        self._config = config
        self._session = session
        self._calls = ShareCalls(config.schema)
        self._timeout_s = config.request_timeout_ms / 1000
        self._deserializers = Deserializers(config.key_deserializer, config.value_deserializer)
        self._ledger = ledger
        self._lock = lock
        self.member_id = member_id
        self._connection: Connection | None = None
        self._waiting: Waiting | None = None
        self._topics: tuple[str, ...] = ()
        self._topic_ids: list[int] = []
        self._ordered = bool(config.key_ordered)
        self._unsure = False
        """The answer to an acquire was lost: the server may think that we have records we do not know of."""
        self._lock_s = 0.0
        self._due_s: float | None = None
        self._seals = False
        """Records may be acquired only once followers have them."""
        self._setting_s = 0.0
        """When that was looked at last: it can be changed while we are connected."""
        self._places: list[tuple[int, int]] = []
        """The ids of the topics, each with the number of each partition."""
        self._marks: list[int | None] = []
        """The high watermarks there, at the last look."""
        self._stirred = True
        """Somebody has appended, or may have."""
        self._stirred_s = 0.0
        """When that was noticed."""
        self._looked_s = 0.0
        self.tally = FetchTally()
        self.throttle = Throttle()
        """Set by what the server says of the quota; nothing is acquired before it is over."""
        self._quota_calls = QuotaCalls(config.schema)
        self.failure: LogstoreError | None = None
        """A record could not be deserialized; to be raised when there is nothing to hand out before it."""

    # -- connection ------------------------------------------------------------------------------------------

    def connect(self, topics: tuple[str, ...]) -> Connection:
        """The connection, with the group made and ``topics`` known."""
        connection = self._connection
        if connection is None or connection.closed:
            self.disconnect()
            connection, info = self._session.open()
            self._connection = connection
            self._is_set(info, connection)
            self._waiting = Waiting(
                connection,
                self._calls,
                self._config.wakeup,
                follower=info.is_in_recovery,
                timeout_s=self._timeout_s,
                max_wait_ms=self._config.fetch_max_wait_ms,
                attends=False,  # between two polls nobody would
            )
            self._topics = ()
        if topics and topics != self._topics:
            config = self._config
            self._topic_ids = connection.run(
                self._calls.open_share_group(config.group_id, topics, key_ordered=config.key_ordered),
                timeout_s=self._timeout_s,
            )
            self._topics = topics
            rows = connection.run(
                self._calls.describe_share_configs(config.group_id), timeout_s=self._timeout_s
            )
            self._places = []
            configs = {row.name: row.value for row in rows}
            self._ordered = configs["share.key.ordered"] == "true"
            self._lock_s = int(configs["share.record.lock.duration.ms"]) / 1000
        return connection

    def disconnect(self) -> None:
        """Close the connection; the next use makes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """Make :meth:`wait` return at once.  Any thread may call it."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def abandon(self) -> None:
        """Drop the connection without a word."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # -- acknowledging ---------------------------------------------------------------------------------------

    @property
    def lock_ms(self) -> int | None:
        """How long a lock lasts; None: not known yet."""
        return round(self._lock_s * 1000) or None

    def say_goodbye(self, timeout_s: float) -> None:
        """Send what is pending, if there still is a connection."""
        connection = self._connection
        if connection is not None and not connection.closed:
            if self._unsure:
                self._recover(connection, timeout_s)
            self.tell(connection, timeout_s)

    def tell(self, connection: Connection, timeout_s: float | None = None) -> Settled:
        """Send the acknowledgements that are pending, and what the server says of them."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        answer = Settled([], [])
        while True:
            with self._lock:
                request = self._ledger.request()
            if request is None:
                return answer
            asked = time.monotonic()
            call = self._calls.acknowledge(self._config.group_id, self.member_id, request)
            try:
                refused = connection.run(call, timeout_s=timeout_s)
            except BaseException:
                with self._lock:
                    self._ledger.unsettled()
                raise
            with self._lock:
                settled = self._ledger.settled(refused, asked, time.monotonic(), self._lock_s)
            answer.done.extend(settled.done)
            answer.refused.extend(settled.refused)
            if self._ordered or any(kind not in (ACCEPT, RENEW) for kind in request.types):
                # There may be work for members that wait.
                wake = self._calls.wake(sorted(set(request.topic_ids)))
                connection.run(wake, timeout_s=timeout_s)

    # -- acquiring -------------------------------------------------------------------------------------------

    def acquire(self, connection: Connection, count: int) -> list[Delivery]:
        """Acquire up to ``count`` records and bring them."""
        config = self._config
        if self._unsure:
            self._recover(connection, self._timeout_s)
        asked = time.monotonic()
        self._unsure = True
        answer = connection.run(
            self._calls.acquire(
                config.group_id, self.member_id, self._topics, count, key_ordered=config.key_ordered
            ),
            timeout_s=self._timeout_s,
        )
        self._unsure = False
        self._lock_s = answer.lock_ms / 1000
        self._due_s = None if answer.wait_ms is None else answer.wait_ms / 1000
        now = time.monotonic()
        self._looked_s = now - asked
        if not answer.ranges:
            return []
        self._stir(now)
        if self._waiting is not None:
            self._waiting.pace.found(now)
        deadline = asked + self._lock_s
        ranges = sorted(answer.ranges, key=lambda each: each[1:])
        try:
            rows = connection.run(
                self._calls.fetch_records(
                    [each.topic_id for each in ranges],
                    [each.partition for each in ranges],
                    [each.first_offset for each in ranges],
                    [each.last_offset for each in ranges],
                    config.fetch_max_bytes,
                ),
                timeout_s=self._timeout_s,
            )
            self.tally.fetched(rows, time.monotonic() - now)
            self._throttled(rows.throttle_ms)
            return self._decode(ranges, rows, deadline)
        except ThrottlingQuotaExceededError as error:
            self._throttled(refused_for_ms(error.details))
            self._give_back(ranges, deadline)
            return []
        except BaseException:
            self._give_back(ranges, deadline)
            raise

    def _throttled(self, throttle_ms: int) -> None:
        """An answer said how long to wait, by the quota; 0: not at all."""
        if self.throttle.told(throttle_ms, time.monotonic()):
            _log.warning(
                "Client %r has used up its consumer quota; it acquires nothing more for %d ms.",
                self._config.client_id,
                throttle_ms,
            )

    def has_quota(self, connection: Connection) -> bool:
        """Whether something may be acquired now; who has to wait for long asks from time to time."""
        if self.throttle.to_ask(time.monotonic()):
            left_ms: int | None = None
            call = self._quota_calls.quota_state("fetch")
            try:
                left_ms = connection.run(call, timeout_s=self._timeout_s)
            finally:
                self.throttle.asked(left_ms, time.monotonic())
        return self.throttle.left(time.monotonic()) <= 0

    def give_back(self, left: Iterable[tuple[Delivery, ShareRecord]]) -> None:
        """These were never handed out: others may have them, and it does not count as a delivery.  Needs the
        lock.
        """
        for delivery, record in left:
            self._ledger.settle_early(
                delivery.tp.topic, delivery.place, (record.offset,), delivery.deadline, RETURN
            )

    def _give_back(self, ranges: Sequence[AcquiredRange], deadline: float) -> None:
        with self._lock:
            for each in ranges:
                self._ledger.settle_early(
                    self._topics[each.idx - 1] if each.idx else "",
                    Place(each.topic_id, each.partition),
                    range(each.first_offset, each.last_offset + 1),
                    deadline,
                    RETURN,
                )

    def _recover(self, connection: Connection, timeout_s: float) -> None:
        """Give back what an acquire whose answer was lost may have brought."""
        ranges = connection.run(
            self._calls.acquired(self._config.group_id, self.member_id), timeout_s=timeout_s
        )
        self._unsure = False
        now = time.monotonic()
        names = dict(zip(self._topic_ids, self._topics, strict=True))
        with self._lock:
            for each in ranges:
                place = Place(each.topic_id, each.partition)
                offsets = [
                    offset
                    for offset in range(each.first_offset, each.last_offset + 1)
                    if not self._ledger.knows(place, offset)
                ]
                self._ledger.settle_early(
                    names.get(each.topic_id, ""), place, offsets, now + each.lock_ms / 1000, RETURN
                )
        self.tell(connection, timeout_s)

    def _decode(
        self, ranges: Sequence[AcquiredRange], rows: Sequence[FetchRow], deadline: float
    ) -> list[Delivery]:
        counts: dict[Place, dict[int, int]] = {}
        topics: dict[Place, str] = {}
        for each in ranges:
            place = Place(each.topic_id, each.partition)
            topics[place] = self._topics[each.idx - 1]
            counts.setdefault(place, {}).update(
                dict.fromkeys(range(each.first_offset, each.last_offset + 1), each.delivery_count)
            )
        deliveries: dict[Place, Delivery] = {}
        stopped: tuple[int, int, int] | None = None
        for row in rows:
            begun = ranges[row.idx - 1]
            place = Place(begun.topic_id, begun.partition)
            assert row.base_offset is not None
            if not row.record_count:
                stopped = (*place, row.base_offset)
                break
            tp = TopicPartition(topics[place], place.partition)
            wanted = counts[place]
            records = [
                ShareRecord(*record, wanted.pop(record.offset))
                for record in self._records(FetchedBatch(tp, row, 0), wanted, place, deadline)
            ]
            if place in deliveries:
                deliveries[place].records.extend(records)
            elif records:
                deliveries[place] = Delivery(tp, place, deadline, records)
        with self._lock:
            for place, left in counts.items():
                # Records that have left the log need nothing more; those beyond fetch_max_bytes go back.
                split = 2**63 if stopped is None or place < stopped[:2] else 0
                if stopped is not None and place == stopped[:2]:
                    split = stopped[2]
                for kind, offsets in (
                    (ACCEPT, [offset for offset in left if offset < split]),
                    (RETURN, [offset for offset in left if offset >= split]),
                ):
                    self._ledger.settle_early(topics[place], place, offsets, deadline, kind)
        return list(deliveries.values())

    def _records(
        self, batch: FetchedBatch, wanted: dict[int, int], place: Place, deadline: float
    ) -> list[ConsumerRecord]:
        """The records of a batch; one that cannot be deserialized is released and its error kept."""
        records: list[ConsumerRecord] = []
        while batch.remaining:
            try:
                records += batch.take(batch.remaining, self._deserializers)
            except SerializationError as error:
                (bad,) = batch.take(1, Deserializers())
                del wanted[bad.offset]
                with self._lock:
                    self._ledger.settle_early(
                        bad.topic, place, [bad.offset], deadline, RELEASE, str(error.message)
                    )
                error.advice = (
                    "It was released, and becomes a dead letter when it has been delivered too often."
                )
                self.failure = error
        return records

    def _is_set(self, info: ServerInfo, connection: Connection) -> None:
        self._seals = info.replicated and not connection.access.read_only
        self._setting_s = time.monotonic()

    def _stir(self, now: float) -> None:
        self._stirred, self._stirred_s = True, now

    def _look_at_setting(self, connection: Connection, now: float) -> float:
        """Ask, at most once a second, whether followers are waited for.

        In how many seconds that is due; 0: it is known.
        """
        if self._setting_s >= self._stirred_s:
            return 0.0
        wait_s = self._setting_s + SETTING_S - now
        if wait_s <= 0:
            self._is_set(connection.run(self._calls.info(), timeout_s=self._timeout_s), connection)
        return 0.0 if self._seals else max(0.0, wait_s)

    def _have_sealed(self, connection: Connection) -> bool:
        """Whether there are records that may not be read yet, or only since the last look.

        If they may not, the leader looks what is replicated.
        """
        if not self._seals:
            return False
        if not self._places:
            found = connection.run(self._calls.metadata(self._topics), timeout_s=self._timeout_s)
            self._places = [(each.topic_id, number) for each in found for number in range(each.partitions)]
        if not self._places:
            return False
        topic_ids, partitions = zip(*self._places, strict=True)
        call = self._calls.fetch(topic_ids, partitions, [NOWHERE] * len(partitions), 1, 1)
        rows = connection.run(call, timeout_s=self._timeout_s)
        pending = any((row.log_end or 0) > (row.high_watermark or 0) for row in rows)
        if pending:
            connection.run(self._calls.seal(), timeout_s=self._timeout_s)
        before, self._marks = self._marks, [row.high_watermark for row in rows]
        return pending or self._marks != before

    # -- waiting ---------------------------------------------------------------------------------------------

    def wait(self, connection: Connection, longest_s: float) -> None:
        """After an acquire that brought nothing: until there may be something, or ``longest_s`` is over."""
        assert self._waiting is not None
        now = time.monotonic()
        pace = self._waiting.pace
        # Whoever appends wakes us before it may be read.
        if self._stirred and self.throttle.left(now) <= 0:
            again_s = self._look_at_setting(connection, now)
            if self._have_sealed(connection):
                connection.wait_notify(min(pace.hasten().seconds, longest_s))
                return
            self._stirred = again_s > 0
            longest_s = min(longest_s, again_s or longest_s)
        pause = pace.pause(now, self._looked_s)
        seconds = min(pause.seconds, longest_s)
        if self.throttle.left(now) > 0:
            self._waiting.not_waiting()
            connection.wait_notify(min(longest_s, self.throttle.pause(now)))
            return
        if self._due_s is not None:
            seconds = min(seconds, max(self._due_s, 0.0))
        if pause.way is Way.WAKE and self._waiting.announced(self._topic_ids):
            self._stir(time.monotonic())
            return
        if pause.way is not Way.WAKE:
            connection.wait_notify(seconds)
        elif not self._waiting.sleep(seconds):
            self._stir(time.monotonic())
        elif self._waiting.outbox.due_in(time.monotonic()) <= 0:
            drained = self._waiting.outbox.look()
            # Acquiring and draining take turns, so that both together are less than one query a second.
            if seconds == pause.seconds and set(self._topic_ids).isdisjoint(drained):
                self._waiting.sleep(min(seconds, longest_s - seconds))
