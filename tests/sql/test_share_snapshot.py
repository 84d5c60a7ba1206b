"""An old snapshot keeps dead rows; acquiring and acknowledging do not walk over them."""

from __future__ import annotations

from contextlib import closing

import psycopg

from tests.support.appender import values
from tests.support.share import Queue

CYCLES = 300


def entries_read(queue: Queue) -> int:
    """Index entries, live or dead, that all sessions have read in the tables of share groups so far."""
    queue.connection.execute("select pg_stat_force_next_flush()")
    queue.connection.execute("select 1")
    queue.raw.execute("select pg_stat_clear_snapshot()")
    return int(queue.one("select sum(idx_tup_read) from pg_stat_user_indexes where relname ^@ 'share'"))


def test_an_old_snapshot_does_not_make_acquiring_read_more(database: str) -> None:
    with Queue(database) as queue, closing(psycopg.connect(database)) as other:
        queue.append("t", values(4 * (CYCLES + 20)))
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("select count(*) from logstore.share_flight")

        def cycle() -> None:
            (first, *_, last) = queue.offsets("a", 4)
            queue.acknowledge("a", first, last)

        def cost(cycles: int) -> float:
            before = entries_read(queue)
            for _ in range(cycles):
                cycle()
            return (entries_read(queue) - before) / cycles

        for _ in range(3):
            cycle()
        early = cost(5)
        for _ in range(CYCLES):
            cycle()
        late = cost(5)
        dead = queue.one("select n_dead_tup from pg_stat_user_tables where relname = 'share_flight'")
        assert dead >= CYCLES, "the snapshot keeps them"
        assert late <= early + 10, f"{early} index entries read by a cycle at first, {late} in the end"
