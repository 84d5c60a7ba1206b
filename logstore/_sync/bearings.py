# Generated from logstore/_async/bearings.py by tools/unasync.py; edit that file.
"""What a fetcher has to know first: topics, positions, and whether the log is the one that it has read."""

from __future__ import annotations

import logging
import time

from logstore._core.calls import EARLIEST, Calls, TopicMetadata
from logstore._core.subscription import Subscription
from logstore._sync.concurrency import Condition, Lock
from logstore._sync.driver import Connection
from logstore._sync.replica_reads import ReplicaReads
from logstore._sync.tiered import resolved
from logstore.consumer_config import ConsumerConfig
from logstore.errors import UnknownTopicOrPartitionError
from logstore.records import TopicPartition

__all__ = ["Bearings"]

_log = logging.getLogger("logstore.consumer")


class Bearings:
    """The part of a fetcher that asks the leader for them."""

    _calls: Calls
    _config: ConsumerConfig
    _connection: Connection | None
    _lock: Lock
    _metadata_due: float
    _subscription: Subscription
    _timeout_s: float
    _topics: tuple[str, ...] | None
    changed: Condition
    replica: ReplicaReads | None

    def _tell(self) -> None:
        raise NotImplementedError

    def _metadata_is_due(self) -> bool:
        subscription = self._subscription
        stale = subscription.needs_metadata or time.monotonic() >= self._metadata_due
        return stale and bool(self._topics or subscription.topics())

    def _refresh_metadata(self) -> None:
        assert self._connection is not None
        with self._lock:
            topics = self._topics
            names = sorted(self._subscription.topics().union(topics or ()))
        found = self._connection.run(self._calls.metadata(names), timeout_s=self._timeout_s)
        with self._lock:
            if topics == self._topics:
                self._learn(topics, found)
            self._metadata_due = time.monotonic() + self._config.metadata_max_age_ms / 1000
            self.changed.notify_all()

    def _learn(self, topics: tuple[str, ...] | None, found: list[TopicMetadata]) -> None:
        subscription = self._subscription
        if topics is not None:
            before = subscription.assignment
            there = [
                TopicPartition(each.topic, number) for each in found for number in range(each.partitions)
            ]
            # A topic that is gone keeps its partitions, so that the next poll says so.
            names = {each.topic for each in found}
            gone = [tp for tp in before if tp.topic in topics and tp.topic not in names]
            wanted = [tp for tp in there if tp.topic in topics]
            # A partition added to a topic that is read already begins at its start: nothing of it was seen.
            begun = {tp.topic for tp in before}
            subscription.assign(
                [*gone, *(tp for tp in wanted if tp in before or tp.topic in begun)], EARLIEST
            )
            subscription.assign([*gone, *wanted])
            missing = [name for name in topics if name not in names and name not in begun]
            if missing:
                raise UnknownTopicOrPartitionError(
                    f"There is no topic {missing[0]!r}.", details={"topic": missing[0]}
                )
        subscription.learn({each.topic: (each.topic_id, each.partitions) for each in found})

    def _check_history(self) -> bool:
        """Ask whether what was read is still in the log, where that is not certain; whether it had to be."""
        assert self._connection is not None
        with self._lock:
            request = self._subscription.next_check()
        if request is None:
            return False
        rows = self._connection.run(self._calls.epoch_ends(*request[1:]), timeout_s=self._timeout_s)
        with self._lock:
            cut = self._subscription.checked(request, rows)
            self._tell()
            self.changed.notify_all()
            if self.replica is not None:
                self.replica.disturb()
        for tp, position, divergence in cut:
            _log.warning(
                "Partition %d of topic %s was cut off at offset %d: records that were read, up to offset %d, "
                "are not in the log any more.  Reading goes on at offset %d.",
                tp.partition,
                tp.topic,
                divergence,
                position - 1,
                divergence,
            )
        return True

    def _look_positions_up(self) -> bool:
        assert self._connection is not None
        with self._lock:
            request = self._subscription.pending_resets(round(time.time() * 1000))
            if request is None:
                return False
        call = self._calls.list_offsets(request.topic_ids, request.partitions, request.specs)
        try:
            rows = self._connection.run(call, timeout_s=self._timeout_s)
            rows = [
                resolved(
                    self._connection.run,
                    self._calls.schema,
                    request.topic_ids[row.idx - 1],
                    request.partitions[row.idx - 1],
                    row,
                )
                for row in rows
            ]
        except UnknownTopicOrPartitionError:
            with self._lock:
                self._subscription.needs_metadata = True
            return True
        with self._lock:
            self._subscription.offsets_listed(request, rows)
            self.changed.notify_all()
        return True
