"""`logstore retention`."""

from __future__ import annotations

import psycopg
import pytest

from logstore import Admin, Producer
from tests.cli.conftest import Cli

OLD_MS = 1_000_000


@pytest.fixture
def topic(cli: Cli) -> str:
    """Partition 0 has a closed segment that has expired, partition 1 a young record in that segment."""
    with Admin(cli.dsn) as admin:
        admin.create_topic(
            "orders",
            partitions=2,
            configs={"segment.bytes": "300", "retention.ms": "86400000", "file.delete.delay.ms": "0"},
        )
    with Producer(cli.dsn, linger_ms=0) as producer:
        producer.send("orders", b"young", partition=1).result(30)
        for _ in range(4):
            producer.send("orders", b"x" * 100, partition=0, timestamp_ms=OLD_MS).result(30)
    return "orders"


def test_a_dry_run_says_what_would_go_and_why(cli: Cli, topic: str) -> None:
    for _ in range(2):
        document = cli.json("retention", "run", "--dry-run")
        (plan,) = document["topics"]
        assert [(part["partition"], part["segment"], part["reason"]) for part in plan["expired"]] == [
            (0, 0, "retention.ms"),
            (0, 1, "retention.ms"),
        ]
        assert document["records"] == 4
        assert [(s["segment"], s["action"], s["kept_for"]) for s in plan["segments"]] == [
            (0, "keep", [1]),
            (1, "drop", []),
        ]
        assert document["disk_bytes"] == plan["segments"][1]["disk_bytes"] > 0
    table = cli("retention", "run", "--dry-run", topic)
    assert "older than retention.ms, 86400000" in table.out
    assert "partition 1 has records that stay" in table.out
    assert table.lines[-1].startswith("4 records would go")


def test_a_run_lets_it_go(cli: Cli, topic: str) -> None:
    document = cli.json("retention", "run")
    assert document["retention"]["topics"] == [topic]
    assert (document["retention"]["records"], document["retention"]["partitions"]) == (4, 1)
    assert document["reclaim"]["segments"] >= 1
    assert cli.json("retention", "run", "--dry-run")["records"] == 0
    assert "No record would go." in cli("retention", "run", "--dry-run").out
    assert cli("consume", topic, "--from-beginning").lines == ["young"]
    assert "0 records of 0 partitions expired" in cli("retention", "run", topic).out


def test_only_the_topics_that_are_named(cli: Cli, topic: str) -> None:
    cli("topic", "create", "other")
    assert cli.json("retention", "run", "other")["retention"]["records"] == 0
    assert [plan["topic"] for plan in cli.json("retention", "run", "--dry-run", "other")["topics"]] == [
        "other"
    ]
    for arguments in (["run"], ["run", "--dry-run"], ["show"]):
        assert "nothing" in cli("retention", *arguments, "nothing", code=3).err
    assert "Did you mean 'orders'?" in cli("retention", "show", "ordres", code=3).err


def test_policies_are_shown_with_what_may_not_be_meant(cli: Cli, topic: str) -> None:
    document = cli.json("retention", "show")
    (policy,) = document["topics"]
    assert policy["configs"]["retention.ms"] == "86400000"
    assert [warning["config"] for warning in policy["warnings"]] == ["retention.ms", "segment.bytes"]
    shown = cli("retention", "show", topic)
    assert "86,400,000" in shown.out
    assert "orders: segment.bytes is less than max.message.bytes" in shown.out
    assert document["waiting"] == {"segments": [], "open_transactions": []}


def test_it_says_who_keeps_the_space(cli: Cli, topic: str) -> None:
    with psycopg.connect(cli.dsn, application_name="a report") as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM logstore.records")
        answer = cli("retention", "run")
        assert "see `logstore retention show`" in answer.err
        # It has waited for the transaction for longer than a second.
        waiting = cli.json("retention", "show")["waiting"]
        assert [(each["topic"], each["segments"]) for each in waiting["segments"]] == [(topic, 2)]
        assert [each["application"] for each in waiting["open_transactions"]] == ["a report"]
        assert "An open transaction may be in the way: pid" in cli("retention", "show").out
    cli("retention", "run")
    assert cli.json("retention", "show")["waiting"]["segments"] == []


def test_contradictions_are_refused_in_words(cli: Cli) -> None:
    answer = cli("topic", "create", "bad", "-c", "segment.ms=1000", "-c", "segment.jitter.ms=2000", code=2)
    assert "segment.jitter.ms, 2000, is more than segment.ms, 1000" in answer.err
    answer = cli("topic", "create", "bad", "-c", "retention.bytes=-7", code=2)
    assert "retention.bytes has to be a whole number from -1" in answer.err


def test_what_has_no_effect_is_pointed_out(cli: Cli) -> None:
    configs = ("-c", "cleanup.policy=compact", "-c", "retention.bytes=5000000000")
    answer = cli("topic", "create", "kept", *configs)
    assert answer.err == "kept: retention.bytes has no effect while cleanup.policy is compact.\n"
    assert cli("topic", "alter", "kept", "-c", "segment.ms=3600000").err == "", "nothing new"
    assert "retention.ms has no effect" in cli("topic", "alter", "kept", "-c", "retention.ms=5").err
    assert cli("topic", "create", "plain").err == ""
