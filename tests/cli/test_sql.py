"""`logstore sql`."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from logstore.embedded import binaries
from tests.cli.conftest import Cli


@pytest.fixture
def orders(cli: Cli) -> Cli:
    cli("topic", "create", "orders")
    cli("produce", "orders", "-k", ":", stdin='alice:{"total": 12}\nbob:{"total": 5}\nalice:not json\n')
    return cli


@pytest.mark.every_server
def test_the_views_are_there_without_a_schema(orders: Cli) -> None:
    statement = (
        "SELECT key_text, sum((value_json->>'total')::int) AS total FROM records GROUP BY 1 ORDER BY 1"
    )
    assert [line.split() for line in orders("sql", statement).lines] == [
        ["key_text", "total"],
        ["─" * len(orders("sql", statement).lines[1])],
        ["alice", "12"],
        ["bob", "5"],
    ]
    assert orders.json("sql", statement) == [
        {"key_text": "alice", "total": 12},
        {"key_text": "bob", "total": 5},
    ]
    assert orders("sql", statement, "-o", "csv").out == "key_text,total\nalice,12\nbob,5\n"
    assert orders.json("sql", "SELECT count(*) AS n FROM orders") == [{"n": 3}]
    assert orders.json("sql", "SELECT topic FROM topics") == [{"topic": "orders"}]


def test_every_type_has_a_form(orders: Cli) -> None:
    statement = (
        r"SELECT NULL AS nothing, true AS flag, 1.50::numeric AS amount, '\xff'::bytea AS bytes, "
        "'2026-11-22T10:00:00Z'::timestamptz AT TIME ZONE 'UTC' AS at, ARRAY[1, 2] AS list, "
        """'{"a": [1]}'::jsonb AS doc, 'a,"b"' AS text, '6 days'::interval AS pause"""
    )
    (row,) = orders.json("sql", statement)
    assert row == {
        "nothing": None, "flag": True, "amount": 1.5, "bytes": "\\xff", "at": "2026-11-22T10:00:00",
        "list": [1, 2], "doc": {"a": [1]}, "text": 'a,"b"', "pause": "6 days, 0:00:00",
    }  # fmt: skip
    (cells,) = csv.DictReader(io.StringIO(orders("sql", statement, "-o", "csv").out))
    assert cells["text"] == 'a,"b"'
    assert json.loads(cells["doc"]) == {"a": [1]}
    assert cells["nothing"] == ""


def test_what_json_has_no_number_for_is_named_as_postgres_does(orders: Cli) -> None:
    statement = (
        "SELECT 'NaN'::float8 AS nan, '-Infinity'::float4 AS low, 'Infinity'::numeric AS high,"
        " 'NaN'::numeric AS odd, ARRAY['NaN'::float8, 1] AS list, 1.5::float8 AS plain"
    )
    out = orders("sql", statement, "-o", "json").out
    (row,) = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {
        "nan": "NaN", "low": "-Infinity", "high": "Infinity", "odd": "NaN", "list": ["NaN", 1], "plain": 1.5,
    }  # fmt: skip
    assert orders("sql", statement, "-o", "csv").lines[1].startswith("NaN,-Infinity,Infinity,NaN,")


def test_a_table_neither_cuts_nor_drives_the_terminal(orders: Cli) -> None:
    wide = orders("sql", "SELECT repeat('x', 5000) AS long, E'\\x1b[2J' AS hostile").out
    assert "x" * 5000 in wide
    assert "\x1b" not in wide
    assert "\\x1b[2J" in wide


def test_many_rows_are_cut_with_a_word_and_streamed_without(orders: Cli) -> None:
    answer = orders("sql", "SELECT generate_series(1, 50) AS n", "--limit", "10")
    assert len(answer.lines) == 12
    assert "40 more rows" in answer.err
    assert len(orders.json("sql", "SELECT generate_series(1, 5000) AS n")) == 5000


def test_statements_come_from_a_file_or_stdin_too(orders: Cli, tmp_path: Path) -> None:
    path = tmp_path / "report.sql"
    path.write_text("SELECT 1 AS one")
    assert orders("sql", "--file", str(path), "-o", "csv").out == "one\n1\n"
    path.write_bytes(b"SELECT '\xff'")
    assert "UTF-8" in orders("sql", "--file", str(path), code=2).err
    assert orders("sql", "-o", "csv", stdin="SELECT 2 AS two").out == "two\n2\n"


def test_a_statement_without_rows_says_what_it_did(orders: Cli) -> None:
    assert orders("sql", "CREATE TEMP TABLE t (a int)").out == "CREATE TABLE\n"
    assert orders("sql", "SELECT 1 WHERE false").out == "(no rows)\n"
    assert orders.json("sql", "SELECT 1 AS a WHERE false") == []
    assert orders.json("sql", "CREATE TABLE done (a int)") == []
    assert orders("sql", "INSERT INTO done VALUES (1)", "-o", "csv").out == ""
    assert orders.json("sql", "SELECT a FROM done") == [{"a": 1}]


WRONG = [
    (("SELEC 1",), 1, 'syntax error at or near "SELEC" (at character 1)'),
    (("SELECT * FROM nothing",), 1, '"nothing" does not exist'),
    (("SELECT 1/0",), 1, "division by zero"),
    (("SELECT produce('orders', 'k', 'v'); SELECT 2",), 2, "nothing was done"),
    (("",), 2, "empty"),
    (("SELECT 1", "--file", "-"), 2, "not both"),
    (("SELECT produce('nothing', 'k', 'v')",), 3, "nothing"),
    (("SELECT 1\0 garbage",), 2, "null character"),
    (("SELECT '\udcff'",), 2, "UTF-8"),
]


def test_wrong_input_is_one_clear_line_and_a_code(orders: Cli) -> None:
    for argv, code, said in WRONG:
        answer = orders("sql", *argv, code=code)
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1
        assert said in answer.err
    assert orders("sql", "SELECT count(*) FROM records", "-o", "csv").lines == ["count", "3"]


def test_psql_is_opened_with_the_views_at_hand_and_the_password_out_of_sight(
    orders: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psql = tmp_path / "bin" / "psql"
    psql.parent.mkdir()
    psql.write_text('#!/bin/sh\necho "args=$* host=$PGHOST password=$PGPASSWORD"\ncat "$PSQLRC"\nexit 3\n')
    psql.chmod(0o755)
    own = tmp_path / "own.psqlrc"
    own.write_text("\\timing on\n")
    monkeypatch.setenv("PATH", f"{psql.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PSQLRC", str(own))
    answer = orders("sql", "--dsn", "postgresql://me:s3cret@db.example/app", tty=True, code=3)
    first, *startup = answer.lines
    assert first == "args= host=db.example password=s3cret"
    assert any("set_config('search_path'" in line and '"logstore_topics"' in line for line in startup)
    assert startup[-1] == f"\\i '{own}'"


def test_a_psql_session_knows_the_views(orders: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("psql") is None:
        monkeypatch.setenv("PATH", f"{binaries.find().directory}:{os.environ['PATH']}")
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    out, _ = session.communicate("SELECT 'found ' || count(*) FROM orders;\n", timeout=30)
    assert "found 3" in out
    assert session.returncode == 0


SESSION = """
import sys
import logstore.cli
sys.stdin.isatty = lambda: True
logstore.cli.main(["sql"])
"""
