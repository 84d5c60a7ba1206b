"""What is deployed follows the same rules as the local cluster, which is tested."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from logstore.cluster.configuration import PARAMETERS, RULES, Histories
from logstore.embedded import binaries

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


def test_production_keeps_the_histories_of_timelines_as_is_tested() -> None:
    document = template()
    settings = document["bootstrap"]["dcs"]["postgresql"]["parameters"]
    histories = Histories(Path("/var/lib/logstore/histories"))
    assert settings["archive_mode"] == "on"
    assert settings["archive_command"] == histories.keep(None)
    assert settings["restore_command"] == histories.fetch(None)
    _, _, module, data, interface, fetch = shlex.split(document["postgresql"]["pre_promote"])
    assert importlib.util.find_spec(module) is not None
    assert data == document["postgresql"]["data_dir"]
    assert interface.endswith(document["restapi"]["listen"].partition(":")[2])
    assert fetch == histories.fetch(None)


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


def test_the_page_explains_the_settings_that_are_deployed() -> None:
    """Each ``name: value`` of the table in docs/replication.md is what deploy/patroni.yml has."""
    page = (DEPLOY.parent / "docs" / "replication.md").read_text()
    table = re.search(r"^\| setting \| why \|\n\|---\|---\|\n((?:\|.*\n)+)", page, re.M)
    assert table is not None
    document = template()
    rules = document["bootstrap"]["dcs"]
    server = document["postgresql"]
    known = {**document, **server, **rules, **rules["postgresql"], **rules["postgresql"]["parameters"]}
    said = [
        part
        for row in table[1].splitlines()
        for part in re.findall(r"`([a-z_]+(?:: [^`]+)?)`", row.split("|")[1])
    ]
    assert len(said) > 10
    for part in said:
        name, _, value = part.partition(": ")
        assert name in known, part
        if value:
            assert known[name] in (value, yaml.safe_load(value)), part


def test_patroni_finds_no_fault_with_it(tmp_path: Path) -> None:
    document = template()
    document["postgresql"]["bin_dir"] = str(binaries.find().directory)
    document["postgresql"]["data_dir"] = str(tmp_path / "data")
    assert faults(tmp_path, document) == ""
    del document["restapi"]["connect_address"]
    document["bootstrap"]["dcs"]["loop_wait"] = "soon"
    told = faults(tmp_path, document)
    assert "connect_address" in told and "loop_wait" in told


def faults(place: Path, document: dict[str, Any]) -> str:
    file = place / "patroni.yml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "patroni", "--validate-config", "--ignore-listen-port", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) is (done.stdout + done.stderr == "")
    return done.stdout + done.stderr


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = (DEPLOY / "patroni.service").read_text()
    [module] = re.findall(
        r"^ExecStopPost=-/opt/logstore/bin/python -m (\S+) /etc/patroni/patroni.yml$", text, re.M
    )
    assert importlib.util.find_spec(module) is not None
    copy = tmp_path / "patroni.service"
    copy.write_text(text.replace("/opt/logstore/bin", str(Path(sys.executable).parent)))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["Containerfile", "Patronifile"])
def test_what_images_are_made_of_is_there(name: str) -> None:
    text = (DEPLOY / name).read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for part in line.split():
            assert (DEPLOY.parent / part).exists(), part
    extras = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [extra] = re.findall(r"'\.\[(\w+)\]'", text)
    assert extra in extras
    assert text.rindex("\nUSER ") < text.rindex("\nENTRYPOINT ")


def test_the_etcd_of_the_containers_know_each_other() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = document["services"]
    for name in ("etcd1", "etcd2", "etcd3"):
        options = dict(part[2:].split("=", 1) for part in services[name]["command"][1:])
        assert options["name"] == name
        peers = dict(part.split("=", 1) for part in options["initial-cluster"].split(","))
        assert peers[name] == options["initial-advertise-peer-urls"]
        assert sorted(peers) == ["etcd1", "etcd2", "etcd3"]
        assert f"{name}:2379" in options["advertise-client-urls"]
        assert options["data-dir"] == services[name]["volumes"][0].partition(":")[2]
    ports = []
    for name in ("pg1", "pg2", "pg3"):
        # Nobody from elsewhere gets in, and each keeps its data where Patroni looks for them.
        ports += services[name]["ports"]
        assert services[name]["volumes"] == [
            f"{name}:/var/lib/logstore",
            "histories:/var/lib/logstore/histories",
        ]
        assert set(services[name]["depends_on"]) == {"etcd1", "etcd2", "etcd3"}
    assert len(set(ports)) == 3 and all(port.startswith("127.0.0.1:") for port in ports)
    assert template()["postgresql"]["data_dir"].startswith("/var/lib/logstore/")
    used = {volume.partition(":")[0] for each in services.values() for volume in each["volumes"]}
    assert used == set(document["volumes"])


def test_the_lease_is_longer_than_a_member_needs_to_give_up() -> None:
    for rules in (RULES, template()["bootstrap"]["dcs"]):
        assert rules["loop_wait"] + 2 * rules["retry_timeout"] <= rules["ttl"]
