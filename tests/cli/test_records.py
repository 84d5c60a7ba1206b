"""`logstore produce` and `logstore consume`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logstore import Consumer, Producer
from tests.cli.conftest import Cli


@pytest.fixture
def orders(cli: Cli) -> Cli:
    cli("topic", "create", "orders", "--partitions", "2")
    return cli


def test_lines_come_back(orders: Cli) -> None:
    answer = orders("produce", "orders", stdin=b"one\ntwo\n\nfour")
    assert answer.out == ""
    assert answer.err.startswith("4 records to orders in ")
    assert orders.values("orders") == ["", "four", "one", "two"]


def test_keys_headers_partition_and_tombstones(orders: Cli) -> None:
    orders(
        "produce", "orders", "-k", r"\t", "-H", "source=shell", "-H", "empty", "-H", "source=again",
        "--partition", "1", "--null-value", "NULL", stdin="a\t1\nb\tNULL\n",
    )  # fmt: skip
    first, second = (
        json.loads(line) for line in orders("consume", "orders", "-p", "1", "--format", "json").lines
    )
    assert (first["key"], first["value"], first["partition"], first["offset"]) == ("a", "1", 1, 0)
    assert first["headers"] == [["source", "shell"], ["empty", None], ["source", "again"]]
    assert (second["key"], second["value"]) == ("b", None)
    assert "value_base64" not in second


@pytest.mark.every_server
def test_json_lines_survive_the_round_trip_whatever_is_in_them(orders: Cli) -> None:
    lines = [
        {"key": "k", "value": "v", "headers": [["h", "1"], ["h", {"base64": "/w=="}]], "partition": 1},
        {"key_base64": "/wA=", "value_base64": "G1syQg==", "timestamp": 1_432_116_317_000, "partition": 1},
        {"key": None, "value": None, "partition": 1},
    ]
    orders("topic", "create", "copy", "--partitions", "2")
    orders("produce", "orders", "--format", "jsonl", stdin="\n".join(map(json.dumps, lines)))
    printed = orders("consume", "orders", "--format", "json").out
    orders("produce", "copy", "--format", "jsonl", stdin=printed)
    copied = orders("consume", "copy", "--format", "json").out
    assert copied == printed.replace('"orders"', '"copy"')
    assert json.loads(printed.splitlines()[1])["timestamp"] == 1_432_116_317_000


def test_produce_reports_to_programs(orders: Cli) -> None:
    report = orders.json("produce", "orders", "--partition", "0", stdin="a\nbc\n")
    assert report["seconds"] > 0
    assert report | {"seconds": 0} == {
        "topic": "orders",
        "complete": True,
        "records": 2,
        "not_acknowledged": 0,
        "bytes": 3,
        "seconds": 0,
        "partitions": [{"partition": 0, "records": 2, "first_offset": 0, "last_offset": 1}],
    }


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_every_acks_writes(orders: Cli, acks: str) -> None:
    orders("produce", "orders", "--acks", acks, stdin="a\nb\n")
    assert orders.values("orders") == ["a", "b"]


def test_a_file_is_read_and_nothing_of_it_changed(orders: Cli, tmp_path: Path) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"\xff\x00\r\nplain\n")
    orders("produce", "orders", "--file", str(source), "--partition", "0", "--progress")
    assert orders("consume", "orders", "--format", "json").lines[0].endswith('"headers": []}')
    assert "\\xff\\x00\\r" in orders("consume", "orders").out


def test_reading_starts_and_ends_where_it_is_told(orders: Cli) -> None:
    orders("produce", "orders", "-p", "0", stdin="\n".join(f"r{number}" for number in range(10)))

    def read(*options: str) -> list[str]:
        return orders("consume", "orders", *options).lines

    assert read() == [f"r{number}" for number in range(10)]
    assert read("--offset", "7", "-p", "0") == ["r7", "r8", "r9"]
    assert read("--offset", "10", "-p", "0") == []
    assert read("--offset", "-2") == ["r8", "r9"]
    assert read("--offset", "-99") == read("--from-beginning")
    assert read("-n", "3") == ["r0", "r1", "r2"]
    assert read("-p", "1") == []
    assert read("--show", "partition,offset,key", "-n", "1") == ["0\t0\t(null)\tr0"]
    assert read("--template", "{offset}={value}", "-n", "2") == ["0=r0", "1=r1"]
    assert read("-n", "2", "-o", "json") == read("-n", "2", "--format", "json")


def test_time_bounds_are_exact_even_when_time_stamps_go_back(orders: Cli) -> None:
    times = [1000, 5000, 2000, 4000, 3000]
    orders(
        "produce", "orders", "--format", "jsonl",
        stdin="\n".join(json.dumps({"value": str(t), "timestamp": t, "partition": 0}) for t in times),
    )  # fmt: skip

    def moment(seconds: int) -> str:
        return f"1970-01-01T00:00:0{seconds}Z"

    assert orders("consume", "orders", "--since", moment(3)).lines == ["5000", "4000", "3000"]
    assert orders("consume", "orders", "--until", moment(3)).lines == ["1000", "2000"]
    assert orders("consume", "orders", "--since", moment(2), "--until", moment(4)).lines == ["2000", "3000"]
    assert orders("consume", "orders", "--since", "1h").lines == []


def test_a_topic_with_the_servers_time_stamps_is_read_up_to_a_time(cli: Cli) -> None:
    cli("topic", "create", "audit", "--config", "message.timestamp.type=LogAppendTime")
    cli("produce", "audit", stdin="a\nb\n")
    assert cli("consume", "audit", "--until", "1h").lines == []
    assert cli("consume", "audit", "--since", "1h").lines == ["a", "b"]


WRONG = [
    (("produce", "nothing"), "a\n", 3, "nothing"),
    (("produce", "orders", "-p", "9"), "a\n", 3, "9"),
    (("produce", "orders", "-k", ":"), "a:b\nc\n", 2, "Line 2: there is no key separator"),
    (("produce", "orders", "--format", "jsonl"), "{}\nnonsense\n", 2, "Line 2: not JSON"),
    (("produce", "orders", "--format", "jsonl", "-k", ":"), "", 2, "--format line"),
    (("produce", "orders", "-k", ""), "", 2, "empty"),
    (("produce", "orders", "--acks", "2"), "", 2, "--acks"),
    (("produce", "orders", "-X", "linger_mss=3"), "a\n", 2, "linger_ms"),
    (("produce", "orders", "-X", "linger_ms"), "a\n", 2, "NAME=VALUE"),
    (("produce", "orders", "--file", "/does/not/exist"), "", 2, "/does/not/exist"),
    (("produce", "orders"), "x" * 2_000_000, 4, "1048576"),
    (("consume", "nothing"), "", 3, "nothing"),
    (("consume", "orders", "-p", "7"), "", 3, "no partition 7: it has 2"),
    (("consume", "orders", "--offset", "5"), "", 3, "Offset 5"),
    (("consume", "orders", "--offset", "5", "--from-beginning"), "", 2, "one of"),
    (("consume", "orders", "--follow", "--until", "now"), "", 2, "--follow has no end"),
    (("consume", "orders", "--format", "template"), "", 2, "--template"),
    (("consume", "orders", "--format", "json", "--show", "key"), "", 2, "--show"),
    (("consume", "orders", "--show", "color"), "", 2, "color"),
    (("consume", "orders", "--template", "{nothing}"), "", 2, "{nothing}"),
    (("consume", "orders", "--since", "soon"), "", 2, "soon"),
    (("consume", "orders", "--since", "2h", "--until", "3h"), "", 2, "nothing between"),
    (("consume", "orders", "-X", "max_poll_record=3"), "", 2, "max_poll_records"),
]


def test_wrong_input_is_one_clear_line_and_a_code(orders: Cli) -> None:
    for argv, stdin, code, said in WRONG:
        answer = orders(*argv, stdin=stdin, code=code)
        error = answer.err.splitlines()[-1]
        assert error.startswith("error: ")
        assert said in error


def test_what_came_before_a_wrong_line_is_written_and_reported(orders: Cli) -> None:
    answer = orders("produce", "orders", "-k", ":", stdin="a:1\nb:2\nwrong\nc:3\n", code=2)
    assert answer.err.splitlines()[0] == "stopped: 2 records acknowledged by orders"
    assert orders.values("orders") == ["1", "2"]


def test_a_key_for_every_record_that_brings_none(orders: Cli) -> None:
    orders("produce", "orders", "--key", "k", "--format", "jsonl", stdin='{"key": "own"}\n{"value": "v"}\n')
    assert orders.values("orders", "--template", "{key}") == ["k", "own"]


def test_without_follow_it_reads_no_further_than_the_log_reached(
    orders: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Consumer.poll

    def poll(self: Consumer, *args: Any, **kwargs: Any) -> Any:
        with Producer(orders.dsn) as producer:
            producer.send("orders", b"late", partition=0).get(10)
        return real(self, *args, **kwargs)

    orders("produce", "orders", "-p", "0", stdin="a\nb\n")
    monkeypatch.setattr(Consumer, "poll", poll)
    assert orders("consume", "orders").lines == ["a", "b"]


def test_a_server_that_falls_silent_is_not_waited_for_for_ever(
    orders: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders("produce", "orders", stdin="a\nb\n")
    monkeypatch.setattr("logstore.cli.clients.PATIENCE_S", 0.0)
    monkeypatch.setattr(Consumer, "poll", lambda self, **_: {})
    answer = orders("consume", "orders", code=5)
    assert (
        answer.err == "error: No record came for 0 s, although the log goes on. Check that the server runs.\n"
    )
