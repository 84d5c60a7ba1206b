"""A topic as its readers see it, by each of the ways in which it can be read."""

from __future__ import annotations

from typing import NamedTuple

from tests.support.kafka_rules import Record, Span
from tests.support.sqllog import Session, rows

__all__ = ["Place", "fetched", "looked_up", "places", "spans", "visible"]

EVERYTHING = 1 << 30


class Place(NamedTuple):
    """Where a partition begins, ends and writes."""

    log_start: int
    end: int
    segment: int
    segment_start: int
    compacted_to: int


def places(session: Session, topic_id: int) -> dict[int, Place]:
    """By partition."""
    found = rows(
        session,
        """SELECT p.partition, p.log_start, t.end_offset, p.segment, p.segment_start, p.compacted_to
           FROM topic_partition p,
                LATERAL partition_tips(array[p.topic_id], array[p.partition]) t
           WHERE p.topic_id = %s""",
        topic_id,
    )
    return {partition: Place(*each) for partition, *each in found}


def spans(session: Session, topic_id: int) -> dict[int, list[Span]]:
    """The segments of each partition in the order of their records, the one it writes to last."""
    found: dict[int, list[Span]] = {partition: [] for partition in places(session, topic_id)}
    for partition, *each in rows(
        session,
        """SELECT partition, first_offset, last_offset, bytes, max_timestamp
           FROM sealed_segment WHERE topic_id = %s
           UNION ALL
           SELECT p.partition, p.segment_start, t.end_offset - 1, t.bytes, t.max_timestamp
           FROM topic_partition p,
                LATERAL partition_tips(array[p.topic_id], array[p.partition]) t
           WHERE p.topic_id = %s AND t.bytes IS NOT NULL
           ORDER BY 1, 3""",
        topic_id,
        topic_id,
    ):
        found[partition].append(Span(*each))
    return found


def visible(session: Session, topic: str) -> dict[int, list[Record]]:
    """What the view of all records shows."""
    found: dict[int, list[Record]] = {}
    for partition, *each in rows(
        session,
        """SELECT partition, "offset", (extract(epoch from timestamp) * 1000)::int8, key, value
           FROM records WHERE topic = %s ORDER BY partition, "offset" """,
        topic,
    ):
        found.setdefault(partition, []).append(Record(*each))
    return found


def fetched(
    session: Session, topic_id: int, partition: int, offset: int, end: int, *, at_once: int = EVERYTHING
) -> list[Record]:
    """What a consumer gets that begins at ``offset`` and has come to ``end``."""
    got: list[Record] = []
    while offset < end:
        batches = rows(
            session,
            """SELECT base_offset, last_offset, record_count, max_timestamp, offset_deltas, timestamps, keys,
                      "values"
               FROM "fetch"(array[%s::int4], array[%s::int4], array[%s::int8], %s, %s)
               WHERE base_offset IS NOT NULL""",
            topic_id,
            partition,
            offset,
            at_once,
            at_once,
        )
        if not batches:
            # All that there was from here on has been compacted away, up to the end.
            return got
        for base, last, count, newest, deltas, timestamps, keys, values in batches:
            assert last >= offset, "a batch that was read already"
            for place in range(count):
                record = Record(
                    base + (place if deltas is None else deltas[place]),
                    newest if timestamps is None else timestamps[place],
                    None if keys is None else keys[place],
                    None if values is None else values[place],
                )
                if record.offset >= offset:
                    got.append(record)
            offset = last + 1
    return got


def looked_up(session: Session, topic_id: int, partition: int, spec: int) -> int | None:
    """What the consumer's ``offsets_for_times`` and the like answer."""
    ((found,),) = rows(
        session,
        'SELECT "offset" FROM list_offsets(array[%s::int4], array[%s::int4], array[%s::int8])',
        topic_id,
        partition,
        spec,
    )
    return None if found is None else int(found)
