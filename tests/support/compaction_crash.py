"""Crash the server at every step of a compaction: ``python -m tests.support.compaction_crash``.

A backend is killed in the middle of the step (SIGKILL, so all of the server goes through recovery, which
empties unlogged tables); afterwards compaction goes on.  What it leaves has to be what the rules say, and
what ``logstore verify`` finds sound.  Steps are committed asynchronously, so recovery may take the last
ones back.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import psycopg

from tests.support.compacting import all_records, audit, close_segments, compacted, create, ends, keyed
from tests.support.compacting import start as begin
from tests.support.compacting import steps as finish
from tests.support.servers import embedded
from tests.support.sqllog import Session, rows, value

__all__ = ["main"]

PATIENCE_S = 60
MAX_RECORDS = 40
"""A step's."""


def connected(dsn: str) -> Session:
    """A session, as soon as the server has recovered."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return psycopg.connect(dsn, autocommit=True, options="-c search_path=logstore")
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def crash_at(dsn: str, step: int) -> tuple[str | None, list[str]]:
    """Crash in the middle of this step; its phase (None: there are not so many) and what is wrong."""
    session = connected(dsn)
    topic = f"t{step}"
    topic_id = create(session, topic, 2, segment_bytes="3000")
    for number in range(60):
        pairs: dict[str, str | None] = {"a": f"{number}", "b": f"{number}" * 20, f"k{number % 5}": "v"}
        keyed(session, topic_id, number % 2, **pairs)
    close_segments(session, topic_id)
    wanted = compacted(all_records(session, topic), ends(session, topic_id))
    begin(session, topic_id)
    for _ in range(step):
        if value(session, "SELECT finished FROM rewrite_step(%s, %s)", topic_id, MAX_RECORDS):
            return None, []
    witness = connected(dsn)
    session.execute("BEGIN")
    phase = value(session, "SELECT phase FROM rewrite_step(%s, %s)", topic_id, MAX_RECORDS)
    os.kill(session.info.backend_pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            # Recovery begins by ending everybody.
            witness.execute("SELECT 1")
        except psycopg.Error:
            break
        time.sleep(0.01)

    session = connected(dsn)
    problems = []
    if not set(wanted) <= set(all_records(session, topic)):
        problems.append("a record is missing after the crash")
    if rows(session, "SELECT FROM rewrite WHERE topic_id = %s", topic_id):
        finish(session, topic_id, MAX_RECORDS)
    if all_records(session, topic) != wanted:
        problems.append("compaction has not left what it should")
    problems += map(str, audit(session, topic_id))
    session.execute("SELECT delete_topic(%s)", [topic])
    session.close()
    return phase, problems


def main(arguments: Sequence[str] | None = None) -> int:
    failed = 0
    with embedded() as server:
        dsn = server.create()
        step = 0
        while True:
            phase, problems = crash_at(dsn, step)
            if phase is None:
                break
            print(f"step {step} ({phase}): {problems or 'sound'}", flush=True)
            failed += bool(problems)
            step += 1
    print(f"{step} crashes, {failed} with problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
