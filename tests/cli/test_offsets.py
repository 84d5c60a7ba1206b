"""`logstore offsets` and `logstore delete-records`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def orders(cli: Cli) -> Cli:
    cli("topic", "create", "orders", "--partitions", "2")
    lines = [json.dumps({"value": "v", "timestamp": t, "partition": 0}) for t in (1000, 3000, 2000)]
    cli("produce", "orders", "--format", "jsonl", stdin="\n".join(lines))
    return cli


def test_the_reach_of_every_partition(orders: Cli) -> None:
    keys = ("topic", "partition", "start_offset", "end_offset", "records", "max_timestamp")
    assert orders.json("offsets", "orders") == [
        dict(zip(keys, ("orders", 0, 0, 3, 3, 3000), strict=True)),
        dict(zip(keys, ("orders", 1, 0, 0, 0, None), strict=True)),
    ]
    table = orders("offsets", "orders", "--partition", "0").lines
    assert table[2].split() == ["orders", "0", "0", "3", "3", "1970-01-01T00:00:03.000Z"]


@pytest.mark.parametrize(
    ("moment", "offset"),
    [
        ("earliest", 0),
        ("latest", 3),
        ("max-timestamp", 1),
        ("1970-01-01T00:00:02Z", 1),
        ("1970-01-01T00:00:00.500Z", 0),
        ("now", None),
    ],
)
def test_the_offset_of_a_time(orders: Cli, moment: str, offset: int | None) -> None:
    (answer,) = orders.json("offsets", "orders", "-p", "0", "--time", moment)
    assert answer["offset"] == offset
    assert set(answer) == {"topic", "partition", "offset", "timestamp"}
    shown = orders("offsets", "orders", "-p", "0", "--time", moment).lines[2].split()
    assert shown[2] == ("-" if offset is None else str(offset))


def test_records_are_deleted_up_to_an_offset_a_time_or_all(orders: Cli) -> None:
    refused = orders("delete-records", "orders", "-p", "0", "--before-offset", "1", code=2)
    assert "Delete 1 records of orders for good?" in refused.err
    assert orders.json("delete-records", "orders", "-p", "0", "--before-offset", "1", "--yes") == [
        {"topic": "orders", "partition": 0, "deleted": 1, "start_offset": 1, "end_offset": 3}
    ]
    assert len(orders.values("orders")) == 2
    again = orders.json("delete-records", "orders", "-p", "0", "--before-offset", "1", "--yes")
    assert again[0]["deleted"] == 0
    by_time = orders.json("delete-records", "orders", "--before-time", "1970-01-01T00:00:03Z", "--yes")
    assert [entry["deleted"] for entry in by_time] == [0, 0]
    assert [entry["deleted"] for entry in orders.json("delete-records", "orders", "--all", "--yes")] == [2, 0]
    assert orders.values("orders") == []


WRONG = [
    (("offsets", "nothing"), 3, "nothing"),
    (("offsets", "orders", "-p", "5"), 3, "no partition 5: it has 2"),
    (("offsets", "orders", "--time", "soon"), 2, "soon"),
    (("offsets", "orders", "--time", "1969-12-31T23:59:59.999Z"), 2, "before 1970"),
    (("delete-records", "orders", "--before-time", "1969-12-31T23:59:59.999Z", "--yes"), 2, "before 1970"),
    (("delete-records", "nothing", "--all", "--yes"), 3, "nothing"),
    (("delete-records", "orders", "--yes"), 2, "one of"),
    (("delete-records", "orders", "--all", "--before-offset", "1"), 2, "one of"),
    (("delete-records", "orders", "-p", "0", "--before-offset", "9", "--yes"), 3, "9"),
]


def test_wrong_input_is_one_clear_line_and_a_code(orders: Cli) -> None:
    for argv, code, said in WRONG:
        answer = orders(*argv, code=code)
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1
        assert said in answer.err
        assert orders.json("offsets", "orders")[0]["records"] == 3
