"""What a consumer knows of one partition."""

from __future__ import annotations

from collections import deque
from typing import Final

from logstore._core.fetched import DecodedBatch, FetchedBatch
from logstore.errors import LogstoreError, UnknownTopicOrPartitionError
from logstore.records import TopicPartition

__all__ = ["READ_AHEAD", "PartitionState", "gone", "missing"]

READ_AHEAD: Final = 2
"""Fetches kept per partition: the one being handed out and the next."""


class PartitionState:
    """One assigned partition."""

    __slots__ = (
        "awaiting",
        "batches",
        "continues",
        "doubted",
        "epoch_since",
        "error",
        "fetch_epoch",
        "fetch_offset",
        "fetches",
        "high_watermark",
        "log_end",
        "log_start",
        "paused",
        "ready",
        "remote",
        "reset",
        "taken_from",
        "told",
        "topic_id",
        "tp",
    )

    def __init__(self, tp: TopicPartition, reset: int | None, *, awaiting: bool = False) -> None:
        self.tp = tp
        self.topic_id: int | None = None
        """None: not looked up yet."""
        self.reset = reset
        """What to ask ``list_offsets`` for; None: what the reset policy says.  Counts while ``fetch_offset``
        is None.
        """
        self.awaiting = awaiting
        """Whether there is a committed offset is not known yet: no reset before :meth:`anchor`."""
        self.fetch_offset: int | None = None
        """Where the next fetch begins: behind everything in ``batches``.  None: not known, has to be reset.
        """
        self.batches: deque[FetchedBatch | DecodedBatch] = deque()
        self.fetches: deque[int] = deque()
        """For each fetch that ``batches`` came from, the offset at which it ends."""
        self.fetch_epoch: int | None = None
        """The leader epoch of what comes before ``fetch_offset``; None: not known, after a seek."""
        self.epoch_since = 0
        """From here on, at the latest, what was read is of ``fetch_epoch``."""
        self.doubted = False
        """What was read may not be in the log any more; nothing is fetched or handed out before
        :meth:`Histories.checked` says that it is."""
        self.taken_from: tuple[int, int | None] | None = None
        """The position before the last records were handed out, and the leader epoch of what came before."""
        self.continues = False
        """The log was asked: what comes next may be of a later epoch."""
        self.paused = False
        self.ready = False
        """It is in the queue of those that have records."""
        self.error: LogstoreError | None = None
        """Raised to the user when the buffered records are used up."""
        self.told = False
        """An error was raised to the user; nothing is tried before :meth:`Subscription.try_again`."""
        self.remote = False
        """The next records are in files, as the last fetch said."""
        self.log_start: int | None = None
        self.high_watermark: int | None = None
        self.log_end: int | None = None
        """What lies between the high watermark and this is there, but not safe yet."""

    @property
    def stopped(self) -> bool:
        return self.error is not None or self.told

    @property
    def position(self) -> int | None:
        return self.batches[0].next_offset if self.batches else self.fetch_offset

    @property
    def position_epoch(self) -> int | None:
        """The leader epoch of what comes before the position; None: not known, after a seek."""
        return self.batches[0].epoch_before if self.batches else self.fetch_epoch

    def goes_on_under(self, epoch: int) -> bool:
        """What comes next is of ``epoch``: whether the log has to be asked first, because it may go on from
        here under another epoch, or it may have parted before.
        """
        self.doubted = self.fetch_epoch not in (None, epoch) and not self.continues
        self.continues = False
        return self.doubted

    def begin_after(self, epoch: int | None) -> None:
        """What comes before ``fetch_offset`` was read under ``epoch``; None: that is not known."""
        self.fetch_epoch = epoch
        self.epoch_since = max(0, (self.fetch_offset or 0) - 1)
        self.doubted = epoch is not None
        self.continues = False

    def move(self, offset: int | None, reset: int | None = None) -> int:
        """Goes to ``offset`` (None: to be reset); the size of the buffered batches that this threw away."""
        dropped = sum(batch.size for batch in self.batches)
        self.batches.clear()
        self.fetches.clear()
        self.error = None
        self.told = False
        self.awaiting = False
        self.remote = False
        self.taken_from = None
        self.begin_after(None)
        self.fetch_offset = offset
        self.reset = reset
        return dropped


def missing(tp: TopicPartition, partitions: int) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(
        f"Topic {tp.topic!r} has no partition {tp.partition}: it has {partitions}."
        if partitions
        else f"There is no topic {tp.topic!r}.",
        details={"topic": tp.topic, "partition": tp.partition},
    )


def gone(tp: TopicPartition) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(
        f"Partition {tp.partition} of topic {tp.topic!r} does not exist any more.",
        details={"topic": tp.topic, "partition": tp.partition},
    )
