"""What is deployed follows the same rules as the local cluster, which is tested."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import yaml

from logstore.cluster.configuration import PARAMETERS, RULES

DEPLOY = Path(__file__).parents[2] / "deploy"
OF_THE_PLACE = frozenset(
    {
        "checkpoint_timeout", "hot_standby", "lc_messages", "log_autovacuum_min_duration", "log_checkpoints",
        "log_line_prefix", "log_timezone", "max_connections", "max_slot_wal_keep_size", "max_wal_size",
        "shared_buffers", "timezone", "unix_socket_directories", "wal_keep_size", "wal_level",
    }
)  # fmt: skip
"""Settings that have nothing to do with what survives a failover, or depend on the machine."""


def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "patroni.yml").read_text())
    return found


def test_production_has_the_rules_that_are_tested() -> None:
    rules = template()["bootstrap"]["dcs"]
    different = {name for name, value in RULES.items() if rules.get(name) != value}
    # Less often: there, a death is seen to by the service manager.
    assert different == {"loop_wait"}
    assert rules["loop_wait"] + 2 * rules["retry_timeout"] <= rules["ttl"]
    assert rules["synchronous_node_count"] == 1
    settings = rules["postgresql"]["parameters"]
    assert {
        name for name, value in PARAMETERS.items() if str(settings.get(name)) != str(value)
    } <= OF_THE_PLACE
    assert template()["postgresql"]["remove_data_directory_on_diverged_timelines"] is True


def test_a_member_in_a_container_has_its_own_name_and_passwords() -> None:
    member = runpy.run_path(str(DEPLOY / "member.py"))
    passwords = {"POSTGRES_PASSWORD": "a", "REPLICATION_PASSWORD": "b", "PATRONI_PASSWORD": "c"}
    document = member["fitted"](template(), "pg2", passwords)
    assert "change-me" not in yaml.safe_dump(document)
    assert document["postgresql"]["connect_address"] == "pg2:5432"
    assert document["etcd3"]["hosts"] == ["etcd1:2379", "etcd2:2379", "etcd3:2379"]


def test_the_containers_are_a_majority_of_etcd_and_three_members() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["etcd1", "etcd2", "etcd3", "pg1", "pg2", "pg3"]
    for name in ("pg1", "pg2", "pg3"):
        assert services[name]["hostname"] == name
        assert services[name]["build"]["dockerfile"] == "deploy/Patronifile"
