"""Answers: tables for people, JSON and CSV for programs.

Tables go to stdout and adapt to the terminal; in a pipe nothing is cut and nothing is coloured.  JSON
keys are a promise: they are only ever added to.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

__all__ = [
    "Column",
    "console",
    "counted",
    "fitting",
    "human_bytes",
    "human_count",
    "note",
    "print_csv",
    "print_json",
    "print_rows",
    "progress_bar",
    "table",
]

UNBOUNDED: Final = 100_000
"""Columns of a terminal that is none: nothing is ever cut or folded in a pipe."""
GAP: Final = 3
"""Columns of a terminal between two columns of a table."""


class Column:
    """One column of a table: its title and how its cells look."""

    __slots__ = ("number", "style", "title")

    def __init__(self, title: str, *, number: bool = False, style: str | None = None) -> None:
        self.title = title
        self.number = number
        self.style = style


def console(*, stderr: bool = False) -> Console:
    """Where rich prints; wide open unless it is a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else UNBOUNDED
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[Any]],
    widths: Sequence[int | None] | None = None,
) -> Table:
    """A table without any frame but a rule under the titles; None is shown as a dim dash."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for column, width in zip(columns, widths or [None] * len(columns), strict=True):
        column = Column(column) if isinstance(column, str) else column
        made.add_column(
            column.title,
            justify="right" if column.number else "left",
            style=column.style or "",
            overflow="fold",
            no_wrap=column.number and width is None,
            width=width,
        )
    for row in rows:
        made.add_row(*(Text("-", style="dim") if cell is None else Text(str(cell)) for cell in row))
    return made


def print_rows(
    columns: Sequence[Column | str], rows: Iterable[Sequence[Any]], *, empty: str = "(none)", indent: int = 0
) -> None:
    """A table, or a line that says that there is nothing to show."""
    rows = list(rows)
    if not rows:
        click.echo(" " * indent + empty)
        return
    out = console()
    if out.is_terminal:
        from rich.padding import Padding

        titles = [column if isinstance(column, str) else column.title for column in columns]
        widths = fitting(titles, rows, out.width - indent)
        if widths is None:
            _print_one_by_one(titles, rows, indent)
        else:
            out.print(Padding(table(columns, rows, widths), (0, 0, 0, indent), expand=False))
        return
    for line in out.render_lines(table(columns, rows), pad=False):
        click.echo((" " * indent + "".join(segment.text for segment in line)).rstrip())


def fitting(titles: Sequence[str], rows: Sequence[Sequence[Any]], room: int) -> list[int] | None:
    """How wide each column may be, so that all are ``room`` wide together and no word is broken.

    None: they cannot.
    """
    from rich.cells import cell_len

    cells = [
        [title, *("-" if row[at] is None else str(row[at]) for row in rows)]
        for at, title in enumerate(titles)
    ]
    wanted = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
    widths = [
        max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in cells
    ]
    left = room - sum(widths) - GAP * (len(titles) - 1)
    if left < 0:
        return None
    for at in sorted(range(len(titles)), key=lambda at: wanted[at] - widths[at]):
        more = min(left, wanted[at] - widths[at])
        widths[at] += more
        left -= more
    return widths


def _print_one_by_one(titles: Sequence[str], rows: Sequence[Sequence[Any]], indent: int) -> None:
    """What is too wide for a table, a column a line."""
    width = max(map(len, titles))
    for number, row in enumerate(rows):
        if number:
            click.echo()
        for title, cell in zip(titles, row, strict=True):
            click.echo(
                " " * indent
                + click.style(title.ljust(width), bold=True)
                + f"  {'-' if cell is None else cell}"
            )


def print_json(document: Any) -> None:
    """One JSON document; indented on a terminal, one line in a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(document, ensure_ascii=False, indent=indent, default=str))


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """RFC 4180 with a header line; NULL is an empty field."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def progress_bar(*, unit: str = "records", stderr: bool = True) -> Progress:
    """A bar with the time it has taken; a stream that is no terminal gets its last state only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    amount = DownloadColumn() if unit == "bytes" else TextColumn("{task.completed:>10,} / {task.total:,}")
    return Progress(
        TextColumn("  {task.description:<11}"),
        BarColumn(bar_width=36),
        amount,
        TimeElapsedColumn(),
        console=console(stderr=stderr),
        transient=unit == "bytes",
    )


def note(message: str) -> None:
    """A remark for the person at the terminal: on stderr, so that it never mixes with the answer."""
    sys.stdout.flush()
    click.echo(message, err=True)


def human_count(number: float) -> str:
    """``12,345`` or ``98.7``: a count with thousands apart."""
    if number != number:
        return "-"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:,.1f}"


def counted(number: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{human_count(number)} {noun}{'' if number == 1 else 's'}"


def human_bytes(number: float) -> str:
    """``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
