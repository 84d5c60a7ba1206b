"""`logstore verify`; what each check finds is in tests/sql/test_verify.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import psycopg
import pytest

from logstore import Consumer, Producer
from tests.cli.conftest import Cli
from tests.support.reading import read


@pytest.fixture
def log(cli: Cli) -> Cli:
    """Topic orders in several segments, an empty one, and a group that has read some."""
    cli("topic", "create", "orders", "-p", "2", "--config", "segment.bytes=2000")
    cli("topic", "create", "empty")
    with Producer(cli.dsn, linger_ms=0) as producer:
        for number in range(40):
            producer.send_and_wait("orders", b"x" * 200, key=b"k", partition=number % 2)
    with Consumer("orders", dsn=cli.dsn, group_id="billing", auto_offset_reset="earliest") as consumer:
        read(consumer, 40)
    return cli


def break_log(cli: Cli, statement: str) -> None:
    with psycopg.connect(cli.dsn, options="-c search_path=logstore") as connection:
        assert connection.execute(statement.encode()).rowcount


@pytest.mark.every_server
def test_a_sound_log(log: Cli) -> None:
    answer = log("verify")
    assert "2 topics, 3 partitions, " in answer.out
    assert answer.lines[-1].endswith("everything holds")
    assert "FAILED" not in answer.out
    assert answer.err == ""


def test_one_topic(log: Cli) -> None:
    break_log(log, "DELETE FROM b_1_0 WHERE base_offset = 0")
    assert log("verify", "empty").lines[-1].startswith("1 topic, 1 partition, 1 segment, 0 records in ")
    log("verify", "orders", code=1)
    assert "no topic 'nowhere'" in log("verify", "nowhere", code=3).err


def test_what_is_found_where_and_what_to_do(log: Cli) -> None:
    break_log(
        log,
        "DELETE FROM b_1_1 WHERE partition = 0"
        " AND last_offset = (SELECT min(last_offset) FROM b_1_1 WHERE partition = 0)",
    )
    answer = log("verify", code=1)
    assert "gap: FAILED. Records are lost" in answer.out
    assert "are in no batch" in next(
        line for line in answer.lines if line.startswith("  orders-0, segment 1")
    )
    assert "failed: gap" in answer.err


def test_for_programs(log: Cli) -> None:
    sound = log.json("verify")
    assert sound["ok"] is True
    assert (sound["topics"], sound["partitions"], sound["records"]) == (2, 3, 40)
    assert {each["verdict"] for each in sound["checks"]} == {"ok"}
    assert all(each["advice"] and each["holds"] for each in sound["checks"])

    break_log(log, "UPDATE group_offset SET committed_offset = 77 WHERE partition = 1")
    red = log.json("verify", code=1)
    assert red["ok"] is False
    assert [each["name"] for each in red["checks"] if each["verdict"] == "failed"] == ["offsets"]
    assert red["findings"] == [
        {
            "check": "offsets", "topic": "orders", "partition": 1, "segment": None, "offset": 77,
            "group": "billing", "found": "77 is committed, but the log ends at 20",
        }
    ]  # fmt: skip


def test_a_warning_is_no_failure(log: Cli) -> None:
    log("delete-records", "orders", "--all", "--yes")
    break_log(log, "UPDATE group_offset SET committed_offset = 3")
    answer = log("verify")
    assert "expired: warning" in answer.out
    assert answer.lines[-1].endswith("everything holds")


def test_more_than_is_shown_is_counted(log: Cli) -> None:
    with Producer(log.dsn, linger_ms=0) as producer:
        for _ in range(30):
            producer.send_and_wait("empty", b"x")
    break_log(log, "UPDATE b_2_0 SET size_bytes = size_bytes + 1")
    answer = log("verify", code=1)
    assert sum(line.startswith("  empty-0") for line in answer.lines) == 20
    assert "  … and 10 more" in answer.lines


def test_arrays_can_be_left_unread(log: Cli) -> None:
    break_log(log, "UPDATE b_1_0 SET keys = '{}'")
    log("verify", code=1)
    log("verify", "--no-arrays")


def test_what_is_written_meanwhile_is_not_seen(log: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two functions somebody appends and commits: no part of the audit sees it."""
    verify = import_module("logstore.cli.verify")
    before = verify.Audit.add

    def add(self: Any, rows: Any) -> None:
        before(self, rows)
        with Producer(log.dsn) as producer:
            producer.send_and_wait("orders", b"x" * 3000, partition=0)
        break_log(log, "UPDATE group_offset SET committed_offset = committed_offset + 1")

    monkeypatch.setattr(verify.Audit, "add", add)
    assert log.json("verify")["records"] == 40


def test_a_topic_that_goes_away_meanwhile(log: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = import_module("logstore.cli.verify")
    before = verify.Audit.add
    calls = []

    def add(self: Any, rows: Any) -> None:
        before(self, rows)
        calls.append(rows)
        if len(calls) == 1:  # nothing of any topic was read yet
            log_cli("topic", "delete", "empty", "--yes")

    def log_cli(*arguments: str) -> None:
        from logstore.cli.root import root

        root.main(arguments, standalone_mode=False)

    monkeypatch.setattr(verify.Audit, "add", add)
    assert log("verify").lines[-1].endswith("everything holds")


def test_no_log_there(cli: Cli) -> None:
    assert "logstore db upgrade" in cli("verify", "--schema", "nowhere", code=7).err
