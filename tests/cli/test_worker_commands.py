"""``logstore worker``."""

from __future__ import annotations

import json

import pytest

from logstore.workers.jobs import JOBS
from logstore.workers.leases import Leases
from tests.cli.conftest import Cli
from tests.support.log import watch


def test_every_job_once(cli: Cli) -> None:
    answer = cli("worker", "run", "--once")
    assert [line.split()[1] for line in answer.err.splitlines() if " ok in " in line] == [
        f"{name}:" for name in JOBS
    ]


def test_some_jobs_once_as_json(cli: Cli) -> None:
    answer = cli("worker", "run", "--once", "--only", "expiry", "--only", "drain", "--log", "json")
    finished = [line for line in map(json.loads, answer.err.splitlines()) if "job" in line]
    assert [(line["job"], line["outcome"]) for line in finished] == [("drain", "ok"), ("expiry", "ok")]
    assert finished[0]["result"] == {"records": 0, "emptied": 0}


def test_the_jobs(cli: Cli) -> None:
    before = json.loads(cli("worker", "jobs", "-o", "json").out)
    assert [job["job"] for job in before] == list(JOBS)
    assert {job["state"] for job in before} == {"never run"}
    cli("worker", "run", "--once", "--only", "statistics")
    after = {job["job"]: job for job in json.loads(cli("worker", "jobs", "-o", "json").out)}
    assert after["statistics"]["state"] == "waiting"
    assert after["statistics"]["result"]["topics"] == 0
    assert after["statistics"]["next_run"] > after["statistics"]["finished_at"]
    table = cli("worker", "jobs").out
    assert "every 5m" in table
    assert "0 topics with 0 records" in table


def test_schedules_are_stored(cli: Cli) -> None:
    def jobs(*options: str) -> dict[str, tuple[str, bool, str]]:
        found = json.loads(cli("worker", "jobs", "-o", "json", *options).out)
        return {job["job"]: (job["schedule"], job["stored"], job["state"]) for job in found}

    found = jobs("--cron", "statistics=*/5 3 * * *", "--every", "expiry=90s", "--pause", "drain")
    assert found["statistics"][:2] == ("*/5 3 * * *", True)
    assert found["expiry"][:2] == ("every 90s", True)
    assert found["drain"] == ("every 5s", False, "paused")
    found = jobs("--default", "statistics", "--every", "expiry=2m", "--resume", "drain", "--now", "expiry")
    assert found["statistics"][:2] == ("every 5m", False)
    assert found["expiry"][:2] == ("every 2m", True)
    assert found["drain"][2] == "waiting"
    assert watch(cli.dsn, "SELECT next_run FROM logstore.worker_job WHERE name = 'expiry'") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["jobs", "--cron", "statistics=* * *"], "has 3 fields, not 5"),
        (["jobs", "--cron", "statistics=0 0 31 2 *"], "never comes true"),
        (["jobs", "--every", "statistics=soon"], "is no interval"),
        (["jobs", "--every", "statistics"], "takes JOB=WHEN"),
        (["jobs", "--every", "vacuum=1m"], "no job 'vacuum'"),
        (["jobs", "--pause", "vacuum"], "no job 'vacuum'"),
        (["jobs", "--every", "drain=1m", "--cron", "drain=* * * * *"], "has two schedules"),
        (["run", "--only", "vacuum"], "no job 'vacuum'"),
        (["run", "--cron", "vacuum=* * * * *"], "no job 'vacuum'"),
        (["run", "--health-port", "here"], "is no address"),
        (["run", "--health-port", "192.0.2.1:80"], "Nothing can be served"),
    ],
)
def test_mistakes(cli: Cli, options: list[str], message: str) -> None:
    assert message in cli("worker", *options, code=2).err


def test_no_worker(cli: Cli) -> None:
    assert "No worker" in cli("worker", "status", code=5).out
    assert json.loads(cli("worker", "status", "-o", "json", code=5).out) == {"workers": [], "failing": []}


def test_no_log(cli: Cli, empty_database: str) -> None:
    answer = cli("worker", "run", "--dsn", empty_database, code=7)
    assert "logstore db upgrade" in answer.err


def test_a_worker_that_is_there(cli: Cli) -> None:
    leases = Leases(cli.dsn, "logstore", ["drain", "expiry"])
    leases.beat([], say=True)
    leases.claim("drain", at_once=True)
    found = json.loads(cli("worker", "status", "-o", "json").out)
    assert [(each["worker"], each["running"]) for each in found["workers"]] == [(leases.worker_id, ["drain"])]
    assert leases.worker_id in cli("worker", "status").out
    for _ in range(3):
        leases.finish("drain", "no room", None, 0)
        leases.claim("drain")
    leases.finish("drain", "no room", None, 0)
    answer = cli("worker", "status", code=5)
    assert "drain has failed" in answer.err
    assert "no room" in answer.err
    leases.close()
