"""docs/guarantees.md names code, benchmarks and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import SCENARIOS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count(" | ") == 4
][1:]


def test_the_table_is_found() -> None:
    assert len(ROWS) > 8


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_each_guarantee_names_its_code_its_benchmark_and_its_proof(row: list[str]) -> None:
    _, code, costs, _, proofs = row
    assert re.search(r"`(schema|logstore)/", code) or "no UPDATE" in code
    assert all(name in SCENARIOS for name in re.findall(r"`([a-z-]+)`", costs))
    assert re.search(r"`tests/[a-z_/]+\.py`", proofs)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|schema|logstore)/[a-z_/.]*)`", PAGE))))
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_make_proves_all_of_it() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    proofs = re.search(r"^PROOFS \?= (.+)$", makefile, re.M)
    assert proofs
    for name in proofs[1].split():
        assert (ROOT / "tests" / "support" / f"{name}.py").exists()
