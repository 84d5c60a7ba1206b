"""`logstore quota`."""

from __future__ import annotations

import pytest

from logstore import Admin, ClientQuotaEntity
from logstore.quotas import DEFAULT_ENTITY
from tests.cli.conftest import Cli


def test_no_quotas_yet(cli: Cli) -> None:
    assert cli("quota", "list").out.startswith("No quotas")
    assert cli.json("quota", "list") == []
    assert cli("quota", "list", "--usage").out.startswith("Nobody")
    assert cli.json("quota", "list", "--usage") == []


def test_quotas_are_set_listed_and_removed(cli: Cli) -> None:
    assert cli("quota", "set", "--client-id", "etl", "--produce", "2MB", "--fetch", "1.5 MiB/s").out == (
        "client id etl: producer_byte_rate=2000000, consumer_byte_rate=1572864\n"
    )
    cli("quota", "set", "--role", "app", "--default-client-id", "--produce", "500k")
    cli("quota", "set", "--default-role", "--fetch", "7")
    assert cli.json("quota", "list") == [
        {
            "role": None,
            "client_id": "etl",
            "producer_byte_rate": 2_000_000,
            "consumer_byte_rate": 1_572_864,
        },
        {"role": DEFAULT_ENTITY, "client_id": None, "consumer_byte_rate": 7},
        {"role": "app", "client_id": DEFAULT_ENTITY, "producer_byte_rate": 500_000},
    ]
    assert any("etl" in line for line in cli("quota", "list").lines)
    (produce, fetch) = [each for each in cli.json("quota", "list", "--usage") if each["client_id"] == "etl"]
    assert (produce["quota"], produce["rate"]) == ("consumer_byte_rate", 1_572_864)
    assert (fetch["quota"], fetch["throttle_time_ms"]) == ("producer_byte_rate", 0)

    assert cli("quota", "remove", "--client-id", "etl", "--only", "fetch").out == (
        "client id etl: no consumer_byte_rate\n"
    )
    cli("quota", "remove", "--default-role")
    cli("quota", "remove", "--client-id", "nobody")
    with Admin(cli.dsn) as admin:
        assert admin.describe_client_quotas() == {
            ClientQuotaEntity(None, "etl"): {"producer_byte_rate": 2_000_000},
            ClientQuotaEntity("app", DEFAULT_ENTITY): {"producer_byte_rate": 500_000},
        }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "--produce", "1MB"), "Whom for?"),
        (("remove",), "Whom for?"),
        (("set", "--client-id", "a"), "--produce, --fetch"),
        (("set", "--client-id", "a", "--default-client-id", "--fetch", "1"), "contradict"),
        (("set", "--client-id", "a", "--fetch", "fast"), "not bytes a second"),
        (("set", "--client-id", "a", "--fetch", "-5"), "not bytes a second"),
        (("set", "--client-id", "a", "--fetch", "9" * 400), "not bytes a second"),
    ],
)
def test_nonsense_is_refused(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    assert says in cli("quota", *arguments, code=2).err


def test_a_rate_of_nothing_and_a_name_in_another_script(cli: Cli) -> None:
    assert "from 1 to" in cli("quota", "set", "--client-id", "a", "--fetch", "0", code=2).err
    assert "ASCII" in cli("quota", "set", "--client-id", "ä", "--fetch", "1", code=2).err
