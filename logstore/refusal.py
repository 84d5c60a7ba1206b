"""Why a server did not let psycopg in; asyncpg says so itself.

When a connection does not come about, libpq says why in words, which nothing may branch on, and psycopg knows
no more than that.  Where it matters (a password was used, or a certificate was to be checked) asyncpg is
asked, once, which says it in codes.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from logstore._core.dsn import asyncpg_arguments, certificate_refused, connect_error, describe
from logstore.errors import CertificateError, LogstoreError

__all__ = ["refusal"]

_TIMEOUT_S: Final = 5.0
_CHECKED: Final = ("verify-ca", "verify-full")


def refusal(parameters: Mapping[str, Any], error: psycopg.Error) -> LogstoreError:
    """The typed error for ``error``, which psycopg has raised instead of connecting with ``parameters``."""
    where = describe(parameters)
    sqlstate = error.sqlstate
    if error.pgconn is not None and error.pgconn.needs_password:
        sqlstate = "28P01"
    if sqlstate is None:
        used_password = error.pgconn is not None and bool(error.pgconn.used_password)
        known = _diagnosed(where, parameters, used_password=used_password)
        if known is not None:
            return known
    return connect_error(where, sqlstate, str(error))


def _diagnosed(where: str, parameters: Mapping[str, Any], *, used_password: bool) -> LogstoreError | None:
    """The typed error for what keeps ``parameters``, of a DSN, from leading to a connection.

    None if that cannot be found out, or need not.
    """
    if not used_password and parameters.get("sslmode") not in _CHECKED:
        return None
    found: list[LogstoreError] = []

    def ask() -> None:
        error = asyncio.run(_error(where, parameters))
        if error is not None:
            found.append(error)

    # In a thread of its own: this one may be running an event loop.
    thread = threading.Thread(target=ask, name="logstore-diagnosis", daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT_S)
    return found[0] if found else None


async def _error(where: str, parameters: Mapping[str, Any]) -> LogstoreError | None:
    # Rarely needed, and a tenth of what a process with one client takes to start.
    import asyncpg

    try:
        connection = await asyncpg.connect(
            **asyncpg_arguments(parameters), timeout=_TIMEOUT_S, statement_cache_size=0
        )
    except ssl.SSLCertVerificationError as error:
        return CertificateError(certificate_refused(where, error.verify_message))
    except asyncpg.PostgresError as error:
        return connect_error(where, error.sqlstate, str(error))
    except Exception:  # it could not be asked, and the first driver's words are all there is
        return None
    await connection.close()
    return None
