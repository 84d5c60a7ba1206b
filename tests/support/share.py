"""A share group as the server sees it: one call each, no client around it, and time that a test lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from logstore._core.share_calls import Acknowledgements, Acquired, Refused, ShareCalls
from logstore.share import ACCEPT
from tests.support.appender import Appender
from tests.support.programs import eventually

__all__ = ["Queue", "Row"]

Delivered = tuple[int, int]
"""An offset and its delivery count."""


class Row(NamedTuple):
    """A range of records with one state."""

    first_offset: int
    last_offset: int
    member: str | None
    delivery_count: int


class Queue(Appender):
    """Topic ``t`` with some partitions, and one group that begins at its start."""

    def __init__(self, dsn: str, partitions: int = 1, *, group: str = "g", **configs: str) -> None:
        super().__init__(dsn)
        self.dsn = dsn
        self.share = ShareCalls()
        self.group = group
        self.id = self.create("t", partitions)
        self.raw = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        self.raw.execute("set search_path = logstore")
        self.alter(**{"share_auto_offset_reset": "earliest", **configs})

    def alter(self, **configs: str) -> None:
        """Set configs of the group, with underscores for dots."""
        named = {name.replace("_", "."): value for name, value in configs.items()}
        self.connection.run(self.share.alter_share_group(self.group, named))

    def ask(self, member: str, count: int = 500, *topics: str, **options: Any) -> Acquired:
        return self.connection.run(self.share.acquire(self.group, member, topics or ("t",), count, **options))

    def take(self, member: str, count: int = 500, *topics: str, **options: Any) -> list[Delivered]:
        """Acquire; what came, record by record."""
        return [
            (offset, each.delivery_count)
            for each in sorted(self.ask(member, count, *topics, **options).ranges, key=lambda each: each[1:])
            for offset in range(each.first_offset, each.last_offset + 1)
        ]

    def offsets(self, member: str, count: int = 500, **options: Any) -> list[int]:
        return [offset for offset, _ in self.take(member, count, **options)]

    def acknowledge(
        self,
        member: str,
        first: int,
        last: int | None = None,
        kind: int = ACCEPT,
        *,
        delay_ms: int | None = None,
        reason: str | None = None,
        strict: bool = True,
        partition: int = 0,
    ) -> list[Refused]:
        return self.acknowledge_all(
            member,
            [(first, first if last is None else last, kind)],
            delay_ms=delay_ms,
            reason=reason,
            strict=strict,
            partition=partition,
        )

    def acknowledge_all(
        self,
        member: str,
        ranges: Sequence[tuple[int, int, int]],
        *,
        delay_ms: int | None = None,
        reason: str | None = None,
        strict: bool = True,
        partition: int = 0,
    ) -> list[Refused]:
        """Acknowledge ranges, given as first, last and type."""
        count = len(ranges)
        given = Acknowledgements(
            [self.id] * count,
            [partition] * count,
            [each[0] for each in ranges],
            [each[1] for each in ranges],
            [each[2] for each in ranges],
            [delay_ms] * count,
            [reason] * count,
        )
        return self.connection.run(self.share.acknowledge(self.group, member, given, strict=strict))

    def rows(self, partition: int = 0) -> list[Row]:
        """What is stored of records: of each range in flight one row."""
        return [
            Row(*row)
            for row in self.raw.execute(
                """select first_offset, last_offset, member, delivery_count
                   from share_flight join log_group g using (group_id)
                   where g.name = %s and topic_id = %s and partition = %s order by 1""",
                [self.group, self.id, partition],
            )
        ]

    def delayed(self) -> list[Delivered]:
        return [
            (first, last)
            for first, last in self.raw.execute(
                "select first_offset, last_offset from share_delay"
                " join log_group g using (group_id) where g.name = %s and topic_id = %s order by 1",
                [self.group, self.id],
            )
        ]

    def start(self, partition: int = 0) -> int:
        """Everything below it is finished."""
        rows = self.connection.run(self.share.share_partitions(self.group))
        return next(row.start_offset for row in rows if row[1:4] == ("t", self.id, partition))

    def pass_time(self, seconds: float) -> None:
        """Locks and delays come nearer to their end by that much."""
        self.raw.execute("update share_flight set due_at = due_at - %s * interval '1 s'", [seconds])
        self.raw.execute("update share_delay set due_at = due_at - %s * interval '1 s'", [seconds])

    def dead_letters(self, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, str]]]:
        """Key, value and headers of each."""
        return [
            (key, value, {each["key"]: each["value"] for each in headers or []})
            for key, value, headers in self.raw.execute(
                'select key, value, headers from records where topic = %s order by partition, "offset"',
                [topic],
            )
        ]

    def until_it_waits(self, backend_pid: int) -> None:
        """Until that session waits for a lock."""
        eventually(
            lambda: bool(
                self.one(
                    "select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = %s",
                    backend_pid,
                )
            ),
            "the session waits for a lock",
        )

    def one(self, query: str, *arguments: Any) -> Any:
        """The one value that a query returns."""
        row = self.raw.execute(query, arguments).fetchone()
        assert row is not None
        return row[0]

    def close(self) -> None:
        self.raw.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
