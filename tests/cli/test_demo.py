"""`logstore demo`."""

from __future__ import annotations

import sys

import pytest

from logstore.cli import demo as demo_module
from logstore.cli.access_log import Request
from logstore.cli.story import _program
from tests.cli.conftest import Cli


@pytest.mark.long
def test_the_demo_passes_and_says_so_twice(cli: Cli) -> None:
    report = cli.json("demo")
    assert report["passed"]
    assert [check["passed"] for check in report["checks"]] == [True] * 5
    assert report["requests"] == 10_000
    assert sum(partition["records"] for partition in report["partitions"]) == 10_000
    assert len(report["partitions"]) == 4
    assert report["latency_ms"]["samples"] == 2000
    answers, visits, damaged = report["queries"]
    assert {"status": "200", "requests": 9125, "clients": 1671}.items() <= answers["rows"][0].items()
    assert sum(row["requests"] for row in answers["rows"]) == 10_000
    assert visits["rows"][0]["client"] == "66.249.73.135"
    assert visits["rows"][0]["requests"] == 482
    assert len(damaged["rows"]) == 1
    assert [topic["topic"] for topic in cli.json("topic", "list")] == ["access"]

    told = cli("demo").out
    for words in (
        "10,000 real HTTP requests",
        "nothing is missing",
        "rec/s",
        "p99",
        "partition",
        "SELECT",
        "access",
    ):
        assert words in told
    assert "FAILED" not in told
    assert sum(p["records"] for p in cli.json("topic", "describe", "access")[0]["partitions"]) == 10_000


def test_a_topic_of_somebody_else_is_left_alone(cli: Cli) -> None:
    cli("topic", "create", "access")
    cli("produce", "access", stdin="precious\n")
    refused = cli("demo", code=4)
    assert "Choose another with --topic" in refused.err
    assert cli.values("access") == ["precious"]


def test_a_failed_check_is_said_and_is_the_exit_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(run: demo_module.Run, tell: object) -> None:
        real(run, tell)  # type: ignore[arg-type]
        next(iter(run.received.values())).pop()

    real = demo_module._consume
    monkeypatch.setattr(demo_module, "_consume", lossy)
    monkeypatch.setattr(demo_module, "requests", lambda: iter(few()))
    monkeypatch.setattr(demo_module, "LATENCY_RECORDS", 50)
    answer = cli("demo", code=1)
    assert "✗ FAILED nothing is missing" in answer.out
    assert (
        "1 of 5 checks failed: nothing is missing: 39 of 40 requests came back; not so for line" in answer.err
    )


def few() -> list[Request]:
    return [Request(b"client-%d" % (n % 7), b'{"status": 200}', 1000 + n, True) for n in range(40)]


def test_what_to_type_next_is_what_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/logstore", "demo"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert _program() == ".venv/bin/logstore"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert _program() == "logstore"
