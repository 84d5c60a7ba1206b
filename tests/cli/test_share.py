"""`logstore share`: what it prints, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from logstore.share import RELEASE
from tests.cli.conftest import Cli
from tests.support.appender import values
from tests.support.share import Queue


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    """Ten records; member a has taken five of them, finished two and released one."""
    with Queue(database, 2) as made:
        made.append("t", values(10))
        made.take("a", 5)
        made.acknowledge("a", 0, 1)
        made.acknowledge("a", 2, kind=RELEASE)
        yield made


def test_groups_are_listed_with_what_is_left(cli: Cli, queue: Queue) -> None:
    assert cli.json("share", "list") == [
        {
            "group": "g",
            "topics": ["t"],
            "partitions": 2,
            "in_flight": 2,
            "available": 1,
            "delayed": 0,
            "lag": 8,
            "members": ["a"],
        }
    ]
    assert "g" in cli("share", "list").out


def test_without_groups_the_list_says_how_to_make_one(cli: Cli) -> None:
    answer = cli("share", "list")
    assert "share alter" in answer.out + answer.err


def test_a_group_is_described(cli: Cli, queue: Queue) -> None:
    first, second = cli.json("share", "describe", "g")
    assert (first["topic"], first["partition"], first["start_offset"], first["end_offset"]) == ("t", 0, 2, 5)
    assert (first["in_flight"], first["available"], first["lag"]) == (2, 1, 8)
    assert second["lag"] == 0
    assert cli.json("share", "describe", "g", "--members") == [{"member": "a", "partitions": ["t:0"]}]
    assert cli.json("share", "describe", "g", "--configs")["share.delivery.count.limit"]["value"] == "5"
    for what in ("--offsets", "--members", "--configs"):
        assert cli("share", "describe", "g", what).lines
    assert "nobody" in cli("share", "describe", "nobody", code=3).err


def test_configs_are_set_and_unset(cli: Cli) -> None:
    answer = cli(
        "share",
        "alter",
        "new",
        "--config",
        "share.delivery.count.limit=9",
        "--config",
        "share.key.ordered=TRUE",
    )
    assert answer.lines == ["share.delivery.count.limit=9", "share.key.ordered=true"]
    assert cli.json("share", "alter", "new", "--unset", "share.delivery.count.limit") == {
        "group": "new",
        "configs": {"share.delivery.count.limit": "5"},
    }
    assert "share.delivery.count.limit" in cli("share", "alter", "new", "--config", "no.such=1", code=2).err
    assert "both" in cli("share", "alter", "new", "-c", "a=1", "--unset", "a", code=2).err


def test_resetting_is_shown_before_it_is_done(cli: Cli, queue: Queue) -> None:
    queue.pass_time(31)
    plan = cli.json("share", "reset-offsets", "g", "--topic", "t:0", "--to-earliest")
    assert plan == [
        {"topic": "t", "partition": 0, "start_offset": 2, "new_start_offset": 0, "executed": False}
    ]
    assert queue.start() == 2
    assert "--execute" in cli("share", "reset-offsets", "g", "--topic", "t", "--to-latest").err
    for arguments, expected in (
        (("--to-offset", "7"), 7),
        (("--to-offset", "99"), 10),
        (("--to-latest",), 10),
        (("--to-datetime", "2001-01-01"), 0),
    ):
        cli("share", "reset-offsets", "g", "--topic", "t:0", *arguments, "--execute")
        assert queue.start() == expected


def test_a_working_group_is_not_reset_or_deleted(cli: Cli, queue: Queue) -> None:
    for command in (
        ("reset-offsets", "g", "--topic", "t", "--to-earliest", "--execute"),
        ("delete-offsets", "g", "--topic", "t", "--yes"),
        ("delete", "g", "--yes"),
    ):
        assert "in flight" in cli("share", *command, code=4).err
    assert len(queue.rows()) == 2


@pytest.mark.parametrize(
    "arguments", [(), ("--to-earliest", "--to-latest"), ("--to-latest", "--execute", "--dry-run")]
)
def test_contradictions_are_refused(cli: Cli, queue: Queue, arguments: tuple[str, ...]) -> None:
    cli("share", "reset-offsets", "g", "--topic", "t", *arguments, code=2)


def test_offsets_and_groups_are_deleted(cli: Cli, queue: Queue) -> None:
    queue.pass_time(31)
    assert cli.json("share", "delete-offsets", "g", "--topic", "t:1", "--yes") == {"deleted": 1}
    assert len(cli.json("share", "describe", "g")) == 1
    assert cli.json("share", "delete", "g", "--yes") == {"deleted": "g"}
    assert cli.json("share", "list") == []
