"""The right to erasure: what was asked for, and what became of it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Erasure"]


class Erasure(NamedTuple):
    """A key whose records were to be erased from a topic.  Times are milliseconds since the epoch."""

    erasure_id: int
    topic: str
    key_sha256: str
    """Of the key, in hexadecimal: the key itself is forgotten with its records."""
    requested_by: str
    """The database role that asked."""
    requested_at: int
    records: int
    """How many have been erased so far."""
    removed_at: int | None
    """Since when nobody can read any of them; None: not yet."""
    finished_at: int | None
    """Since when no table of the log has any of them; None: not yet."""
