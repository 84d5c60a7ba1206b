"""Files of sealed segments beside a log that was restored: the store was not taken back with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logstore import Consumer, TopicPartition
from logstore.errors import RemoteFileError
from tests.support.recovery import Archived, command, execute, verified
from tests.support.tiered import TieredLog, shape

ENOUGH_MS = 30_000
T = TopicPartition("t", 0)


def check(dsn: str) -> tuple[int, Any]:
    code, printed = command(dsn, "tier", "verify", "--unknown", "--output", "json")
    return code, json.loads(printed.splitlines()[0])


def read(dsn: str, count: int) -> list[Any]:
    with Consumer(dsn=dsn, auto_offset_reset="none") as consumer:
        consumer.assign([T])
        consumer.seek_to_beginning()
        found: list[Any] = []
        while len(found) < count:
            polled = consumer.poll(timeout_ms=ENOUGH_MS)
            assert polled
            found += [shape(record) for batch in polled.values() for record in batch]
        return found


@pytest.mark.timeout(180)
def test_files_that_came_later_are_nobodys(server: Archived, tmp_path: Path) -> None:
    with TieredLog(server.dsn, f"file://{tmp_path}") as log:
        log.fill()
        log.settle()
        early = log.files()
        records = log.everything()
        server.back_up()
        server.name("good")
        log.fill()
        log.settle()
        later = [path for path in log.files() if path not in early]
    assert early and later

    server.restore(recovery_target_name="good")
    assert command(server.dsn, "db", "recovered")[0] == 0
    verified(server.dsn)
    code, found = check(server.dsn)
    assert (code, found["files"], found["bad"]) == (0, len(early), 0)
    assert found["unknown"] == sorted(f"file://{path}" for path in later)
    assert read(server.dsn, len(records)) == records

    # The log goes on: its new files have names of their own, and the nobody's files stay what they are.
    before = {path: path.read_bytes() for path in (*early, *later)}
    with TieredLog.again(server.dsn, records) as log:
        log.fill()
        log.settle()
        assert set(log.files()).isdisjoint(later)
        assert {path: path.read_bytes() for path in before} == before
        assert read(server.dsn, len(log.everything())) == log.everything()
    assert check(server.dsn)[0] == 0


@pytest.mark.timeout(180)
def test_files_that_were_deleted_since_are_told_and_can_be_left_behind(
    server: Archived, tmp_path: Path
) -> None:
    with TieredLog(server.dsn, f"file://{tmp_path}") as log:
        log.fill()
        log.settle()
        records = log.everything()
        named = log.files()
        server.back_up()
        server.name("good")
        # What retention would have done.
        log.rows("SELECT delete_records('t', 0, 100)")
        log.settle()
        gone = [path for path in named if path not in log.files()]
    assert gone and not any(path.exists() for path in gone)

    server.restore(recovery_target_name="good")
    assert command(server.dsn, "db", "recovered")[0] == 0
    verified(server.dsn)
    code, found = check(server.dsn)
    assert code == 1
    bad = [result for result in found["results"] if not result["ok"]]
    assert [result["url"] for result in bad] == [f"file://{path}" for path in gone]
    with pytest.raises(RemoteFileError):
        read(server.dsn, 1)

    # Where the first whole file begins is where the log goes on.
    start = bad[-1]["last_offset"] + 1
    execute(server.dsn, "SELECT logstore.delete_records('t', 0, %s)", start)
    assert command(server.dsn, "tier", "run")[0] == 0
    assert check(server.dsn)[0] == 0
    verified(server.dsn)
    assert read(server.dsn, len(records) - start) == records[start:]
