"""An old snapshot keeps dead rows; acquiring and acknowledging do not walk over them."""

from __future__ import annotations

from contextlib import closing

import psycopg

from tests.support.appender import values
from tests.support.share import Queue

CYCLES = 800


def blocks_read(queue: Queue) -> int:
    """Blocks of tables and indexes of share groups that all sessions have looked at so far."""
    queue.connection.execute("select pg_stat_force_next_flush()")
    queue.connection.execute("select 1")
    queue.raw.execute("select pg_stat_clear_snapshot()")
    return int(
        queue.one(
            """select sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)
               from pg_statio_user_tables where relname ^@ 'share'"""
        )
    )


def test_an_old_snapshot_does_not_make_acquiring_read_more(database: str) -> None:
    with Queue(database) as queue, closing(psycopg.connect(database)) as other:
        queue.append("t", values(4 * (CYCLES + 30)))
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("select count(*) from logstore.share_flight")

        def cycle() -> None:
            (first, *_, last) = queue.offsets("a", 4)
            queue.acknowledge("a", first, last)

        def cost(cycles: int) -> float:
            before = blocks_read(queue)
            for _ in range(cycles):
                cycle()
            return (blocks_read(queue) - before) / cycles

        for _ in range(3):
            cycle()
        early = cost(10)
        for _ in range(CYCLES):
            cycle()
        late = cost(10)
        dead = queue.one("select n_dead_tup from pg_stat_user_tables where relname = 'share_flight'")
        assert dead >= CYCLES, "the snapshot keeps them"
        # The indexes are a level higher by now, which costs nine; all dead rows are in twenty blocks or so.
        assert late <= early + 12, f"{early} blocks read by a cycle at first, {late} in the end"
