"""What an admin client tells about transactions."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TransactionDescription", "TransactionListing"]


class TransactionListing(NamedTuple):
    """One transactional id, in a line."""

    transactional_id: str
    producer_id: int
    state: str
    """Ongoing while a transaction is being written, else Empty.  A producer's open transaction is still in
    the producer: it is written when it is committed."""


class TransactionDescription(NamedTuple):
    """One transactional id: who holds it, and what its holder is doing."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    """Rises with every new holder, which fences the one before."""
    state: str
    """Ongoing or Empty."""
    transaction_timeout_ms: int
    client_id: str | None
    created_at: int
    """Milliseconds."""
    initialised_at: int
    """When the present holder came; milliseconds."""
    pid: int | None
    """The server process that writes the transaction, while it is Ongoing."""
    host: str | None
    """Where it is written from; "local" for a Unix socket."""
    since: int | None
    """When writing it began; milliseconds."""
    waits_for: str | None
    """What that process waits for, as ``pg_stat_activity`` has it."""
