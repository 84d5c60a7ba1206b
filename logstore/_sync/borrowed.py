"""A connection of the program's, inside its transaction: for threads.

The twin is ``logstore._async.borrowed``.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row

from logstore._core.call import Call
from logstore._core.foreign_errors import from_foreign
from logstore._core.foreign_sql import named
from logstore.errors import InvalidArgumentError, OutboxConnectionError

__all__ = ["run_borrowed"]


def run_borrowed(connection: Any, call: Call[int], schema: str) -> int:
    """What ``call`` answers, run in the transaction that is open on ``connection``.

    It is a psycopg Connection, or SQLAlchemy's Session or Connection.  Raises InvalidArgumentError for
    anything else and OutboxConnectionError when it is in autocommit.
    """
    run = _runner(connection)
    try:
        rows = run(connection, call)
    except OutboxConnectionError:
        raise
    except Exception as error:
        raise from_foreign(error, schema) from error
    return call.decode(rows)


def _runner(connection: Any) -> Any:
    if isinstance(connection, psycopg.Connection):
        return _on_psycopg
    module = type(connection).__module__
    if not module.startswith(("sqlalchemy.ext.asyncio", "asyncpg")):
        if hasattr(connection, "exec_driver_sql"):
            return _on_connection
        # A session, a scoped session or a subclass of the program's.
        if hasattr(connection, "get_bind") and hasattr(connection, "connection"):
            return _on_session
    raise InvalidArgumentError(
        f"connection is a psycopg Connection or SQLAlchemy's Session or Connection, not "
        f"{module}.{type(connection).__qualname__}.",
        advice="For connections of asyncio there is AsyncProducer.",
    )


def _on_psycopg(connection: Any, call: Call[int]) -> Any:
    if connection.autocommit and not connection.info.transaction_status:
        raise _autocommit()
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(call.sql, call.args)
    return cursor.fetchall()


def _on_session(session: Any, call: Call[int]) -> Any:
    return _on_connection(session.connection(), call)


def _on_connection(connection: Any, call: Call[int]) -> Any:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise _autocommit()
    return connection.execute(*_for_alchemy(call)).all()


def _for_alchemy(call: Call[int]) -> tuple[Any, dict[str, Any]]:
    # Whoever has one of its connections has it loaded.
    from sqlalchemy import BigInteger, Integer, LargeBinary, Text, bindparam, text

    known = {"int4": Integer, "int8": BigInteger, "bytea": LargeBinary, "text": Text}
    sql, arguments, types = named(call)
    parameters: Any = (bindparam(name, type_=known[kind]) for name, kind in types.items())
    return text(sql).bindparams(*parameters), arguments


def _autocommit() -> OutboxConnectionError:
    return OutboxConnectionError(
        "The connection is in autocommit: there is no transaction that the record could be a part of.",
        advice="Begin a transaction: with connection.transaction().",
    )
