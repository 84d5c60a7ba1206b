"""Connections for SQL of the CLI's and of its users: in one transaction, with the log's views at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

__all__ = ["Answer", "Query", "connected", "run_queries", "search_path"]


class Query(NamedTuple):
    question: str
    sql: str


class Answer(NamedTuple):
    query: Query
    columns: list[str]
    numeric: list[bool]
    """Whether a column holds numbers."""
    rows: list[tuple[Any, ...]]
    seconds: float


def search_path(schema: str, *, local: bool) -> Composed:
    """The statement that lets a transaction, or a session, name a log's views and functions without a schema.

    They come last: a table that a user makes goes where it always goes, never among the log's own.
    """
    from psycopg.sql import SQL, Identifier, Literal

    ours = ", ".join(Identifier(name).as_string(None) for name in (schema, f"{schema}_topics"))
    return SQL(
        "SELECT set_config('search_path', concat_ws(', ', current_setting('search_path'), {}), {})"
    ).format(Literal(ours), Literal(local))


@contextmanager
def connected(dsn: str, schema: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection inside a transaction; what the server or the driver says is raised as one of ours."""
    import psycopg

    from logstore.conninfo import parameters_of
    from logstore.errors import InvalidArgumentError, LogstoreError, ServerError, from_server
    from logstore.refusal import refusal

    parameters = parameters_of(dsn)
    parameters.setdefault("connect_timeout", 10)
    parameters.setdefault("application_name", "logstore-cli")
    try:
        connection = psycopg.connect(psycopg.conninfo.make_conninfo("", **parameters), prepare_threshold=None)
    except psycopg.Error as error:
        raise refusal(parameters, error) from error
    try:
        with connection:
            connection.execute(search_path(schema, local=True))
            yield connection
    except psycopg.Error as error:
        diagnostic = error.diag
        message = diagnostic.message_primary or str(error)
        if diagnostic.statement_position:
            message += f" (at character {diagnostic.statement_position})"
        raised: LogstoreError = from_server(
            error.sqlstate, message, diagnostic.message_detail, diagnostic.message_hint
        )
        if isinstance(raised, InvalidArgumentError) and (error.sqlstate or "").startswith("22"):
            # Of the statement's values, not of the command's.
            raised = ServerError(raised.message, details=raised.details)
        raise raised from error


def numeric_types() -> frozenset[int]:
    """Type oids of numbers."""
    import psycopg

    return frozenset(
        psycopg.adapters.types[name].oid for name in ("int2", "int4", "int8", "float4", "float8", "numeric")
    )


def run_queries(dsn: str, schema: str, queries: Sequence[Query]) -> list[Answer]:
    """Each query on the same connection, with the time it took from sending to the last row."""
    import time

    numbers = numeric_types()
    answers = []
    with connected(dsn, schema) as connection, connection.cursor() as cursor:
        for query in queries:
            began = time.perf_counter()
            cursor.execute(query.sql.encode())
            rows = cursor.fetchall()
            seconds = time.perf_counter() - began
            described = cursor.description or []
            answers.append(
                Answer(
                    query,
                    [column.name for column in described],
                    [column.type_code in numbers for column in described],
                    rows,
                    seconds,
                )
            )
    return answers
