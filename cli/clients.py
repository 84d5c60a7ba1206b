"""Clients made from the global options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logstore.cli.root import settings

if TYPE_CHECKING:
    from logstore import Admin, Consumer, Producer

__all__ = ["open_admin", "open_consumer", "open_producer"]


def open_admin() -> Admin:
    from logstore import Admin

    chosen = settings()
    return Admin(chosen.dsn, schema=chosen.schema)


def open_producer(**options: Any) -> Producer:
    from logstore import Producer

    chosen = settings()
    return Producer(chosen.dsn, schema=chosen.schema, client_id="logstore-cli", **options)


def open_consumer(*topics: str, **options: Any) -> Consumer:
    from logstore import Consumer

    chosen = settings()
    return Consumer(*topics, dsn=chosen.dsn, schema=chosen.schema, client_id="logstore-cli", **options)
