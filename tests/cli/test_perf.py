"""`logstore perf`: it counts what was really there; no figure is judged."""

from __future__ import annotations

import pytest

from logstore import Consumer
from tests.cli.conftest import Cli

KEYS = {
    "test",
    "records",
    "bytes",
    "seconds",
    "records_per_second",
    "mb_per_second",
    "latency_ms",
    "configuration",
}
LATENCY = {"samples", "avg", "p50", "p95", "p99", "p99.9", "max"}


@pytest.mark.parametrize("options", [(), ("--bulk",), ("--rate", "5000"), ("--acks", "1"), ("--keys", "0")])
def test_produce_writes_what_it_says(cli: Cli, options: tuple[str, ...]) -> None:
    cli("topic", "create", "load", "-p", "2")
    report = cli.json("perf", "produce", "load", "--records", "700", "--record-size", "50", *options)
    assert set(report) == KEYS
    assert set(report["latency_ms"]) == LATENCY
    assert report["records"] == 700
    assert report["bytes"] == 700 * (50 if "--keys" in options else 66)
    assert report["latency_ms"]["samples"] > 0
    (described,) = cli.json("topic", "describe", "load")
    assert sum(partition["records"] for partition in described["partitions"]) == 700


def test_consume_reads_what_it_says(cli: Cli) -> None:
    report = cli.json("perf", "consume", "--records", "3000", "--record-size", "50")
    assert (report["records"], report["bytes"]) == (3000, 3000 * 66)
    cli("topic", "create", "few")
    cli("produce", "few", stdin="a\nb\n")
    assert cli.json("perf", "consume", "few")["records"] == 2


def test_e2e_times_every_record_after_the_warm_up(cli: Cli) -> None:
    report = cli.json("perf", "e2e", "--records", "200", "--rate", "1000", "--warm-up", "20")
    assert report["records"] == report["latency_ms"]["samples"] == 200
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]


def test_people_get_two_lines(cli: Cli) -> None:
    rate, latency = cli("perf", "produce", "--records", "500").lines
    assert rate.startswith("500 records in ") and "rec/s" in rate and "MB/s" in rate
    for figure in ("avg", "p50", "p95", "p99", "p99.9", "max", "samples"):
        assert figure in latency


def test_a_topic_of_its_own_is_gone_afterwards(cli: Cli) -> None:
    cli("perf", "produce", "--records", "10")
    cli("perf", "consume", "--records", "10")
    assert cli.json("topic", "list") == []


WRONG = [
    (("perf", "produce", "nothing", "--records", "5"), 3),
    (("perf", "consume", "nothing"), 3),
    (("perf", "e2e", "nothing", "--records", "5"), 3),
    (("perf", "produce", "--bulk", "--rate", "5"), 2),
    (("perf", "produce", "--records", "0"), 2),
    (("perf", "produce", "--record-size", "x"), 2),
]


def test_wrong_input_is_one_clear_line_and_a_code(cli: Cli) -> None:
    for argv, code in WRONG:
        answer = cli(*argv, code=code)
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1


def test_records_that_do_not_arrive_are_no_latency(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logstore.cli.endtoend.PATIENCE_S", 0.2)
    monkeypatch.setattr(Consumer, "poll", lambda self, **_: {})
    answer = cli("perf", "e2e", "--records", "20", "--warm-up", "0", code=5)
    assert "20 of 20 records did not arrive within 0.2 s." in answer.err
