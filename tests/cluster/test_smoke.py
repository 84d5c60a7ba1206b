"""A local cluster, from nothing to nothing, with a failover in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logstore import Admin, Producer
from logstore.cli.failures import guarded
from logstore.cli.root import root
from logstore.cluster import LocalCluster
from tests.cluster.conftest import SETTINGS
from tests.support.log import records
from tests.support.programs import eventually

pytestmark = pytest.mark.long


def test_a_cluster_outlives_its_leader(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> Any:
        capfd.readouterr()
        code = guarded(root, ["cluster", *argv, "--output", "json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    settings = [f"--setting={name}={value}" for name, value in SETTINGS.items()]
    up = run("up", "--replicas", "3", *settings)
    assert up["phase"] == "ready"
    assert sorted(member["role"] for member in up["members"]) == ["follower", "follower", "leader"]
    plan = LocalCluster(home).layout.read_plan()
    assert plan is not None
    assert not any(password in json.dumps(up) for password in plan.passwords.values())

    with Admin(up["dsn"]) as admin:
        admin.create_topic("t", configs={"min.insync.replicas": "2"})
    with Producer(up["dsn"], acks="all") as producer:
        assert producer.send("t", b"before").get(30).offset == 0
        assert run("kill", "leader") == {"killed": up["leader"]}
        assert producer.send("t", b"after").get(60).offset == 1
    assert [record.value for record in records(up["dsn"], "t")] == [b"before", b"after"]

    local = LocalCluster(home)
    eventually(lambda: local.status().phase == "degraded", "the others go on")
    assert run("down") == {"stopped": True, "removed": False}
    assert local.status().phase == "stopped"
