"""``logstore tier``, ``logstore verify`` and the programs that people run, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from logstore import migrations
from logstore.cli.root import root
from logstore.errors import SchemaError
from logstore.workers import reclaim, tier_restore
from tests.support import objectstore
from tests.support.tiered import TieredLog


def run(log: TieredLog, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(root, [*arguments, "--dsn", log.dsn], catch_exceptions=True)
    return done.exit_code, done.output


def answer(log: TieredLog, *arguments: str) -> Any:
    code, output = run(log, *arguments, "--output", "json")
    return code, json.loads(output.splitlines()[0])


def test_list(log: TieredLog) -> None:
    code, found = answer(log, "tier", "list")
    assert code == 0
    assert len(found) == log.value("SELECT count(*) FROM remote_segments")
    assert found[0]["topic"] == "t"
    assert found[0]["first_offset"] == 0
    assert found[0]["state"] == "copied"
    assert Path(found[0]["url"].removeprefix("file://")).exists()
    code, output = run(log, "tier", "list", "t")
    assert code == 0
    assert found[0]["url"] in output
    assert run(log, "tier", "list", "nosuch")[0] != 0


def test_verify_the_files(log: TieredLog) -> None:
    assert answer(log, "tier", "verify")[0] == 0
    path = log.damage(lambda data: data[:50] + b"!" + data[51:], 1)
    missing = log.files(1)[0]
    missing.unlink()
    code, found = answer(log, "tier", "verify")
    assert code == 1
    assert found["bad"] == 2
    assert {result["url"] for result in found["results"] if not result["ok"]} == {
        f"file://{path}", f"file://{missing}",
    }  # fmt: skip
    assert {result["error"] for result in found["results"]} == {None, "RemoteFileError"}
    code, output = run(log, "tier", "verify", "t")
    assert code == 1
    assert str(path) in output
    assert "does not exist" in output


def test_restore(log: TieredLog) -> None:
    code, found = answer(log, "tier", "restore", "t", "--partition", "1", "--keep", "12h")
    assert code == 0
    assert found["records"] == log.value("SELECT sum(records) FROM remote_segments WHERE also_local")
    assert log.local_start(1) == 0
    assert run(log, "tier", "restore", "t", "--keep", "soon")[0] == 2
    assert run(log, "tier", "restore", "nosuch")[0] != 0


def test_run_and_location(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    log = make_log().fill()
    log.alter(remote_storage_url=None)
    assert run(log, "tier", "location", f"file://{tmp_path}/here")[0] == 0
    code, found = answer(log, "tier", "location")
    assert (code, found) == (0, {"url": f"file://{tmp_path}/here"})
    code, found = answer(log, "tier", "run", "t")
    assert code == 0
    assert found["files"] == len(list((tmp_path / "here").rglob("*.parquet"))) > 1
    code, output = run(log, "tier", "location", "sftp://me:secret@host/x")
    assert code != 0
    assert "secret" not in output


def test_verify_the_log(log: TieredLog) -> None:
    for step in range(4):
        code, output = run(log, "verify")
        assert code == 0, output
        if step == 0:
            reclaim.run_once(log.dsn)
        elif step == 1:
            log.rows("SELECT delete_records('t', 0, 33)")
            log.settle()
        elif step == 2:
            tier_restore.restore(log.dsn, "t")


def test_verify_misses_a_file(log: TieredLog) -> None:
    log.rows("DELETE FROM remote_segment WHERE file_id = (SELECT min(file_id) + 1 FROM remote_segment)")
    code, found = answer(log, "verify")
    assert code == 1
    assert "files" in json.dumps(found)


def test_other_commands_see_the_whole_topic(log: TieredLog) -> None:
    _, found = answer(log, "topic", "describe", "t")
    assert "400" in json.dumps(found) or "200" in json.dumps(found)
    code, output = run(log, "consume", "t", "--from-beginning", "--partition", "0", "--max-messages", "200")
    assert code == 0, output
    assert output.count("value ") == sum(record[4] is not None for record in log.records[0])


def test_deleting_a_topic(log: TieredLog, tmp_path: Path) -> None:
    assert run(log, "topic", "delete", "t", "--yes")[0] == 0
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_downgrade_would_lose_records(log: TieredLog) -> None:
    with pytest.raises(SchemaError, match="in files only"):
        migrations.downgrade(log.dsn, "logstore", "0009")
    tier_restore.restore(log.dsn, "t")
    migrations.downgrade(log.dsn, "logstore", "0009")


def test_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tier_killed", "--every", "13", "--only", "copy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was left over" in done.stdout


PROGRAM = """
import sys
from tests.support import objectstore
import logstore
from logstore.workers import tier
from logstore.cli import main
if sys.argv[1] == "read":
    print(sum(1 for _ in logstore.read("t", dsn=sys.argv[2])))
else:
    print(tier.run_once(sys.argv[2]).files)
"""


def test_each_in_a_process_of_its_own(make_log: Callable[..., TieredLog], tmp_path: Path) -> None:
    objectstore.install()
    log = make_log(f"object://{tmp_path}/bucket").fill()

    def program(what: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what, log.dsn], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert program("copy") > 1
    assert log.local_start() > 0
    assert program("read") == 200


@pytest.mark.parametrize("config", ["remote.storage.enable", "local.retention.ms", "local.retention.bytes"])
def test_configs_are_explained(log: TieredLog, config: str) -> None:
    _, found = answer(log, "topic", "describe", "t")
    (entry,) = [each for each in found[0]["configs"] if each["name"] == config]
    assert entry["doc"]
