"""``logstore sql``: the log is in PostgreSQL, so PostgreSQL answers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

import click

from logstore.cli.cells import csv_cell, json_text, table_cell
from logstore.cli.output import Column, human_count, note, print_csv, print_rows
from logstore.cli.query import connected, numeric_types, search_path
from logstore.cli.root import Command, connection_options, output_option, settings

if TYPE_CHECKING:
    import psycopg

__all__ = ["sql"]

TABLE_ROWS: Final = 1000
"""More rows than this are no table for people; --limit changes it."""


@click.command(
    cls=Command,
    examples=(
        'logstore sql "SELECT * FROM topics"',
        'logstore sql "SELECT key_text, count(*) FROM records GROUP BY 1 ORDER BY 2 DESC" --limit 10',
        "logstore sql --output csv --file report.sql > report.csv",
    ),
)
@click.argument("statement", required=False)
@click.option(
    "-f",
    "--file",
    "source",
    type=click.File("r"),
    metavar="PATH",
    help="Read the statement from a file; - is stdin.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=TABLE_ROWS,
    show_default=True,
    help="Rows of a table.",
)
@output_option("table", "json", "csv")
@connection_options
def sql(statement: str | None, source: IO[str] | None, limit: int) -> None:
    """Query the log with SQL.

    Runs one statement in a transaction of its own and prints the rows; without a statement it opens psql.
    The views records, topics, partitions and segments, the functions read and produce, and a view for
    each topic can be named without a schema.
    """
    if statement is not None and source is not None:
        raise click.UsageError("Give a statement or --file, not both.", click.get_current_context())
    if statement is None and source is None and not sys.stdin.isatty():
        source = sys.stdin
    if source is not None:
        statement = source.read()
    with _target() as dsn:
        if statement is None:
            raise click.exceptions.Exit(_open_psql(dsn))
        if not statement.strip():
            raise click.UsageError("The statement is empty.", click.get_current_context())
        if "\0" in statement:
            # The server would see what stands before it, and run that.
            raise click.UsageError("There is a null character in the statement.", click.get_current_context())
        _run(dsn, statement, limit)


@contextmanager
def _target() -> Iterator[str]:
    """The DSN to use; an embedded server is kept running."""
    from logstore.embedded.dsn import resolve

    resolved = resolve(settings().dsn, settings().schema)
    try:
        yield resolved.dsn
    finally:
        if resolved.keep is not None:
            resolved.keep.close()


def _run(dsn: str, statement: str, limit: int) -> None:
    with connected(dsn, settings().schema) as connection, connection.cursor() as cursor:
        _print(cursor, statement.encode(), limit)


def _print(cursor: psycopg.Cursor[Any], statement: bytes, limit: int) -> None:
    output = settings().output
    if output == "table":
        cursor.execute(statement)
        if cursor.nextset():
            raise click.UsageError(
                "There is more than one statement: nothing was done. Give them one at a time.",
                click.get_current_context(),
            )
        if cursor.description is None:
            click.echo(cursor.statusmessage or "done")
            return
        _print_table(cursor, limit)
        return
    with closing(cast("Generator[Sequence[Any]]", cursor.stream(statement))) as rows:
        # Left open by an error (whoever reads has gone), it would keep the connection from being closed.
        _print_stream(cursor, rows, output)


def _print_stream(cursor: psycopg.Cursor[Any], rows: Iterator[Sequence[Any]], output: str) -> None:
    import psycopg

    try:
        first = next(rows, None)
    except psycopg.ProgrammingError as error:
        if error.sqlstate is not None:
            raise
        # It was done, and is one that has no rows.
        first = None
    columns = [column.name for column in cursor.description or ()]
    everything = _chain(first, rows)
    if output == "json":
        _print_json_rows(columns, everything)
    elif columns:
        print_csv(columns, ([csv_cell(cell) for cell in row] for row in everything))


def _chain(first: Sequence[Any] | None, rest: Iterator[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    if first is not None:
        yield first
        yield from rest


def _print_table(cursor: psycopg.Cursor[Any], limit: int) -> None:
    assert cursor.description is not None
    numeric = numeric_types()
    columns = [Column(column.name, number=column.type_code in numeric) for column in cursor.description]
    rows = list(islice(cursor, limit))
    print_rows(columns, [[table_cell(cell) for cell in row] for row in rows], empty="(no rows)")
    if cursor.rowcount > limit:
        note(f"({human_count(cursor.rowcount - limit)} more rows: raise --limit, or --output csv|json)")


def _print_json_rows(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    """A list of objects, written as it arrives: a large answer takes no memory."""
    out = sys.stdout
    out.write("[")
    for number, row in enumerate(rows):
        out.write(",\n" if number else "\n")
        out.write(json_text(dict(zip(columns, row, strict=True))))
    out.write("\n]\n")


def _open_psql(dsn: str) -> int:
    """psql on this database; the password goes by environment, where ps does not show it."""
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import Conninfo

    program = _find_psql()
    if program is None:
        raise click.ClickException(
            'There is no psql here. Give a statement: logstore sql "SELECT * FROM topics".'
        )
    environment = dict(os.environ)
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    for name, value in conninfo_to_dict(dsn).items():
        variable = variables.get(name)
        if variable is not None and value is not None:
            environment[variable.decode()] = str(value)
    schema = settings().schema
    note(f"psql on schema {schema}: \\dv shows the views, \\q leaves")
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is psql's: it ends a query, not the session.
    try:
        path = search_path(schema, local=False).as_string(None)
        own = Path(environment.get("PSQLRC") or "~/.psqlrc").expanduser()
        with _startup_file(path, own) as startup:
            environment["PSQLRC"] = startup
            return subprocess.run([program], env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


class _startup_file:
    """A psqlrc that sets the search path and then runs the user's own."""

    def __init__(self, statement: str, users: Path) -> None:
        self._lines = ["\\set QUIET on", f"{statement} \\g /dev/null", "\\unset QUIET"]
        if users.exists():
            self._lines.append(f"\\i '{users}'")

    def __enter__(self) -> str:
        import tempfile

        self._file = tempfile.NamedTemporaryFile("w", prefix="logstore-", suffix=".psqlrc")
        self._file.write("\n".join(self._lines) + "\n")
        self._file.flush()
        return self._file.name

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _find_psql() -> str | None:
    found = shutil.which("psql")
    if found is not None:
        return found
    from logstore.embedded import binaries
    from logstore.errors import EmbeddedServerError

    try:
        beside = binaries.find().directory / "psql"
    except EmbeddedServerError:
        return None
    return str(beside) if os.access(beside, os.X_OK) else None
