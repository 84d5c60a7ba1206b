"""Clients made from the global options."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from logstore.cli.root import settings
from logstore.errors import RequestTimedOutError

if TYPE_CHECKING:
    from logstore import Admin, Consumer, ConsumerRecord, Producer, TopicPartition

__all__ = ["POLL_MS", "open_admin", "open_consumer", "open_producer", "polls"]

POLL_MS: Final = 500
"""How long one poll waits at most; Ctrl-C does not wait for it."""
PATIENCE_S: Final = 30.0
"""How long records that are there may take to come."""


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


def polls(consumer: Consumer) -> Iterator[dict[TopicPartition, list[ConsumerRecord]]]:
    """What each poll brings, for whoever knows that there is more.

    A consumer waits for a lost server for ever; this raises RequestTimedOutError when it has been silent
    for too long.
    """
    heard = time.monotonic()
    while True:
        polled = consumer.poll(timeout_ms=POLL_MS)
        if polled:
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE_S:
            raise RequestTimedOutError(
                f"No record came for {PATIENCE_S:g} s, although the log goes on.",
                advice="Check that the server runs.",
            )
        yield polled
