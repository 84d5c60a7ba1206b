"""Closed segments to compact, and compaction driven step by step."""

from __future__ import annotations

from typing import Any

from tests.support.sqllog import Session, append, rows, value

__all__ = [
    "HOURS",
    "Record",
    "all_records",
    "audit",
    "close_segments",
    "compact",
    "compacted",
    "create",
    "ends",
    "keyed",
    "sources",
    "start",
    "steps",
]

HOURS = 3_600_000

Record = tuple[Any, ...]
"""Partition, offset, key, value, time stamp, headers."""


def create(session: Session, name: str = "t", partitions: int = 1, **configs: str) -> int:
    """A compacted topic, unless ``configs`` (with _ for .) say otherwise; its id."""
    named = {"cleanup.policy": "compact"} | {name.replace("_", "."): text for name, text in configs.items()}
    given = "{" + ", ".join(f'"{name}": "{text}"' for name, text in named.items()) + "}"
    topic_id: int = value(session, "SELECT create_topic(%s, %s, %s)", name, partitions, given)
    return topic_id


def keyed(session: Session, topic_id: int, partition: int = 0, /, **pairs: str | None) -> None:
    """Append one batch of these keys and values."""
    append(
        session,
        topic_id,
        [None if text is None else text.encode() for text in pairs.values()],
        partition,
        keys=[key.encode() for key in pairs],
    )


def close_segments(session: Session, topic_id: int) -> None:
    """Everything that is in the topic now is in segments that nobody writes to."""
    with session.transaction():
        session.execute("SELECT pg_advisory_xact_lock(lock_class('guard'), %s)", [topic_id])
        session.execute(
            "SELECT roll_segment(%s, (SELECT active_segment FROM topic WHERE topic_id = %s))",
            [topic_id, topic_id],
        )
    while value(session, "SELECT more FROM roll_topic(%s)", topic_id):
        pass


def sources(session: Session, topic_id: int) -> list[int]:
    """The closed segments, oldest first."""
    return [
        segment
        for (segment,) in rows(
            session,
            "SELECT segment FROM topic_segment s WHERE topic_id = %s AND live AND NOT EXISTS (SELECT FROM "
            "topic_partition p WHERE p.topic_id = s.topic_id AND p.segment = s.segment) ORDER BY place",
            topic_id,
        )
    ]


def start(session: Session, topic_id: int, kind: str = "compact") -> None:
    """All closed segments are to be written anew."""
    given = sources(session, topic_id)
    assert value(session, "SELECT start_rewrite(%s, %s, %s)", topic_id, kind, given)


def steps(session: Session, topic_id: int, max_records: int = 250_000) -> list[str]:
    """What is under way is done; the steps that took."""
    phases = []
    while True:
        ((phase, _, finished),) = rows(session, "SELECT * FROM rewrite_step(%s, %s)", topic_id, max_records)
        assert phase != "busy"
        phases.append(phase)
        if finished:
            return phases


def compact(session: Session, topic_id: int, max_records: int = 250_000) -> list[str]:
    """Compact all that is in closed segments."""
    start(session, topic_id)
    return steps(session, topic_id, max_records)


def all_records(session: Session, topic: str = "t") -> list[Record]:
    """Every record, as the view shows it."""
    return rows(
        session,
        'SELECT partition, "offset", key, value, "timestamp", headers::text FROM records WHERE topic = %s '
        "ORDER BY 1, 2",
        topic,
    )


def compacted(before: list[Record], ends: dict[int, int]) -> list[Record]:
    """What compaction of everything below ``ends``, by partition, leaves; without a look at tombstones."""
    last = {(each[0], each[2]): each[1] for each in before if each[1] < ends[each[0]]}
    return [each for each in before if each[1] >= ends[each[0]] or last[each[0], each[2]] == each[1]]


def ends(session: Session, topic_id: int) -> dict[int, int]:
    """Where the closed segments end, by partition."""
    return dict(
        rows(session, "SELECT partition, segment_start FROM topic_partition WHERE topic_id = %s", topic_id)
    )


def audit(session: Session, topic_id: int) -> list[Any]:
    """What ``logstore verify`` finds wrong with the topic."""
    found = rows(session, "SELECT * FROM verify_catalog(%s)", topic_id)
    for (segment,) in rows(
        session, "SELECT segment FROM topic_segment WHERE topic_id = %s AND live", topic_id
    ):
        found += rows(session, "SELECT * FROM verify_segment(%s, %s)", topic_id, segment)
    return found + rows(session, "SELECT * FROM verify_producers(%s)", topic_id)
