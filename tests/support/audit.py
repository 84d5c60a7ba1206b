"""Is a log sound, and is nothing left over?"""

from __future__ import annotations

from typing import Any

import psycopg

__all__ = ["faults"]

FINDINGS = """
    SELECT f."check", f.topic, f.partition, f.segment, f."offset", f.found FROM ({source}) f
    JOIN verify_checks() c ON c."check" = f."check" AND NOT c.warning"""
LEFT = {
    "a table that belongs to no segment": r"""
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'logstore'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^b_\d+_\d+$'
          AND NOT EXISTS (SELECT FROM topic_segment s
                          WHERE 'b_' || s.topic_id || '_' || s.segment = c.relname AND s.live)""",
    "a segment without its table": """
        SELECT topic_id, segment FROM topic_segment
        WHERE live IS NOT TRUE OR to_regclass('b_' || topic_id || '_' || segment) IS NULL""",
    "a segment that is still to be dropped": "SELECT topic_id, segment FROM dropped_segment",
    "a topic that is still to be dropped": "SELECT topic_id FROM deleted_topic",
    "a detach that is not finished": """
        SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhdetachpending""",
    "a rewrite that is not finished": "SELECT topic_id, kind FROM rewrite",
    "a closed segment of which nothing is left": """
        SELECT s.topic_id, s.segment FROM topic_segment s
        WHERE NOT EXISTS (SELECT FROM topic_partition p
                          WHERE p.topic_id = s.topic_id AND p.segment = s.segment)
          AND s.segment <> (SELECT t.active_segment FROM topic t WHERE t.topic_id = s.topic_id)
          AND NOT EXISTS (SELECT FROM sealed_segment z JOIN topic_partition p USING (topic_id, partition)
                          WHERE z.topic_id = s.topic_id AND z.segment = s.segment
                            AND z.last_offset >= p.log_start)""",
}


def faults(dsn: str, *, left: bool = True) -> list[str]:
    """What ``logstore verify`` finds, warnings aside; and what jobs should have cleared away (``left``)."""
    found: list[str] = []
    with psycopg.connect(dsn, options="-c search_path=logstore") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def look(source: str, *arguments: Any) -> None:
            rows = connection.execute(FINDINGS.format(source=source).encode(), arguments or None)
            found.extend(str(row) for row in rows)

        look("SELECT * FROM verify_strays()")
        topics = connection.execute("SELECT topic_id FROM topic ORDER BY 1").fetchall()
        for (topic_id,) in topics:
            for function in ("verify_catalog", "verify_producers", "verify_groups", "verify_share"):
                look(f"SELECT * FROM {function}(%s)", topic_id)  # noqa: S608 (our own names)
        segments = connection.execute(
            "SELECT topic_id, segment FROM topic_segment WHERE live ORDER BY 1, 2"
        ).fetchall()
        for topic_id, segment in segments:
            look("SELECT * FROM verify_segment(%s, %s)", topic_id, segment)
        if left:
            for what, query in LEFT.items():
                found.extend(f"{what}: {row}" for row in connection.execute(query.encode()))
    return found
