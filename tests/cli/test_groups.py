"""`logstore group`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logstore import Consumer, Producer
from tests.cli.conftest import Cli
from tests.support.programs import eventually


@pytest.fixture
def log(cli: Cli) -> None:
    """20 records in partition 0, 10 of them from 1970, and none in partition 1; group g has read 5."""
    cli("topic", "create", "orders", "-p", "2")
    with Producer(cli.dsn) as producer:
        for number in range(20):
            producer.send("orders", b"x", partition=0, timestamp_ms=1000 * number if number < 10 else None)
    plan = "orders,0,5\n"
    cli("group", "reset-offsets", "g", "--from-file", "-", "--execute", stdin=plan)


@pytest.fixture
def member(cli: Cli, log: None) -> Iterator[Consumer]:
    with Consumer("orders", dsn=cli.dsn, group_id="g", client_id="worker") as made:
        eventually(lambda: not made.poll(timeout_ms=10) and len(made.assignment()) == 2, "joined")
        yield made


def plan(cli: Cli, *options: str) -> dict[int, tuple[int | None, int]]:
    answer = cli.json("group", "reset-offsets", "g", *options)
    assert answer["executed"] == ("--execute" in options)
    return {each["partition"]: (each["current_offset"], each["new_offset"]) for each in answer["offsets"]}


def committed(cli: Cli) -> dict[int, int]:
    return {
        each["partition"]: each["committed_offset"]
        for each in cli.json("group", "lag", "g")
        if each["committed_offset"] is not None
    }


def test_no_groups_yet(cli: Cli) -> None:
    assert cli("group", "list").out == "No groups: a consumer with a group_id makes one.\n"
    assert cli.json("group", "list") == []


def test_group_is_listed_and_described(cli: Cli, member: Consumer) -> None:
    (listed,) = cli.json("group", "list")
    assert listed == {
        "group": "g", "kind": "consumer", "state": "Stable", "assignor": "uniform", "members": 1,
        "partitions": 2, "group_epoch": listed["group_epoch"], "assigned_epoch": listed["group_epoch"],
    }  # fmt: skip
    assert cli("group", "list").lines[2].split()[:4] == ["g", "consumer", "Stable", "uniform"]
    assert cli.json("group", "list", "--state", "empty") == []
    assert len(cli.json("group", "list", "--state", "stable", "--type", "consumer")) == 1
    assert cli.json("group", "list", "--type", "share") == []

    (described,) = cli.json("group", "describe", "g", "--members")
    (found,) = described["members"]
    assert found["client_id"] == "worker"
    assert found["subscription"] == "{orders}"
    assert [each["partition"] for each in found["assignment"]] == [0, 1]
    assert "orders:0-1" in cli("group", "describe", "g", "--members").out
    (state,) = cli.json("group", "describe", "g", "--state")
    assert state["state"] == "Stable"
    assert cli("group", "describe", "g", "--state").lines[2].split()[:3] == ["g", "consumer", "Stable"]


def test_lag(cli: Cli, log: None) -> None:
    (behind,) = cli.json("group", "describe", "g")
    assert (behind["topic"], behind["partition"]) == ("orders", 0)
    assert (behind["committed_offset"], behind["end_offset"], behind["lag"]) == (5, 20, 15)
    assert behind["seconds_behind"] > 1_000_000_000
    assert cli("group", "lag", "g").lines[2].split()[:6] == ["g", "orders", "0", "5", "20", "15"]
    cli("group", "lag", "nobody", code=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--topic", "orders", "--to-earliest"), {0: (5, 0), 1: (None, 0)}),
        (("--topic", "orders", "--to-latest"), {0: (5, 20), 1: (None, 0)}),
        (("--topic", "orders", "--to-current"), {0: (5, 5), 1: (None, 0)}),
        (("--topic", "orders:0", "--to-offset", "7"), {0: (5, 7)}),
        (("--topic", "orders:0", "--to-offset", "700"), {0: (5, 20)}),
        (("--all-topics", "--to-datetime", "1970-01-01T00:00:03Z"), {0: (5, 3)}),
        (("--all-topics", "--by-duration", "1h"), {0: (5, 10)}),
        (("--all-topics", "--by-duration", "PT1H"), {0: (5, 10)}),
        (("--all-topics", "--shift-by=-2"), {0: (5, 3)}),
        (("--all-topics", "--shift-by=-9"), {0: (5, 0)}),
        (("--all-topics", "--shift-by", "3"), {0: (5, 8)}),
    ],
)
def test_resetting_offsets(
    cli: Cli, log: None, options: tuple[str, ...], expected: dict[int, tuple[int | None, int]]
) -> None:
    assert plan(cli, *options) == expected
    assert committed(cli) == {0: 5}
    dry = cli("group", "reset-offsets", "g", *options)
    assert "Nothing was changed: add --execute" in dry.err
    assert plan(cli, *options, "--execute") == expected
    assert committed(cli) == {partition: new for partition, (_, new) in expected.items()}


def test_plan_goes_through_a_file(cli: Cli, log: None, tmp_path: Path) -> None:
    exported = cli("group", "reset-offsets", "g", "--topic", "orders", "--to-latest", "--export").out
    assert exported == "orders,0,20\norders,1,0\n"
    file = tmp_path / "plan.csv"
    file.write_text(exported)
    done = cli("group", "reset-offsets", "g", "--from-file", str(file), "--execute")
    assert done.lines[2].split() == ["orders", "0", "5", "20"]
    assert committed(cli) == {0: 20, 1: 0}


def test_live_group_is_left_alone(cli: Cli, member: Consumer) -> None:
    before = committed(cli)
    refused = cli("group", "reset-offsets", "g", "--topic", "orders", "--to-earliest", "--execute", code=4)
    assert "has 1 member" in refused.err
    cli("group", "delete", "g", "--yes", code=4)
    cli("group", "delete-offsets", "g", "--topic", "orders", "--yes", code=4)
    assert committed(cli) == before
    assert plan(cli, "--topic", "orders:0", "--to-earliest") == {0: (before[0], 0)}


def test_deleting(cli: Cli, log: None) -> None:
    cli("group", "delete-offsets", "g", "--topic", "orders:0", code=2)
    assert cli("group", "delete-offsets", "g", "-t", "orders", "--yes").out == "g: 1 offset forgotten\n"
    assert cli.json("group", "lag", "g") == []
    assert cli("group", "lag", "g").out == "Nothing is committed and nobody reads.\n"
    cli("group", "delete", "g", code=2)
    assert cli("group", "delete", "g", "g", "--yes").out == "g: deleted\n"
    cli("group", "delete", "g", "--yes", code=3)
    assert cli.json("group", "list") == []


def test_member_is_thrown_out(cli: Cli, member: Consumer) -> None:
    name = member.group_metadata().member_id
    assert cli("group", "remove-member", "g", name).out == f"{name}: removed\n"
    cli("group", "remove-member", "g", "nobody", code=3)
    cli("group", "remove-member", "nothing", name, code=3)


WRONG: list[Any] = [
    (("reset-offsets", "g", "--to-earliest"), "Say which partitions"),
    (("reset-offsets", "g", "--all-topics", "--topic", "orders", "--to-earliest"), "Say which partitions"),
    (("reset-offsets", "g", "--all-topics"), "Say where to"),
    (("reset-offsets", "g", "--all-topics", "--to-earliest", "--to-latest"), "Say where to"),
    (("reset-offsets", "g", "--all-topics", "--to-earliest", "--execute", "--dry-run"), "contradict"),
    (("reset-offsets", "g", "--from-file", "-", "--all-topics"), "says itself"),
    (("reset-offsets", "g", "--from-file", "-"), "there is nothing in it"),
    (("reset-offsets", "g", "--topic", "orders:x", "--to-earliest"), "is not TOPIC"),
    (("reset-offsets", "g", "--topic", "orders", "--topic", "orders:1", "--to-earliest"), "given twice"),
    (("reset-offsets", "g", "--topic", "orders", "--by-duration", "soon"), "is not a duration"),
    (("reset-offsets", "g", "--topic", "orders", "--by-duration", "2026-01-01"), "is not a duration"),
    (("reset-offsets", "g", "--topic", "orders", "--shift-by", "1"), "nothing to shift"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_usage(cli: Cli, log: None, arguments: tuple[str, ...], said: str) -> None:
    assert said in cli("group", *arguments, code=2).err
    assert committed(cli) == {0: 5}


def test_wrong_plan(cli: Cli, log: None, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"orders,0,\xff\n")
    assert "UTF-8" in cli("group", "reset-offsets", "g", "--from-file", str(binary), code=2).err
    for text in ("orders,0\n", "orders,x,1\n", "orders,0,1\norders,0,2\n", ",0,1\n"):
        cli("group", "reset-offsets", "g", "--from-file", "-", "--execute", stdin=text, code=2)
    cli("group", "reset-offsets", "g", "--from-file", "-", "--execute", stdin="orders,7,1\n", code=3)
    cli("group", "reset-offsets", "g", "--from-file", "-", "--execute", stdin="nothing,0,1\n", code=3)
    assert committed(cli) == {0: 5}
