"""`logstore transaction`."""

from __future__ import annotations

import pytest

from logstore import Producer
from logstore.errors import ProducerFencedError
from tests.cli.conftest import Cli


def test_no_transactional_ids_yet(cli: Cli) -> None:
    assert cli("transaction", "list").out.startswith("No transactional ids")
    assert cli.json("transaction", "list") == []


def test_transactional_ids_are_listed_described_and_fenced(cli: Cli) -> None:
    cli("topic", "create", "orders")
    with Producer(cli.dsn, transactional_id="payments", client_id="till") as producer:
        producer.init_transactions()
        (listed,) = cli.json("transaction", "list")
        assert (listed["transactional_id"], listed["state"]) == ("payments", "Empty")
        assert cli.json("transaction", "list", "--state", "ongoing") == []
        assert cli("transaction", "list").lines[2].split()[0] == "payments"
        (described,) = cli.json("transaction", "describe", "payments")
        assert (described["producer_epoch"], described["client_id"]) == (0, "till")
        assert described["transaction_timeout_ms"] == 60_000
        assert "till" in cli("transaction", "describe", "payments").out

        producer.begin_transaction()
        producer.send("orders", b"x")
        assert cli("transaction", "fence", "payments", "--yes").out == (
            "payments: fenced, the epoch is 1 now\n"
        )
        with pytest.raises(ProducerFencedError):
            producer.commit_transaction()
    assert cli.json("transaction", "fence", "payments", "--yes") == [
        {"transactional_id": "payments", "epoch": 2}
    ]


def test_an_id_that_does_not_exist(cli: Cli) -> None:
    for command in ("describe", "fence"):
        answer = cli("transaction", command, "nobody", code=3)
        assert "nobody" in answer.err
        assert "logstore transaction list" in answer.err
