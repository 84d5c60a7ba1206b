"""`logstore topic`."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli


@pytest.mark.every_server
def test_topics_are_created_listed_described_altered_and_deleted(cli: Cli) -> None:
    assert cli("topic", "list").out == "No topics yet: logstore topic create NAME\n"
    assert cli.json("topic", "list") == []
    created = cli("topic", "create", "orders", "--partitions", "2", "--config", "retention.ms=5000")
    assert created.out == "orders: 2 partitions\n"
    assert cli("topic", "create", "audit").out == "audit: 1 partition\n"

    listed = cli.json("topic", "list")
    assert [(t["topic"], len(t["partitions"])) for t in listed] == [("audit", 1), ("orders", 2)]
    assert listed[0]["partitions"] == [
        {"partition": 0, "start_offset": 0, "end_offset": 0, "records": 0, "max_timestamp": None}
    ]
    table = cli("topic", "list").lines
    assert table[0].split() == ["topic", "partitions", "records", "newest", "record"]
    assert table[2].split() == ["audit", "1", "0", "-"]

    (described,) = cli.json("topic", "describe", "orders")
    configs = {config["name"]: config for config in described["configs"]}
    assert configs["retention.ms"]["value"] == "5000"
    assert not configs["retention.ms"]["is_default"]
    assert configs["cleanup.policy"] == {**configs["cleanup.policy"], "value": "delete", "is_default": True}
    assert "retention.ms   5000" in cli("topic", "describe", "orders").out
    assert "cleanup.policy" not in cli("topic", "describe", "orders").out
    assert "cleanup.policy" in cli("topic", "describe", "orders", "--all").out

    changed = cli("topic", "alter", "orders", "--unset", "retention.ms", "--config", "max.message.bytes=2000")
    assert "max.message.bytes = 2000\n" in changed.out
    assert "retention.ms = 604800000 (default)\n" in changed.out

    assert cli("topic", "add-partitions", "orders", "--total", "5").out == "orders: 5 partitions\n"
    assert cli("topic", "delete", "orders", "audit", "--yes").out == "orders: deleted\naudit: deleted\n"
    assert cli.json("topic", "list") == []


def test_creating_twice_is_refused_unless_said_otherwise(cli: Cli) -> None:
    cli("topic", "create", "orders", "-p", "3")
    again = cli("topic", "create", "orders", code=4)
    assert again.err.startswith("error: ") and "orders" in again.err
    assert cli("topic", "create", "orders", "--if-not-exists").out == "orders: 3 partitions\n"


def test_deleting_asks_first(cli: Cli) -> None:
    cli("topic", "create", "orders")
    cli("produce", "orders", stdin="a\nb\n")
    refused = cli("topic", "delete", "orders", code=2)
    assert "Delete orders with 2 records? Nobody can be asked here: add --yes." in refused.err
    assert cli("topic", "delete", "nothing", "--if-exists").out == ""
    cli("topic", "delete", "orders", "nothing", "--yes", code=3)
    assert [topic["topic"] for topic in cli.json("topic", "list")] == ["orders"]


WRONG = [
    (("topic", "describe", "nothing"), 3, "nothing"),
    (("topic", "alter", "nothing", "--unset", "retention.ms"), 3, "nothing"),
    (("topic", "add-partitions", "nothing", "--total", "2"), 3, "nothing"),
    (("topic", "delete", "nothing", "--yes"), 3, "nothing"),
    (("topic", "create", "not/legal"), 2, "not/legal"),
    (("topic", "create", ""), 2, "name"),
    (("topic", "create", "x", "--config", "retention.ms=soon"), 2, "retention.ms"),
    (("topic", "create", "x", "--config", "retention.mss=5"), 2, "retention.ms"),
    (("topic", "create", "x", "--config", "retention.ms"), 2, "NAME=VALUE"),
    (("topic", "create", "x", "--partitions", "0"), 2, "--partitions"),
    (("topic", "create", "x", "--replication-factor", "2"), 4, "one server would have it"),
    (("topic", "create", "x", "--replication-factor", "0"), 4, "1 or more"),
    (("topic", "describe"), 2, "TOPIC"),
    (("topic", "describe", "nothing", "--at-min-isr-partitions"), 3, "nothing"),
    (("topic", "alter", "x"), 2, "Nothing to do"),
    (("topic", "alter", "x", "--config", "a=1", "--unset", "a"), 2, "both set and unset"),
]


def test_wrong_input_is_one_clear_line_and_a_code(cli: Cli) -> None:
    for argv, code, said in WRONG:
        answer = cli(*argv, code=code)
        assert answer.out == ""
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1
        assert said in answer.err


def test_a_deleted_topic_gives_its_space_back(cli: Cli) -> None:
    cli("topic", "create", "orders")
    leaves = "SELECT count(*)::int AS leaves FROM pg_class WHERE relname ~ '^b_[0-9]+_[0-9]+$'"
    assert cli.json("sql", leaves) == [{"leaves": 1}]
    cli("topic", "delete", "orders", "--yes")
    assert cli.json("sql", leaves) == [{"leaves": 0}]


def test_only_yes_deletes(cli: Cli) -> None:
    cli("topic", "create", "orders")
    for answer in ("n\n", "\n", ""):
        refused = cli("topic", "delete", "orders", stdin=answer, tty=True, code=1)
        assert "Delete orders with 0 records? [y/N]" in refused.err
        assert refused.err.endswith("error: not confirmed: nothing was changed\n")
    cli("topic", "delete", "orders", stdin="y\n", tty=True)
    assert cli.json("topic", "list") == []


def test_partitions_cannot_be_taken_away(cli: Cli) -> None:
    cli("topic", "create", "orders", "-p", "3")
    cli("topic", "add-partitions", "orders", "--total", "2", code=2)
    assert len(cli.json("topic", "describe", "orders")[0]["partitions"]) == 3


def test_a_hostile_name_is_a_name(cli: Cli) -> None:
    name = "x'; DROP SCHEMA logstore CASCADE; --"
    cli("topic", "create", name, code=2)
    cli("topic", "describe", name, code=2)
    assert cli.json("topic", "list") == []


def test_a_topic_that_was_probably_meant_is_named(cli: Cli) -> None:
    cli("topic", "create", "orders")
    for command in (("topic", "describe"), ("consume",), ("topic", "alter", "--unset", "retention.ms")):
        assert "Did you mean 'orders'?" in cli(*command, "ordres", code=3).err
    assert "Did you mean" not in cli("consume", "payments", code=3).err
    assert "Did you mean" not in cli("consume", "orders", "--partition", "7", code=3).err
    assert (
        "Did you mean retention.ms?" in cli("topic", "alter", "orders", "--unset", "retention_ms", code=2).err
    )


def test_ctrl_c_at_a_question_is_told_from_a_no(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(prompt: str) -> str:
        raise KeyboardInterrupt

    cli("topic", "create", "orders")
    assert "nothing was changed" in cli("topic", "delete", "orders", stdin="n\n", tty=True, code=1).err
    monkeypatch.setattr("click.termui.visible_prompt_func", strike)
    assert "nothing was changed" in cli("topic", "delete", "orders", tty=True, code=130).err
