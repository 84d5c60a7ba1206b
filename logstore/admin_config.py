"""The options of an admin client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from logstore.options import number, text

__all__ = ["AdminConfig", "AdminOptions"]


class AdminOptions(TypedDict, total=False):
    """What an admin client may be given; :class:`AdminConfig` says what each means and its default."""

    client_id: str
    request_timeout_ms: int
    schema: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """Every option of an admin client.  Times are milliseconds."""

    schema: str = text("logstore")
    """The database schema that the log lives in."""
    client_id: str = text("logstore-admin")
    """The ``application_name`` of the connection, as ``pg_stat_activity`` shows it."""
    request_timeout_ms: int = number(30_000, 1)
    """How long the server may take to accept a connection or to answer."""
