"""Topics as a producer knows them: their limits, and a queue of batches for each partition."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from logstore._core.batch import BATCH_OVERHEAD, RECORD_OVERHEAD, Batch
from logstore._core.calls import TopicMetadata
from logstore._core.sequences import Numbering
from logstore.errors import RecordTooLargeError

__all__ = ["Limits", "PartitionQueue", "Topic", "too_large"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    batch_size: int
    buffer_memory: int
    max_request_size: int
    linger_s: float
    delivery_timeout_s: float
    retries: int
    request_bytes: int = 4 << 20
    """How much one request carries before further partitions have to wait for the next."""
    request_batches: int = 512
    """How many batches that may be.  PostgreSQL takes 1,664 columns at most, and asyncpg 32,767 arguments, 15
    for each batch.
    """


class PartitionQueue:
    """The batches of one partition."""

    __slots__ = ("batches", "in_flight", "numbering", "open", "partition", "retry_at", "topic")

    def __init__(self, topic: Topic, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.batches: deque[Batch] = deque()
        """Those that are not under way, in order."""
        self.open: Batch | None = None
        """The last of them, while it takes new records."""
        self.in_flight: Batch | None = None
        self.numbering: Numbering | None = None
        """From its first batch on, with an idempotent producer."""
        self.retry_at = 0.0


class Topic:
    """A topic as the server last described it, with a queue for each partition."""

    __slots__ = (
        "count",
        "max_batch",
        "max_message_bytes",
        "max_record",
        "name",
        "queues",
        "refreshed",
        "sticky",
        "sticky_left",
        "topic_id",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id = 0
        self.count = 0
        self.queues: list[PartitionQueue] = []
        self.max_message_bytes = 0
        self.max_batch = 0
        """The largest row that the log takes, by size."""
        self.max_record = 0
        self.sticky: PartitionQueue | None = None
        self.sticky_left = 0
        self.refreshed = 0.0

    def describe(self, metadata: TopicMetadata, limits: Limits, now: float) -> list[PartitionQueue]:
        """Take over what the server says; the result are queues of partitions that are gone."""
        self.refreshed = now
        self.topic_id = metadata.topic_id
        self.max_message_bytes = metadata.max_message_bytes
        self.max_batch = max(
            min(metadata.max_message_bytes, limits.max_request_size), BATCH_OVERHEAD + RECORD_OVERHEAD
        )
        self.max_record = min(self.max_batch, limits.buffer_memory) - BATCH_OVERHEAD
        self.count = metadata.partitions
        for partition in range(len(self.queues), self.count):
            self.queues.append(PartitionQueue(self, partition))
        gone = self.queues[self.count :]
        del self.queues[self.count :]
        if self.sticky in gone:
            self.sticky = None
        return gone


def too_large(topic: Topic, size: int, limits: Limits) -> RecordTooLargeError:
    """A record of ``size`` bytes does not fit; the error names the limit that it breaks."""
    bounds = {
        "max_request_size": limits.max_request_size,
        "buffer_memory": limits.buffer_memory,
        f"max.message.bytes of topic {topic.name!r}": topic.max_message_bytes,
    }
    name = min(bounds, key=bounds.__getitem__)
    needed = size + BATCH_OVERHEAD
    return RecordTooLargeError(
        f"A record of {needed} bytes is larger than {name}, which is {bounds[name]}.",
        details={"topic": topic.name, "size": needed, "limit": bounds[name]},
    )
