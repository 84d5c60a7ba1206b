"""What a driver said on a connection that is not ours, as one of our errors.

The program may use any driver, directly or through SQLAlchemy; all of them carry the SQLSTATE somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from logstore.errors import (
    ConnectionFailedError,
    IllegalStateError,
    LogstoreError,
    SchemaMissingError,
    from_server,
)

__all__ = ["from_foreign"]

_NO_SUCH_SCHEMA_OR_FUNCTION = ("3F000", "42883", "42P01")
_ABORTED = "25P02"


def from_foreign(error: BaseException, schema: str) -> LogstoreError:
    """``error`` was raised by a driver, or by SQLAlchemy, for a call to the log in ``schema``."""
    for cause in _causes(error):
        sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if not isinstance(sqlstate, str):
            continue
        if sqlstate in _NO_SUCH_SCHEMA_OR_FUNCTION:
            return SchemaMissingError(
                f"The connection's database holds no log in schema {schema!r}, or an older one.",
                advice="Give send() a connection to the database that the producer is connected to.",
                details={"sqlstate": sqlstate},
            )
        if sqlstate == _ABORTED:
            return IllegalStateError(
                "The transaction has failed before.", advice="Roll it back.", details={"sqlstate": sqlstate}
            )
        return from_server(sqlstate, *_parts(cause))
    if _misused(error):
        return IllegalStateError(f"The record could not be staged: {error}")
    return ConnectionFailedError(
        f"The record could not be staged: {error}", advice="Roll the transaction back and do it again."
    )


def _misused(error: BaseException) -> bool:
    """SQLAlchemy says that the session or connection cannot be used like this."""
    return type(error).__name__ in ("InvalidRequestError", "ResourceClosedError", "PendingRollbackError")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The driver's own error, wherever it is; the innermost says most."""
    chain: list[BaseException] = []
    following: Any = error
    while isinstance(following, BaseException) and following not in chain:
        chain.append(following)
        following = getattr(following, "orig", None) or following.__cause__
    return reversed(chain)


def _parts(error: BaseException) -> tuple[str, str | None, str | None]:
    diag = getattr(error, "diag", None)
    if diag is not None:
        return diag.message_primary or str(error), diag.message_detail, diag.message_hint
    message = getattr(error, "message", None) or str(error)
    return message, getattr(error, "detail", None), getattr(error, "hint", None)
