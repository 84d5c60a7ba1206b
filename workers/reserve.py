"""What the jobs that give space back do when there is none left, not even for that.

Dropping a segment needs some pages of PostgreSQL's catalog first.  A few megabytes are kept for it.
"""

from __future__ import annotations

import contextlib

from logstore import errors
from logstore.workers.connections import Connection

__all__ = ["keep", "spent"]


def spent(connection: Connection) -> bool:
    """The reserve was given up, so there is room now; False: it was gone already.

    Raises LockTimeoutError when somebody has it locked, as pg_dump does.
    """
    return bool(connection.value("SELECT {}.spend_reserve()"))


def keep(connection: Connection) -> None:
    """Fill the reserve up again, if there is room."""
    with contextlib.suppress(errors.StorageFullError):
        connection.value("SELECT {}.keep_reserve()")
