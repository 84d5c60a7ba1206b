"""`logstore latest` and `logstore topic erase`."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_latest(cli: Cli) -> None:
    cli("topic", "create", "customers", "--config", "cleanup.policy=compact")
    cli("topic", "create", "plain")
    cli("produce", "customers", "--key-separator", ":", stdin="alice:old\nbob:1\nalice:new\n")
    assert cli("latest", "customers", "alice").out == "0\t2\talice\tnew\n"
    found = cli.json("latest", "customers", "alice", "--partition", "0")
    assert (found["offset"], found["key"], found["value"]) == (2, "alice", "new")
    assert "customers has no record with the key carol" in cli("latest", "customers", "carol", code=1).err
    assert "not compacted" in cli("latest", "plain", "alice", code=1).err
    cli("latest", "nothing", "alice", code=3)

    cli("produce", "customers", "--key-separator", ":", "--null-value", "-", stdin="alice:-\n")
    gone = cli("latest", "customers", "alice", code=1)
    assert gone.out == "" and "offset 3 of partition 0 is a tombstone" in gone.err

    # A key is bytes; the shell may have typed some that are no text.
    cli("produce", "customers", "--key", "\udcff", stdin="odd\n")
    assert cli("latest", "customers", "\udcff").out == "0\t4\t\\xff\todd\n"
    assert "the key \\xfe" in cli("latest", "customers", "\udcfe", code=1).err
    cli("topic", "erase", "customers", "--key", "\udcff", "--now", "--yes")
    cli("latest", "customers", "\udcff", code=1)

    refused = cli("produce", "customers", stdin="no key\n", code=4)
    assert "without a key" in refused.err


def test_erase(cli: Cli) -> None:
    cli("topic", "create", "customers")
    cli("produce", "customers", "--key-separator", ":", stdin="alice:1\nbob:1\nalice:2\n")
    asked = cli("topic", "erase", "customers", "--key", "alice", code=2)
    assert "Erase every record with the key alice" in asked.err and "write-ahead log" in asked.err
    (pending,) = cli.json("topic", "erase", "customers", "--key", "alice", "--yes")
    assert (pending["state"], pending["records"]) == ("pending", 0)
    done = cli("topic", "erase", "customers", "--key", "bob", "--now", "--yes")
    assert "removed" in done.out
    listed = cli.json("topic", "erase", "customers", "--list")
    assert [(each["state"], each["records"]) for each in listed] == [("removed", 2), ("removed", 1)]
    assert cli("consume", "customers", "--from-beginning").out == ""
    cli("topic", "erase", "nothing", "--key", "alice", "--yes", code=3)
    cli("topic", "erase", "customers", code=2)


def test_what_is_left_is_counted(cli: Cli) -> None:
    cli("topic", "create", "customers", "--config", "cleanup.policy=compact")
    cli("produce", "customers", "--key-separator", ":", stdin="alice:1\nbob:1\nalice:2\ncarol:1\n")
    cli("topic", "erase", "customers", "--key", "alice", "--now", "--yes")
    cli("produce", "customers", "--key-separator", ":", stdin="dora:1\n")
    ((described,),) = (topic["partitions"] for topic in cli.json("topic", "describe", "customers"))
    assert (described["start_offset"], described["end_offset"], described["records"]) == (0, 5, 3)
    assert cli.json("sql", "SELECT records, log_end_offset FROM partitions") == [
        {"records": 3, "log_end_offset": 5}
    ]
    ((listed,),) = (topic["partitions"] for topic in cli.json("topic", "list"))
    assert listed["records"] == cli.json("status")["records"] == 3
