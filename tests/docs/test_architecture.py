"""docs/architecture.md names files and functions that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| [^|\n]+ \| (`[^|\n]+`) \| (`[^|\n]+`) \| [^|\n]*\|[^|\n]*\|$", PAGE, re.M)


def test_the_steps_are_found() -> None:
    assert len(ROWS) > 12


@pytest.mark.parametrize(("files", "functions"), ROWS)
def test_a_step_names_a_function_of_its_file(files: str, functions: str) -> None:
    texts = [(ROOT / path).read_text() for path in re.findall(r"`([^`]+)`", files)]
    for function in re.findall(r"`([^`]+)`", functions):
        definition = re.compile(rf'(def |function "?){function}"?\(')
        assert all(definition.search(text) for text in texts), f"{function} is not defined in {files}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z_]+/[A-Za-z0-9_./]*[a-z])`", PAGE))))
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()
