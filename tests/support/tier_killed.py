"""Kill the worker that handles files at every step of what it does: ``python -m tests.support.tier_killed``.

A step is a statement, a request to the store, or a file's getting its name.  One process after the other
copies, erases, deletes and restores, and is killed with SIGKILL before or after its n-th step, n growing
until it comes to its end.  After each death a reader finds every record once, no file is believed that is not
what was written, and whoever comes next goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import logstore
from logstore._sync.driver import Connection as Reading
from logstore.tier import files, store
from logstore.workers import erasure, reclaim, roll, tier, tier_restore
from logstore.workers.connections import Connection, opened
from tests.support.servers import embedded
from tests.support.tiered import TieredLog, shape

__all__ = ["main", "story"]


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a process that is killed at its ``step``-th step; whether it was."""
    child = os.fork()
    if not child:
        try:
            _count_steps(step)
            work()
            os._exit(0)
        except BaseException as error:
            print(f"step {step}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the process that was to die at step {step} failed"
    return False


def _count_steps(last: int) -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            tick()
            answer = function(*arguments, **options)
            tick()
            return answer

        return call

    @contextmanager
    def writing(url: str) -> Any:
        tick()
        with real(url) as sink:
            tick()
            yield sink
            tick()
        tick()

    real = store.writing
    patched: Any = store
    patched.writing = writing
    patched.delete = counted(store.delete)
    patched.read = counted(store.read)
    connection: Any = Connection
    connection.rows = counted(Connection.rows)
    reading: Any = Reading
    reading.run = counted(reading.run)


def sound(log: TieredLog, gone: set[int], start: int) -> None:
    """Everything is there, once, and no file is believed that is not what was written."""
    expected = [record for record in log.records[0] if record[1] >= start and record[1] not in gone]
    found = [shape(record) for record in logstore.read("t", dsn=log.dsn)]
    assert found == expected, f"{len(found)} records instead of {len(expected)}"
    with opened(log.dsn, "logstore", "test") as connection:
        for row in connection.rows(f"SELECT {tier.FILE_COLUMNS} FROM {{}}.remote_file"):  # noqa: S608
            files.check(tier.file_of(row))


def story(
    dsn: str,
    directory: Path,
    *,
    every: int = 1,
    only: str | None = None,
    told: Callable[[str], object] = lambda line: None,
) -> int:
    """Kill at every ``every``-th step of each kind of work; how often that was."""
    deaths = 0
    start = wanted = 0
    gone: set[int] = set()
    with TieredLog(dsn, f"file://{directory}", file_delete_delay_ms="0", local_retention_ms="0") as log:
        log.fill(20)

        def copy() -> None:
            log.fill(6)

        def delete() -> None:
            nonlocal start
            log.fill(4)
            tier.run_once(dsn)
            start = min(start + 25, log.local_start())
            log.rows("SELECT delete_records('t', 0, %s)", start)

        def erase() -> None:
            # One key at a time, of the youngest records that are in files.
            log.fill(6)
            tier.run_once(dsn)
            key = b"key-%d" % (deaths % 7)
            log.rows("SELECT erase_key('t', %s::bytea)", key)
            gone.update(record[1] for record in log.records[0] if record[3] == key)
            roll.run_once(dsn)

        def bring_back() -> None:
            nonlocal wanted
            log.fill(4)
            tier.run_once(dsn)
            wanted = log.local_start() - 20

        for prepare, work in (
            (copy, lambda: tier.run_once(dsn)),
            (delete, lambda: tier.run_once(dsn)),
            (erase, lambda: tier.run_once(dsn)),
            (bring_back, lambda: tier_restore.restore(dsn, "t", from_offset=wanted, keep_ms=0)),
        ):
            step = 1
            while only in (None, prepare.__name__):
                prepare()
                died = killed_at(step, work)
                if prepare is erase:
                    # Some time everything is erased, whoever died; until then a reader may find some of it.
                    for _ in range(4):
                        roll.run_once(dsn)
                        erasure.run_once(dsn)
                        tier.run_once(dsn)
                        reclaim.run_once(dsn)
                sound(log, gone, start)
                if not died:
                    break
                deaths += 1
                step += every
                # So that there is not more to be done each time.
                start = max(start, log.local_start() - 60)
                log.rows("SELECT delete_records('t', 0, %s)", start)
                tier.run_once(dsn)
            told(f"{prepare.__name__}: {deaths} deaths")
        tier.run_once(dsn)
        reclaim.run_once(dsn)
        sound(log, gone, start)
        known = {str(path) for path in log.files()}
        there = {str(path) for path in directory.rglob("*") if path.is_file()}
        assert there == known, f"files that nobody knows: {there - known}"
        assert log.value("SELECT count(*) FROM remote_segments WHERE state <> 'copied'") == 0
        assert log.value("SELECT count(*) FROM tier_restore") == 0
        assert log.value("SELECT count(*) FROM topic_segment WHERE NOT live") == 0
    return deaths


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill the worker that handles files at every step.")
    parser.add_argument("--every", type=int, default=3, help="only at every n-th step")
    parser.add_argument("--only", choices=("copy", "delete", "erase", "bring_back"), help="one kind of work")
    options = parser.parse_args()
    with embedded() as server, tempfile.TemporaryDirectory() as directory:
        deaths = story(server.create(), Path(directory), every=options.every, only=options.only, told=print)
    print(f"killed {deaths} times: every record was found once, and nothing was left over")


if __name__ == "__main__":
    main()
