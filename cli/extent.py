"""How far partitions reach: the numbers that several commands show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from logstore.errors import AuthorizationFailedError, UnknownTopicOrPartitionError
from logstore.records import TopicPartition
from logstore.topics import EARLIEST, LATEST, MAX_TIMESTAMP

if TYPE_CHECKING:
    from logstore import Admin, Consumer

__all__ = ["Extent", "all_partitions", "chosen", "extents", "partitions_of"]


class Extent(NamedTuple):
    """One partition: offsets from ``start`` up to but without ``end``."""

    topic: str
    partition: int
    start: int
    end: int
    newest: int | None
    """The highest time stamp, milliseconds; None for an empty partition."""
    gone: int = 0
    """Offsets in between whose records compaction or erasure has removed."""

    @property
    def records(self) -> int:
        return max(0, self.end - self.start - self.gone)

    def document(self) -> dict[str, Any]:
        return {
            "partition": self.partition,
            "start_offset": self.start,
            "end_offset": self.end,
            "records": self.records,
            "max_timestamp": self.newest,
        }


def partitions_of(admin: Admin, topics: Sequence[str]) -> list[TopicPartition]:
    """Every partition of ``topics``; an unknown topic raises."""
    return [
        TopicPartition(description.topic, number)
        for description in admin.describe_topics(topics)
        for number in range(description.partitions)
    ]


def all_partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    """Every partition of ``topic``, as a consumer sees it; an unknown topic raises."""
    numbers = consumer.partitions_for_topic(topic)
    if numbers is None:
        raise UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def chosen(
    there: Sequence[TopicPartition], topics: Sequence[str], partitions: Sequence[int]
) -> list[TopicPartition]:
    """The partitions asked for; one that a topic does not have raises."""
    if not partitions:
        return list(there)
    known = set(there)
    wanted = [TopicPartition(topic, number) for topic in topics for number in sorted(set(partitions))]
    for tp in wanted:
        if tp not in known:
            held = sum(other.topic == tp.topic for other in there)
            raise UnknownTopicOrPartitionError(
                f"Topic {tp.topic!r} has no partition {tp.partition}: it has {held}, numbered from 0.",
                advice=f"See `logstore topic describe {tp.topic}`.",
            )
    return wanted


def extents(admin: Admin, wanted: Iterable[TopicPartition]) -> list[Extent]:
    """Start, end, newest time stamp and number of records of each partition, in four round trips however many
    there are.
    """
    wanted = list(wanted)
    if not wanted:
        return []
    starts = admin.list_offsets(dict.fromkeys(wanted, EARLIEST))
    ends = admin.list_offsets(dict.fromkeys(wanted, LATEST))
    newest = admin.list_offsets(dict.fromkeys(wanted, MAX_TIMESTAMP))
    gone = _gone(admin, wanted)
    found = []
    for tp in wanted:
        start, end, last = starts[tp], ends[tp], newest[tp]
        if start is None or end is None:
            continue
        stamp = last.timestamp if last is not None and last.offset >= 0 else None
        found.append(Extent(tp.topic, tp.partition, start.offset, end.offset, stamp, gone.get(tp, 0)))
    return found


def _gone(admin: Admin, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """How many offsets of each partition have no record any more."""
    from psycopg.sql import SQL, Identifier

    from logstore.cli.query import connected
    from logstore.cli.root import settings

    found: dict[TopicPartition, int] = {}
    # Whoever may not look at the view gets the numbers of a log that nobody compacts.
    if admin.dsn is not None:
        with suppress(AuthorizationFailedError), connected(admin.dsn, settings().schema) as connection:
            query = SQL(
                "SELECT topic, partition, log_end_offset - log_start - records FROM {}.partitions"
                " WHERE topic = ANY (%s)"
            ).format(Identifier(settings().schema))
            rows = connection.execute(query, [sorted({tp.topic for tp in wanted})])
            found = {TopicPartition(topic, partition): count for topic, partition, count in rows}
    return found
