"""A connection of the program's, inside its transaction: for asyncio.

The twin is ``logstore._sync.borrowed``.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import psycopg
from psycopg.rows import tuple_row

from logstore._core.call import Call
from logstore._core.foreign_errors import from_foreign
from logstore._core.foreign_sql import named
from logstore.errors import InvalidArgumentError, OutboxConnectionError

__all__ = ["run_borrowed"]


async def run_borrowed(connection: Any, call: Call[int], schema: str) -> int:
    """What ``call`` answers, run in the transaction that is open on ``connection``.

    It is an asyncpg connection (a pool's, too), a psycopg AsyncConnection, or SQLAlchemy's AsyncSession or
    AsyncConnection.  Raises InvalidArgumentError for anything else and OutboxConnectionError when it is in
    autocommit.
    """
    run = _runner(connection)
    try:
        rows = await run(connection, call)
    except OutboxConnectionError:
        raise
    except Exception as error:
        raise from_foreign(error, schema) from error
    return call.decode(rows)


def _runner(connection: Any) -> Any:
    if isinstance(connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
        return _on_asyncpg
    if isinstance(connection, psycopg.AsyncConnection):
        return _on_psycopg
    # Also a scoped session, and subclasses of the program's.
    if hasattr(connection, "sync_session"):
        return _on_session
    if hasattr(connection, "sync_connection"):
        return _on_connection
    raise InvalidArgumentError(
        f"connection is an asyncpg connection, a psycopg AsyncConnection or SQLAlchemy's AsyncSession or "
        f"AsyncConnection, not {type(connection).__module__}.{type(connection).__qualname__}.",
        advice="For connections of threaded programs there is Producer.",
    )


async def _on_asyncpg(connection: Any, call: Call[int]) -> Any:
    if not connection.is_in_transaction():
        raise _autocommit()
    return await connection.fetch(call.sql, *call.args)


async def _on_psycopg(connection: Any, call: Call[int]) -> Any:
    if connection.autocommit and not connection.info.transaction_status:
        raise _autocommit()
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(call.sql, call.args)
    return await cursor.fetchall()


async def _on_session(session: Any, call: Call[int]) -> Any:
    return await _on_connection(await session.connection(), call)


async def _on_connection(connection: Any, call: Call[int]) -> Any:
    if getattr(connection.sync_connection.connection.dbapi_connection, "autocommit", False):
        raise _autocommit()
    result = await connection.execute(*_for_alchemy(call))
    return result.all()


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
        advice="Begin a transaction: async with connection.transaction().",
    )
