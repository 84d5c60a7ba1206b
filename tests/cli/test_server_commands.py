"""`logstore db`, `status` and what cannot be reached."""

from __future__ import annotations

import socket

import pytest

from tests.cli.conftest import Cli
from tests.support.proxy import refusing_server


def test_the_schema_is_installed_shown_and_removed(cli: Cli) -> None:
    assert cli("db", "status", "--check").out.endswith(", current\n")
    assert "not installed" in cli("db", "status", "--schema", "second").out
    cli("db", "status", "--schema", "second", "--check", code=7)
    missing = cli("topic", "list", "--schema", "second", code=7)
    assert "logstore db upgrade" in missing.err
    assert cli.json("db", "upgrade", "--schema", "second")["is_current"]
    assert "'9999'" in cli("db", "downgrade", "--revision", "9999", "--schema", "second", "--yes", code=2).err
    cli("topic", "create", "orders", "--schema", "second")
    assert cli.json("topic", "list") == []
    assert [topic["topic"] for topic in cli.json("topic", "list", "--schema", "second")] == ["orders"]
    asked = cli("db", "downgrade", "--revision", "base", "--schema", "second", code=2)
    assert "--yes" in asked.err
    gone = cli.json("db", "downgrade", "--revision", "base", "--schema", "second", "--yes")
    assert (gone["revision"], gone["is_current"]) == (None, False)
    assert set(gone) == {"schema", "revision", "head", "functions_current", "is_current"}


def test_status_counts_what_there_is(cli: Cli) -> None:
    cli("topic", "create", "orders", "-p", "3")
    cli("produce", "orders", stdin="a\nb\n")
    found = cli.json("status")
    assert (found["running"], found["embedded"]) == (True, False)
    assert (found["topics"], found["partitions"], found["records"]) == (1, 3, 2)
    assert "records" in cli("status").out


def test_status_of_an_embedded_server_that_does_not_run_starts_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGSTORE_DSN")
    assert cli.json("status", code=5)["running"] is False
    assert cli("down").out == "it was not running\n"
    assert cli.json("status", code=5)["running"] is False


@pytest.mark.parametrize("command", [("topic", "list"), ("sql", "SELECT 1"), ("status",), ("db", "status")])
def test_a_server_that_does_not_answer_is_named_without_the_password(
    cli: Cli, command: tuple[str, ...]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        dsn = f"postgresql://someone:s3cret@127.0.0.1:{port}/log"
        answer = cli(*command, "--dsn", dsn, code=5)

    assert "127.0.0.1" in answer.err and str(port) in answer.err
    assert "s3cret" not in answer.err + answer.out
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [("topic", "list"), ("sql", "SELECT 1"), ("db", "status"), ("worker", "run", "--once")]
)
def test_a_wrong_password_is_told_from_a_server_that_does_not_answer(
    cli: Cli, command: tuple[str, ...]
) -> None:
    with refusing_server() as port:
        dsn = f"postgresql://someone:s3cret@127.0.0.1:{port}/log?sslmode=disable"
        answer = cli(*command, "--dsn", dsn, code=6)
    assert f"127.0.0.1:{port}" in answer.err and "s3cret" not in answer.err
    assert "PGPASSWORD" in answer.err


def test_a_dsn_that_is_none_is_a_usage_error(cli: Cli) -> None:
    answer = cli("topic", "list", "--dsn", "password=s3cret nonsense", code=2)
    assert "s3cret" not in answer.err
    assert "no Unicode" in cli("topic", "list", "--dsn", "postgresql://\udcff", code=2).err


def test_up_and_down_are_for_the_embedded_server(cli: Cli) -> None:
    cli("up", "--dsn", "postgresql://localhost/x", code=2)
    cli("down", "--dsn", "postgresql://localhost/x", code=2)


def test_up_says_when_its_settings_come_too_late(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logstore.embedded.run_in_foreground", lambda ready, settings: None)
    assert cli("up", "--setting", "fsync=off").err == "stopped\n"
    monkeypatch.setattr("logstore.cli.server.running_dsn", lambda: cli.dsn)
    assert "no effect" in cli("up", "--setting", "fsync=off").err
    assert cli("up").err == "stopped\n"


@pytest.mark.parametrize("command", [("status",), ("kill", "leader"), ("switchover",)])
def test_a_cluster_that_is_not_there_is_unavailable(cli: Cli, command: tuple[str, ...]) -> None:
    assert "logstore cluster up" in cli("cluster", *command, code=5).err
