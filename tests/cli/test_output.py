"""Tables on terminals that are too narrow for them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from logstore.cli import output
from logstore.cli.output import Column, fitting, print_rows

TITLES = ["job", "failures", "last result"]
ROWS = [("drain", 0, "12 records drained"), ("statistics", 3, None)]


@pytest.mark.parametrize(
    ("room", "widths"),
    [(200, [10, 8, 18]), (42, [10, 8, 18]), (41, [10, 8, 17]), (31, [10, 8, 7]), (30, None)],
)
def test_columns_shrink_as_long_as_no_word_is_broken(room: int, widths: list[int] | None) -> None:
    assert fitting(TITLES, ROWS, room) == widths


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            42,
            [
                "job          failures   last result",
                "─" * 42,
                "drain               0   12 records drained",
            ],
        ),
        (30, ["job          drain", "failures     0", "last result  12 records drained", ""]),
    ],
)
def test_what_is_too_wide_for_a_table_is_shown_one_column_a_line(
    width: int, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.StringIO()

    def terminal(**_: Any) -> Console:
        return Console(file=written, width=width, force_terminal=True, color_system=None, highlight=False)

    monkeypatch.setattr(output, "console", terminal)
    print_rows(["job", Column("failures", number=True), "last result"], ROWS)
    lines = (written.getvalue() + capsys.readouterr().out).splitlines()
    assert [line.rstrip() for line in lines[: len(shown)]] == shown
