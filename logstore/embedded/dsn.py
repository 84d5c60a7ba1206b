"""Which server a client talks to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logstore import migrations

if TYPE_CHECKING:
    from logstore.embedded.server import Handle

__all__ = ["Resolved", "resolve"]


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
    from logstore.embedded.orders import worker_wanted
    from logstore.embedded.server import EmbeddedServer

    handle = EmbeddedServer().start_or_join()
    try:
        _bring_up_to_date(handle.dsn, schema)
        if worker_wanted():
            handle.note_log(schema)
    except BaseException:
        handle.close()
        raise
    return Resolved(handle.dsn, embedded=True, keep=handle)


def _bring_up_to_date(dsn: str, schema: str) -> None:
    if not migrations.status(dsn, schema).up_to_date:
        migrations.upgrade(dsn, schema)
