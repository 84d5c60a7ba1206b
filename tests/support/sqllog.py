"""The log as a plain SQL client sees it: psycopg, no client library of ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

__all__ = [
    "NOW_MS",
    "Connect",
    "Session",
    "append",
    "refused",
    "rows",
    "value",
    "wait_until",
    "waits_for_lock",
]

Session = psycopg.Connection[TupleRow]
Connect = Callable[..., Session]

NOW_MS = time.time_ns() // 1_000_000
"""About now: the records of a test carry times relative to it."""


def rows(session: Session, query: str, *args: Any) -> list[TupleRow]:
    """The rows of ``query``, whose placeholders are ``%s``."""
    return session.execute(query, args or None).fetchall()


def value(session: Session, query: str, *args: Any) -> Any:
    """The one value of ``query``."""
    ((only,),) = rows(session, query, *args)
    return only


def append(
    session: Session,
    topic_id: int,
    values: Sequence[bytes | None] | int = 1,
    partition: int = 0,
    *,
    keys: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int] | None = None,
    at: int = NOW_MS,
    headers: Sequence[tuple[int, str, bytes | None]] | None = None,
    acks: int | None = 1,
    producer: tuple[int, int, int] | None = None,
) -> list[int]:
    """Append one batch (``values`` may be a count); what append() returns.

    ``producer`` is its id, its epoch and the batch's first sequence.
    """
    if isinstance(values, int):
        values = [b"value"] * values
    answer: list[int] = value(
        session,
        "SELECT append(%s::int4, %s::int4, %s::int4, %s::int8, %s::int8[], %s::bytea[], %s::bytea[],"
        " %s::int4[], %s::text[], %s::bytea[], %s::int2, %s::int8, %s::int2, %s::int4)",
        topic_id,
        partition,
        len(values),
        max(timestamps) if timestamps else at,
        None if timestamps is None else list(timestamps),
        None if keys is None else list(keys),
        list(values),
        None if headers is None else [ordinal for ordinal, _, _ in headers],
        None if headers is None else [name for _, name, _ in headers],
        None if headers is None else [content for _, _, content in headers],
        acks,
        *(producer or (None, None, None)),
    )
    return answer


def refused(session: Session, query: str, *args: Any) -> psycopg.Error:
    """The error that the server answers ``query`` with."""
    try:
        session.execute(query, args or None)
    except psycopg.Error as error:
        return error
    raise AssertionError(f"not refused: {query} {args}")


def wait_until(what: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Until ``what`` says True; fails after ``limit_s``."""
    began = time.monotonic()
    deadline = began + limit_s
    while not what():
        now = time.monotonic()
        assert now < deadline, "waited too long"
        time.sleep(min(max(0.002, 3 * (now - began)), 0.2))
        began = time.monotonic()


def waits_for_lock(observer: Session, waiter: Session) -> bool:
    """``waiter``'s statement is waiting for a lock."""
    return bool(
        value(
            observer,
            "SELECT coalesce((SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s), false)",
            waiter.info.backend_pid,
        )
    )
