"""The mirror's process: killed, stopped, run twice, and from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from logstore.cli.root import root
from tests.support import jobs
from tests.support.appender import values
from tests.support.mirror_killed import hurt
from tests.support.mirrored import Both

pytestmark = pytest.mark.long


def run(*arguments: str, ok: bool = True) -> str:
    done = CliRunner().invoke(root, ["mirror", *arguments], catch_exceptions=True)
    assert (done.exit_code == 0) == ok, (done.output, done.exception)
    return done.output if ok else f"{type(done.exception).__name__}: {done.exception} {done.output}"


def answer(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--output", "json").splitlines()[0])


@pytest.mark.parametrize("at_once", [1, 2])
def test_killed(both: Both, at_once: int) -> None:
    assert hurt(both, 3, 7, at_once=at_once) > 0


MEMORY = """
import resource, sys
from logstore.workers.mirroring import Link, Mirror
def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Mirror(Link(*sys.argv[1:3]), ["small"], parallel=1) as mirror:
    mirror.cycle()
before = used()
with Mirror(Link(*sys.argv[1:3]), ["large"], parallel=1) as mirror:
    print(mirror.cycle().records, used() - before)
"""


def test_memory_is_bounded(both: Both) -> None:
    for topic in ("small", "large"):
        both.create(topic, 1)
        for _ in range(1 if topic == "small" else 44):
            both.append(topic, [b"x" * 1000] * 900, wake=False)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, both.link.source, both.link.target],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    records, kilobytes = map(int, done.stdout.split())
    assert records == 44 * 900
    # Of 40 MB, in chunks of 4.
    assert kilobytes < 32_000


def test_ends_when_told_to(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(3))
    command = [sys.executable, "-m", "logstore.cli", "mirror", "run", "--from", both.link.source,
               "--to", both.link.target, "--interval", "10ms", "--output", "json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["records"] == 3
            both.append("t", values(2))
            assert json.loads(process.stdout.readline())["records"] == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert both.differences() == []


def test_lag_counts_offsets_with_the_holes_between_them(both: Both) -> None:
    """As a group's lag does: how many records are left is not known without reading them."""
    ends = ["--from", both.link.source, "--to", both.link.target]
    both.create("t", 1, cleanup_policy="compact", segment_bytes="2000", min_cleanable_dirty_ratio="0")
    both.append("t", values(5), keys=[b"k"] * 5)
    both.cycle()
    for number in range(12):
        both.append("t", values(10, 10 * number), keys=[b"k"] * 10)
    jobs.settle(both.link.source, ["roll", "compaction", "reclaim"])
    left = both.source.execute('SELECT count(*) FROM records WHERE "offset" >= 5').fetchone()
    (behind,) = answer("status", *ends)
    assert (behind["source_end"], behind["mirror_end"], behind["records_behind"]) == (125, 5, 120)
    assert left is not None and 0 < left[0] < 120
    assert both.cycle().records == 120
    (behind,) = answer("status", *ends)
    assert (behind["records_behind"], behind["seconds_behind"]) == (0, 0)
    assert both.target.execute('SELECT count(*) FROM records WHERE "offset" >= 5').fetchone() == left


def test_the_commands(both: Both) -> None:
    ends = ["--from", both.link.source, "--to", both.link.target]
    both.create("orders", 2)
    both.create("web.hits", 1)
    both.append("orders", values(5), 1)
    assert "No topic is mirrored here" in run("status", *ends)
    assert "0 records of 0 topics" in run("run", *ends, "--once", "--topics", "web.*")
    assert run("run", *ends, "--once").startswith("5 records of 1 topic copied")
    both.append("orders", values(7), 1)
    found = {(each["topic"], each["partition"]): each for each in answer("status", *ends)}
    there = found["orders", 1]
    assert (there["source_end"], there["mirror_end"], there["records_behind"]) == (12, 5, 7)
    assert there["seconds_behind"] >= 0
    assert (there["state"], there["live"], there["parted"]) == ("mirror", True, False)
    assert (found["orders", 0]["records_behind"], found["orders", 0]["seconds_behind"]) == (0, 0)
    assert len(found) == 3
    table = run("status", *ends)
    assert "orders" in table
    assert "behind" in table
    # As it was last seen.
    (seen,) = [each for each in answer("status", "--to", both.link.target) if each["records_behind"]] or [
        None
    ]
    assert seen is None
    gone = "host=127.0.0.1 port=1 connect_timeout=2"
    assert not answer("status", "--from", gone, "--to", both.link.target)[0]["live"]
    assert "may lack records" in run("promote", "--from", gone, "--to", both.link.target, ok=False)
    promoted = answer("promote", *ends, "--topics", "orders")
    assert (promoted["topics"], promoted["fenced"], promoted["ends"]) == (
        ["orders"],
        True,
        {"orders": [0, 12]},
    )
    assert {each["state"] for each in answer("status", *ends, "--topics", "orders")} == {"promoted"}
    assert "not mirrored" in run("run", *ends, "--once", ok=False)
    assert "unknown" not in run("promote", *ends, "--topics", "web.hits")
    assert both.differences("records") == []


def test_wrong_input(both: Both, monkeypatch: pytest.MonkeyPatch, empty_database: str) -> None:
    monkeypatch.delenv("LOGSTORE_MIRROR_FROM", raising=False)
    both.create("t", 1)
    to = ["--to", both.link.target]
    assert "Say where to copy from" in run("run", *to, ok=False)
    assert "same log" in run("run", "--from", both.link.target, *to, "--once", ok=False)
    assert "not valid" in run("run", "--from", "nonsense", *to, "--once", ok=False)
    assert "db upgrade" in run("run", "--from", empty_database, *to, "--once", ok=False)
    assert "db upgrade" in run("run", "--from", both.link.source, "--to", empty_database, "--once", ok=False)
    assert "refused" in run("run", "--from", "host=127.0.0.1 port=1", *to, "--once", ok=False)
    assert "No topic" in run("promote", "--from", both.link.source, *to, ok=False)
    assert "'x'" in run("promote", "--from", both.link.source, *to, "--topics", "x", ok=False)
    assert "not in the range" in run("run", "--from", both.link.source, *to, "--parallel", "0", ok=False)
    assert "duration" in run("run", "--from", both.link.source, *to, "--interval", "soon", ok=False)
    secret = "postgresql://someone:hunter2@127.0.0.1:1/x"
    assert "hunter2" not in run("run", "--from", secret, *to, "--once", ok=False)
