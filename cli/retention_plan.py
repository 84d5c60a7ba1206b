"""What retention would do now, and why: read in one snapshot, which changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from logstore.cli.clients import open_admin
from logstore.cli.root import settings
from logstore.errors import UnknownTopicOrPartitionError

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

__all__ = ["Holder", "Part", "Segment", "TopicPlan", "Waiting", "holders", "plans", "snapshot", "waiting"]

POLICY = ("cleanup.policy", "retention.ms", "retention.bytes", "segment.ms", "segment.bytes")
"""The configs that say what becomes of old records."""


class Part(NamedTuple):
    """What one partition has in one segment."""

    partition: int
    segment: int
    first_offset: int
    last_offset: int
    records: int
    bytes: int
    max_timestamp: int
    writing: bool
    """The partition would append to it."""
    reason: str | None
    """Why it goes: ``retention.ms``, ``retention.bytes``, ``log start`` (it was deleted); None: it stays."""


@dataclass
class Segment:
    """A segment as a whole."""

    number: int
    active: bool
    disk_bytes: int
    parts: list[Part] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def expired_bytes(self) -> int:
        return sum(part.bytes for part in self.parts if part.reason is not None)

    @property
    def kept_for(self) -> list[int]:
        """The partitions that have records in it which stay."""
        return [part.partition for part in self.parts if part.reason is None]

    @property
    def action(self) -> str:
        """``drop``, ``rewrite`` (without what has expired) or ``keep``."""
        written = self.active or any(part.writing for part in self.parts)
        if not self.kept_for and (self.parts or not written):
            return "drop"
        return "rewrite" if not written and 2 * self.expired_bytes >= self.bytes else "keep"


@dataclass
class TopicPlan:
    """One topic: what its configs say and what that means for what it has."""

    topic: str
    configs: dict[str, str]
    warnings: list[tuple[str, str]]
    rolls: bool
    """Its active segment is old enough to be closed."""
    parts: list[Part]
    segments: list[Segment]

    @property
    def going(self) -> list[Part]:
        """What goes by this run; not what lies below the log start already."""
        return [part for part in self.parts if part.reason not in (None, "log start")]

    @property
    def dropped(self) -> list[Segment]:
        return [segment for segment in self.segments if segment.action == "drop"]

    @property
    def oldest(self) -> int | None:
        """When the oldest segment that stays had its newest record."""
        return min((part.max_timestamp for part in self.parts if part.reason is None), default=None)


class Waiting(NamedTuple):
    """Dropped segments whose tables are still there."""

    topic: str | None
    """None: it was deleted as well."""
    segments: int
    bytes: int
    due_ms: int
    """When the first of them may go, in ms since the epoch."""
    now_ms: int


class Holder(NamedTuple):
    """A session that the tables of dropped segments may be waiting for."""

    pid: int
    application: str
    state: str
    seconds: float


@contextmanager
def snapshot() -> Iterator[Connection]:
    """A transaction that sees one state of the log, and could not change it."""
    from psycopg import IsolationLevel

    from logstore.cli.query import connected, search_path
    from logstore.embedded.dsn import resolve

    with open_admin() as admin:
        admin.list_topics()  # says what to do when there is no log, or an older one
        resolved = resolve(settings().dsn, settings().schema)
        try:
            with connected(resolved.dsn, settings().schema) as connection:
                connection.rollback()
                connection.isolation_level = IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                connection.execute(search_path(settings().schema, local=True))
                yield connection
        finally:
            if resolved.keep is not None:
                resolved.keep.close()


def plans(connection: Connection, topics: Sequence[str]) -> list[TopicPlan]:
    """Of these topics (none: of all), in order of their names; an unknown one raises."""
    rows = connection.execute(
        "SELECT t.name, t.topic_id, t.active_segment, t.roll_at <= clock_ms(), effective_configs(t.configs),"
        " (SELECT coalesce(json_agg(json_build_array(w.config, w.warning)), '[]')"
        "  FROM config_warnings(t.configs) w)"
        " FROM topic t WHERE %s::text[] IS NULL OR t.name = ANY (%s) ORDER BY t.name",
        [list(topics) or None, list(topics)],
    ).fetchall()
    if unknown := sorted(set(topics) - {name for name, *_ in rows}):
        raise UnknownTopicOrPartitionError(
            f"There is no topic {unknown[0]!r}.", details={"topic": unknown[0]}
        )
    found = []
    for name, topic_id, active, old, configs, warnings in rows:
        parts = [
            Part(*row)
            for row in connection.execute(
                'SELECT "partition", segment, first_offset, last_offset, records, bytes, max_timestamp,'
                " writing, reason FROM retention_parts(%s)",
                [topic_id],
            )
        ]
        segments = {
            number: Segment(number, number == active, size)
            for number, size in connection.execute(
                "SELECT s.segment, coalesce(pg_total_relation_size("
                "  to_regclass(format('b_%%s_%%s', s.topic_id, s.segment))), 0)"
                " FROM topic_segment s WHERE s.topic_id = %s AND s.live ORDER BY s.place",
                [topic_id],
            )
        }
        for part in parts:
            if part.segment in segments:
                segments[part.segment].parts.append(part)
        rolls = old and any(part.writing and part.segment == active for part in parts)
        found.append(
            TopicPlan(
                name,
                {each: configs[each] for each in POLICY},
                [(config, warning) for config, warning in warnings],
                rolls,
                parts,
                list(segments.values()),
            )
        )
    return found


def waiting(connection: Connection) -> list[Waiting]:
    """Dropped segments whose tables are still there, topic by topic."""
    return [
        Waiting(*row)
        for row in connection.execute(
            "SELECT t.name, count(*), sum(d.bytes)::int8, min(d.free_at), clock_ms()"
            " FROM dropped_segment d LEFT JOIN topic t USING (topic_id) GROUP BY t.name ORDER BY 1"
        )
    ]


def holders(connection: Connection) -> list[Holder]:
    """Transactions of this database that have been open for a second or more, the oldest first."""
    return [
        Holder(*row)
        for row in connection.execute(
            "SELECT pid, application_name, coalesce(state, ''),"
            " extract(epoch FROM clock_timestamp() - xact_start)::float8"
            " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend' AND xact_start < clock_timestamp() - interval '1 s'"
            " ORDER BY xact_start LIMIT 5"
        )
    ]
