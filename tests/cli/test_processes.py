"""Signals, pipes and tracebacks, in processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Process
from tests.support.servers import PREFIX

pytestmark = pytest.mark.long

Start = Callable[..., Process]


@pytest.fixture
def orders(cli: Cli) -> Cli:
    cli("topic", "create", "orders")
    return cli


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_consume_follows_until_it_is_interrupted(orders: Cli, start: Start, number: int, code: int) -> None:
    orders("produce", "orders", stdin="old\n")
    process = start("consume", "orders", "--follow", "--from-beginning")
    assert process.out.readline() == "old\n"
    orders("produce", "orders", stdin="new\n")
    assert process.out.readline() == "new\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", "stopped: 2 records of orders\n")


def test_produce_says_how_far_it_came_when_it_is_interrupted(orders: Cli, start: Start) -> None:
    follower = start("consume", "orders", "--follow", "--from-beginning")
    process = start("produce", "orders")
    assert process.stdin is not None
    process.stdin.write("one\ntwo\n")
    process.stdin.flush()
    # It has sent both and waits for the next line.
    assert [follower.out.readline(), follower.out.readline()] == ["one\n", "two\n"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "stopped: 2 records acknowledged by orders\n")


def test_an_interrupted_program_reads_the_report_as_json(orders: Cli, start: Start) -> None:
    follower = start("consume", "orders", "--follow", "--from-beginning")
    process = start("produce", "orders", "--output", "json")
    assert process.stdin is not None
    process.stdin.write("one\n")
    process.stdin.flush()
    follower.out.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    report = json.loads(out)
    assert (process.returncode, report["complete"], report["records"]) == (130, False, 1)


def test_a_reader_that_leaves_is_no_error(orders: Cli, database: str) -> None:
    orders("produce", "orders", stdin="".join(f"record {number}\n" for number in range(20_000)))
    program = f"{sys.executable} -m logstore.cli"
    command = f"{program} consume orders --from-beginning | head -n 2; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LOGSTORE_DSN": database},
    )
    assert answer.stdout == "record 0\nrecord 1\n141\n"
    assert answer.stderr == ""


@pytest.mark.parametrize("command", [("topic", "list"), ("--help",), ("sql", "SELECT 1", "-o", "json")])
def test_a_reader_that_never_came_is_no_error(database: str, command: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "logstore.cli", *command],
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "LOGSTORE_DSN": database},
            check=False,
        )
    finally:
        os.close(theirs)
    assert (answer.returncode, answer.stderr) == (141, b"")


def test_up_runs_a_server_until_ctrl_c_and_everybody_joins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(tempfile.mkdtemp(prefix=PREFIX))  # tmp_path is too long for a socket's path
    monkeypatch.setenv("LOGSTORE_HOME", str(home / "log"))
    monkeypatch.delenv("LOGSTORE_DSN", raising=False)
    command = [sys.executable, "-m", "logstore.cli", "up", "--setting", "fsync=off"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = list(itertools.takewhile(lambda line: line != "Ctrl-C stops it.\n", server.stdout))
        assert any(line.startswith("  export LOGSTORE_DSN='postgresql://") for line in said)
        assert json.loads(run("status", "--output", "json").stdout)["running"]
        # For the server's worker, also if nobody but programs with that DSN come.
        assert json.loads((home / "log" / "logs.json").read_text()) == ["logstore"]
        assert run("topic", "create", "orders").stdout == "orders: 1 partition\n"
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
        assert (server.returncode, err) == (0, "stopped\n")
        assert run("status").returncode == 5
    finally:
        run("down")
        server.kill()
        server.communicate()
        shutil.rmtree(home, ignore_errors=True)


def test_only_debug_shows_a_traceback_and_no_password(database: str) -> None:
    dsn = "postgresql://someone:s3cret@127.0.0.1:1/log"
    plain = run("topic", "list", "--dsn", dsn)
    assert plain.returncode == 5
    assert "Traceback" not in plain.stderr
    debug = run("--debug", "topic", "list", "--dsn", dsn)
    assert debug.returncode == 5
    assert "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
    assert "s3cret" not in debug.stderr


def test_the_installed_command_is_this_one() -> None:
    assert run("--version").stdout == run("--version", program=["logstore"]).stdout


def test_a_bar_is_shown_on_a_terminal_and_only_there(orders: Cli, database: str, tmp_path: Any) -> None:
    source = tmp_path / "lines"
    source.write_text("line\n" * 3000)
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "logstore.cli", "produce", "orders", "--file", str(source)],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "LOGSTORE_DSN": database, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            shown += piece
        assert process.communicate()[0] == b""
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert b"producing" in shown
    assert b"3,000 records to orders" in shown


def run(*argv: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [*(program or [sys.executable, "-m", "logstore.cli"]), *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )


def test_streams_that_are_closed_or_full(orders: Cli, database: str) -> None:
    program = f"{sys.executable} -m logstore.cli"
    answer = subprocess.run(
        ["bash", "-c", f"{program} produce orders <&- >&-; echo $?; {program} --help > /dev/full; echo $?"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LOGSTORE_DSN": database},
    )
    assert answer.stdout == "0\n1\n"
    assert answer.stderr.startswith("0 records to orders in ")
    assert answer.stderr.endswith(" s\nerror: No space left on device\n")
