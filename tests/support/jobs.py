"""The worker's jobs, run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import psycopg

__all__ = ["CLEANING", "run", "settle", "state"]

CLEANING: Final = ("roll", "retention", "compaction", "erasure", "reclaim")
"""What decides which records stay, in the order in which one has work for the next."""

FULL_SPEED: Final[dict[str, dict[str, Any]]] = {"compaction": {"duty": 1.0}, "erasure": {"duty": 1.0}}


def run(dsn: str, *names: str, **options: dict[str, Any]) -> list[Any]:
    """Run each job once, at full speed, with the options that are given by its name; what they say."""
    return [
        import_module(f"logstore.workers.{name}").run_once(
            dsn, **{**FULL_SPEED.get(name, {}), **options.get(name, {})}
        )
        for name in names
    ]


def settle(dsn: str, jobs: Sequence[str] = CLEANING, *, rounds: int = 20) -> None:
    """Run the jobs until there is nothing left for them to do."""
    before = None
    for _ in range(rounds):
        run(dsn, *jobs)
        after = state(dsn)
        if after == before:
            return
        before = after
    raise AssertionError(f"the jobs still find something to do after {rounds} rounds: {before}")


def state(dsn: str) -> list[Any]:
    """Which segments there are, and where the partitions begin: what jobs change."""
    with psycopg.connect(dsn, options="-c search_path=logstore") as connection:
        return [
            connection.execute(query.encode()).fetchall()
            for query in (
                "SELECT topic_id, segment, live FROM topic_segment ORDER BY 1, 2",
                "SELECT topic_id, partition, segment, first_offset, last_offset, bytes FROM sealed_segment"
                " ORDER BY 1, 2, 5",
                "SELECT p.topic_id, p.partition, p.segment, p.log_start, compacted_to(p)"
                " FROM topic_partition p ORDER BY 1, 2",
                "SELECT topic_id, segment FROM dropped_segment ORDER BY 1, 2",
                "SELECT topic_id FROM deleted_topic ORDER BY 1",
                "SELECT relname FROM pg_class WHERE relname ~ '^b_' AND relkind IN ('r', 'p') ORDER BY 1",
            )
        ]
