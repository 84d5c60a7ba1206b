"""A log and its mirror, and whether they are the same."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import psycopg

from logstore.workers.mirroring import Cycle, Link, Mirror
from tests.support.appender import Appender

__all__ = ["SAME", "Both"]

SAME = {
    "records": 'SELECT * FROM records ORDER BY topic, "partition", "offset"',
    # Whose clock stamped them, and under which leader they were appended.
    "stamps": """
        SELECT t.name, b.partition, b.base_offset + coalesce(b.offset_deltas[i], i - 1) AS "offset",
               b.leader_epoch, b.timestamp_type,
               coalesce(b.timestamps[i], b.max_timestamp) AS "timestamp"
        FROM batches b JOIN topic t USING (topic_id) JOIN topic_partition p USING (topic_id, partition)
        JOIN topic_segment s ON s.topic_id = b.topic_id AND s.segment = b.segment AND s.live
        CROSS JOIN LATERAL generate_series(1, b.record_count) i
        WHERE b.base_offset + coalesce(b.offset_deltas[i], i - 1) >= p.log_start
        ORDER BY t.name, b.partition, 3""",
    "ends": """
        SELECT topic, "partition", log_start, high_watermark, leader_epoch FROM partitions ORDER BY 1, 2""",
    "topics": "SELECT name, partitions, configs FROM topic ORDER BY name",
    "groups": """
        SELECT g.name, t.name, o.partition, o.committed_offset, o.leader_epoch, o.metadata
        FROM group_offset o JOIN log_group g USING (group_id) JOIN topic t USING (topic_id)
        ORDER BY 1, 2, 3""",
}
"""What has to be equal, as SQL sees it."""


class Both:
    """Connections to both; ``append`` writes to the source, ``append_there`` to the mirror.

    ``direct``: the same two without a pooler.
    """

    def __init__(self, link: Link, direct: Link | None = None) -> None:
        self.link = link
        direct = direct or link
        self.source = psycopg.connect(direct.source, autocommit=True, options="-c search_path=logstore")
        self.target = psycopg.connect(direct.target, autocommit=True, options="-c search_path=logstore")
        self.appenders = (Appender(link.source), Appender(link.target))
        self.append = self.appenders[0].append
        self.create = self.appenders[0].create
        self.append_there = self.appenders[1].append

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for appender in self.appenders:
            appender.connection.close()
        self.source.close()
        self.target.close()

    @property
    def back(self) -> Link:
        """The other way round."""
        return Link(self.link.target, self.link.source)

    def cycle(self, *topics: str, link: Link | None = None) -> Cycle:
        """Copy what is there, in a process that knows nothing of earlier ones."""
        with Mirror(link or self.link, topics) as mirror:
            return mirror.cycle()

    def differences(self, *parts: str) -> list[str]:
        """What is not equal."""
        found = []
        for name in parts or SAME:
            query = SAME[name].encode()
            ours = self.target.execute(query).fetchall()
            theirs = self.source.execute(query).fetchall()
            found += [f"{name}: source only {row}" for row in theirs if row not in ours][:3]
            found += [f"{name}: mirror only {row}" for row in ours if row not in theirs][:3]
            if len(ours) != len(theirs):
                found.append(f"{name}: {len(theirs)} rows at the source, {len(ours)} in the mirror")
        return found

    def commit(self, group: str, topic: str, partition: int, offset: int, metadata: str = "") -> None:
        """Commit an offset at the source, as nobody's member."""
        self.source.execute(
            "SELECT commit_offsets(%s, NULL, NULL, ARRAY[topic_id_of(%s)], ARRAY[%s::int4], NULL,"
            " ARRAY[%s::int8], ARRAY[0], ARRAY[%s])",
            [group, topic, partition, offset, metadata],
        )

    def findings(self) -> list[Any]:
        """What an audit of the mirror finds."""
        ids = [row[0] for row in self.target.execute("SELECT topic_id FROM topic")]
        found: list[Any] = self.target.execute("SELECT * FROM verify_strays()").fetchall()
        for topic_id in ids:
            found += self.target.execute("SELECT * FROM verify_catalog(%s)", [topic_id]).fetchall()
            found += self.target.execute("SELECT * FROM verify_groups(%s)", [topic_id]).fetchall()
            found += self.target.execute("SELECT * FROM verify_producers(%s)", [topic_id]).fetchall()
            for (segment,) in self.target.execute(
                "SELECT segment FROM topic_segment WHERE topic_id = %s AND live", [topic_id]
            ).fetchall():
                found += self.target.execute(
                    "SELECT * FROM verify_segment(%s, %s, true)", [topic_id, segment]
                ).fetchall()
        return found
