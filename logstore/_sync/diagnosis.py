"""Why a server did not let us in.  Only here: asyncpg says so itself.

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

from logstore._core.dsn import asyncpg_arguments, certificate_refused, connect_error
from logstore.errors import CertificateError, LogstoreError

__all__ = ["diagnosed"]

_TIMEOUT_S: Final = 5.0
_CHECKED: Final = ("verify-ca", "verify-full")


def diagnosed(where: str, parameters: Mapping[str, Any], *, used_password: bool) -> LogstoreError | None:
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
