"""SQLAlchemy sessions in which a consumer's records are processed exactly once.

::

    from logstore.sqlalchemy import transaction

    with transaction(consumer, Session) as tx:       # async with, for an AsyncConsumer
        for record in tx.records:
            tx.session.add(Order(value=record.value))
            tx.send("orders-stored", record.key)

The session's engine connects to the log's own database with psycopg (``postgresql+psycopg``), an
``AsyncSession``'s with asyncpg (``postgresql+asyncpg``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar, overload

import asyncpg
import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from logstore._async.consumer import AsyncConsumer
from logstore._async.consumer_transaction import ConsumerTransaction as AsyncConsumerTransaction
from logstore._async.consumer_transaction import Link as AsyncLink
from logstore._core import outcome
from logstore._core.arrays import ArrayParameter
from logstore._core.call import Call
from logstore._core.staging_calls import StagingCalls
from logstore._sync.consumer import Consumer
from logstore._sync.consumer_transaction import ConsumerTransaction, Link
from logstore._sync.driver import own_cursor
from logstore.errors import ConfigurationError, IllegalStateError, InvalidArgumentError, LogstoreError

__all__ = ["AsyncSessionTransaction", "SessionTransaction", "transaction"]

T = TypeVar("T")

_log = logging.getLogger("logstore.group")

_WHERE = "the session's database"
_IMMEDIATE = "SET CONSTRAINTS ALL IMMEDIATE"
_NO_LOG = ("3F000", "42883")


@overload
def transaction(
    consumer: Consumer,
    session: Session | Callable[[], Session],
    *,
    timeout_ms: float = 1000,
    max_records: int | None = None,
) -> SessionTransaction: ...


@overload
def transaction(
    consumer: AsyncConsumer,
    session: AsyncSession | Callable[[], AsyncSession],
    *,
    timeout_ms: float = 1000,
    max_records: int | None = None,
) -> AsyncSessionTransaction: ...


def transaction(
    consumer: Any, session: Any, *, timeout_ms: float = 1000, max_records: int | None = None
) -> Any:
    """``consumer.transaction()`` in a SQLAlchemy session: ``tx.session``, besides what that has.

    ``session``: one that has no transaction open, or what makes one (a ``sessionmaker``), which is then
    closed at the end.  The end of the block flushes and commits it; leave ``commit`` and ``rollback`` to the
    block, and use ``begin_nested`` for savepoints.

    Entering the block raises ConfigurationError for another database than the log's, another driver, or an
    engine in AUTOCOMMIT, and IllegalStateError for a session with a transaction open.
    """
    if isinstance(consumer, AsyncConsumer):
        return AsyncSessionTransaction(consumer, session, timeout_ms, max_records)
    if isinstance(consumer, Consumer):
        return SessionTransaction(consumer, session, timeout_ms, max_records)
    raise InvalidArgumentError(f"A Consumer or an AsyncConsumer is wanted, not {consumer!r}.")


class SessionTransaction(ConsumerTransaction):
    """What ``with transaction(consumer, session) as tx:`` gives."""

    session: Session

    def __init__(self, consumer: Consumer, session: Any, timeout_ms: float, max_records: int | None) -> None:
        super().__init__(consumer, timeout_ms, max_records)
        self._given = session

    def _make_link(self) -> Link:
        given = self._given
        self.session = given if isinstance(given, Session) else given()
        identity = _identity(self._consumer._config.schema)
        return _SessionLink(self.session, identity, lambda: self._consumer._fetcher.ask(identity))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            if self.session is not self._given:
                self.session.close()


class AsyncSessionTransaction(AsyncConsumerTransaction):
    """What ``async with transaction(consumer, session) as tx:`` gives."""

    session: AsyncSession

    def __init__(
        self, consumer: AsyncConsumer, session: Any, timeout_ms: float, max_records: int | None
    ) -> None:
        super().__init__(consumer, timeout_ms, max_records)
        self._given = session

    async def _make_link(self) -> AsyncLink:
        given = self._given
        self.session = given if isinstance(given, AsyncSession) else given()
        identity = _identity(self._consumer._config.schema)
        own = await self._consumer._fetcher.ask(identity)
        return _AsyncSessionLink(self.session, identity, own)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            if self.session is not self._given:
                await self.session.close()


class _SessionLink:
    def __init__(self, session: Session, identity: Call[str], own: Callable[[], str]) -> None:
        self._session = session
        self._identity = identity
        self._own = own
        self._raw: Any = None
        self._cursor: Any = None

    @property
    def raw(self) -> Any:
        return self._raw

    @property
    def lost(self) -> bool:
        return self._raw is None or bool(self._raw.closed)

    def begin(self, mark: Call[Any]) -> None:
        _check_idle(self._session.in_transaction())
        self._raw = self._session.connection().connection.driver_connection
        try:
            if not isinstance(self._raw, psycopg.Connection):
                raise _wrong_driver(self._raw, "postgresql+psycopg")
            self._cursor = own_cursor(self._raw)
            _check_same(self._foreign, self._own())
            self.run(mark)
            if self._raw.info.transaction_status != TransactionStatus.INTRANS:
                raise _autocommit()
        except BaseException:
            self.rollback()
            raise

    def _foreign(self) -> str:
        return self.run(self._identity)

    def flush(self) -> None:
        self._session.flush()
        self._cursor.execute(_IMMEDIATE)

    def run(self, call: Call[T]) -> T:
        try:
            self._cursor.execute(call.sql, call.args, binary=True)
            rows: Sequence[Sequence[Any]] = self._cursor.fetchall()
        except psycopg.Error as error:
            raise _translated(error, committing=False) from error
        return call.decode(rows)

    def commit(self) -> None:
        doubts: list[str] = []

        def listen(diagnostic: Any) -> None:
            if outcome.cut_short(diagnostic.sqlstate):
                doubts.append(diagnostic.message_primary or "")

        self._raw.add_notice_handler(listen)
        try:
            self._session.commit()
        except DBAPIError as error:
            raise _translated(error.orig or error, committing=True) from error
        except Exception as error:
            raise _from_a_hook(error) from error
        finally:
            self._raw.remove_notice_handler(listen)
        if doubts:
            raise outcome.connection_lost(doubts[0], committing=True, where=_WHERE)

    def rollback(self) -> None:
        self._session.rollback()

    def drop(self) -> None:
        if self._raw is not None:
            self._raw.close()


class _AsyncSessionLink:
    def __init__(self, session: AsyncSession, identity: Call[str], own: str) -> None:
        self._session = session
        self._identity = identity
        self._own = own
        self._raw: Any = None

    @property
    def raw(self) -> Any:
        return self._raw

    @property
    def lost(self) -> bool:
        return self._raw is None or bool(self._raw.is_closed())

    async def begin(self, mark: Call[Any]) -> None:
        _check_idle(self._session.in_transaction())
        connection = await self._session.connection()
        try:
            # SQLAlchemy begins with the first statement that goes through it.
            await connection.exec_driver_sql("SELECT 1")
            self._raw = (await connection.get_raw_connection()).driver_connection
            if not isinstance(self._raw, asyncpg.Connection):
                raise _wrong_driver(self._raw, "postgresql+asyncpg")
            if not self._raw.is_in_transaction():
                raise _autocommit()
            foreign = await self._there()
            _check_same(lambda: foreign, self._own)
            await self.run(mark)
        except BaseException:
            await self.rollback()
            raise

    async def _there(self) -> str:
        try:
            return await self.run(self._identity)
        except LogstoreError as error:
            if error.details.get("sqlstate") in _NO_LOG:
                raise _other_database() from error
            raise

    async def flush(self) -> None:
        await self._session.flush()
        await self._raw.execute(_IMMEDIATE)

    async def run(self, call: Call[T]) -> T:
        values = [arg.items if isinstance(arg, ArrayParameter) else arg for arg in call.args]
        try:
            return call.decode(await self._raw.fetch(call.sql, *values))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _translated(error, committing=False) from error

    async def commit(self) -> None:
        doubts: list[str] = []

        def listen(_: object, message: Any) -> None:
            if outcome.cut_short(message.sqlstate):
                doubts.append(message.message or "")

        self._raw.add_log_listener(listen)
        try:
            await self._session.commit()
        except DBAPIError as error:
            raise _translated(error.orig or error, committing=True) from error
        except Exception as error:
            raise _from_a_hook(error) from error
        finally:
            with suppress(asyncpg.InterfaceError):
                self._raw.remove_log_listener(listen)
        if doubts:
            raise outcome.connection_lost(doubts[0], committing=True, where=_WHERE)

    async def rollback(self) -> None:
        await self._session.rollback()

    def drop(self) -> None:
        if self._raw is not None:
            self._raw.terminate()


def _identity(schema: str) -> Call[str]:
    return StagingCalls(schema).log_identity()


def _check_idle(in_transaction: bool) -> None:
    if in_transaction:
        raise IllegalStateError(
            "The session has a transaction open already.",
            advice="Commit or roll it back first, or pass the sessionmaker instead of a session.",
        )


def _check_same(foreign: Callable[[], str], own: str) -> None:
    try:
        same = foreign() == own
    except LogstoreError as error:
        if error.details.get("sqlstate") in _NO_LOG:
            raise _other_database() from error
        raise
    if not same:
        raise _other_database()


def _other_database() -> ConfigurationError:
    return ConfigurationError(
        "The session is connected to another database than the consumer's log.",
        advice="One commit needs one database: let the session's engine connect to the log's.",
    )


def _wrong_driver(raw: Any, url: str) -> ConfigurationError:
    return ConfigurationError(
        f"The session's driver is {type(raw).__module__.partition('.')[0]}.",
        advice=f"Make its engine with a URL that begins with {url}://.",
    )


def _autocommit() -> ConfigurationError:
    return ConfigurationError(
        "The session's engine is in AUTOCOMMIT: nothing would be one transaction.",
        advice="Use the default isolation level, READ COMMITTED.",
    )


def _translated(error: BaseException, *, committing: bool) -> LogstoreError:
    """What the drivers' errors mean; SQLAlchemy wraps asyncpg's once more."""
    cause = error.__cause__ if isinstance(error.__cause__, asyncpg.PostgresError) else error
    sqlstate = getattr(cause, "sqlstate", None) or getattr(error, "sqlstate", None)
    if not sqlstate:
        return outcome.connection_lost(str(error), committing=committing, where=_WHERE)
    diagnostic = getattr(cause, "diag", None)
    message = getattr(diagnostic, "message_primary", None) or getattr(cause, "message", None) or str(error)
    detail = getattr(diagnostic, "message_detail", None) or getattr(cause, "detail", None)
    hint = getattr(diagnostic, "message_hint", None) or getattr(cause, "hint", None)
    return outcome.refused(sqlstate, message, detail, hint, committing=committing, where=_WHERE)


def _from_a_hook(error: Exception) -> LogstoreError:
    """Something that SQLAlchemy calls before or after the commit has raised."""
    _log.warning("The session's commit raised %r; looking whether it happened.", error)
    return outcome.connection_lost(repr(error), committing=True, where=_WHERE)
