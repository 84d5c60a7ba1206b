"""Which server a client talks to."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from logstore import migrations

if TYPE_CHECKING:
    from logstore.embedded.home import ServerStatus
    from logstore.embedded.server import Handle

__all__ = ["Resolved", "open_log", "resolve"]

log = logging.getLogger("logstore.embedded")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A DSN and where it came from."""

    dsn: str
    embedded: bool
    keep: Handle | None = None
    """Keeps the embedded server running: close it with the client.

    ``keep.revive()`` starts a killed server again.
    """


def resolve(dsn: str | None = None, schema: str = "logstore") -> Resolved:
    """The argument, else ``LOGSTORE_DSN``, else the embedded server, its schema brought up to date.

    Takes milliseconds when the embedded server runs; starts it and blocks up to two minutes when it does not.
    Raises :class:`~logstore.errors.EmbeddedServerError`.
    """
    given = dsn or os.environ.get("LOGSTORE_DSN")
    if given:
        return Resolved(given, embedded=False)
    # Not needed, and not loaded, where there is a DSN.
    from logstore.embedded.server import EmbeddedServer

    handle = EmbeddedServer().start_or_join()
    try:
        open_log(handle.status, schema)
    except BaseException:
        handle.close()
        raise
    return Resolved(handle.dsn, embedded=True, keep=handle)


def open_log(server: ServerStatus, schema: str) -> None:
    """Bring the log in ``schema`` of an embedded server up to date, making it if there is none.

    From then on the server's worker looks after it.  That a log was made beside others is said: the name may
    be a slip.
    """
    from logstore.embedded.home import Home

    home = Home(Path(server.home))
    found = migrations.status(server.dsn, schema)
    if not found.up_to_date:
        migrations.upgrade(server.dsn, schema)
    others = [name for name in home.logs() if name != schema]
    if found.current is None and others:
        log.warning("There was no log in schema %s: it was made, beside %s.", schema, ", ".join(others))
    home.note_log(schema)
