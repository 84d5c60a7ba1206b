"""Functions of a test's database with one rule of theirs taken out."""

from __future__ import annotations

import psycopg

__all__ = [
    "without_claim_epochs",
    "without_producer_epochs",
    "without_sequences",
    "without_the_lock",
]


def _operate(dsn: str, function: str, *cuts: tuple[str, str]) -> None:
    """Replace texts in a function's definition; each has to be there once."""
    with psycopg.connect(dsn, options="-c search_path=logstore,pg_temp") as connection:
        rows = connection.execute(
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'logstore'::regnamespace"
            " AND proname = %s",
            [function],
        ).fetchall()
        ((definition,),) = rows
        for old, new in cuts:
            assert definition.count(old) == 1, f"{function}: {old!r} is there {definition.count(old)} times"
            definition = definition.replace(old, new)
        connection.execute(definition.encode())


def without_the_lock(dsn: str) -> None:
    """Offsets come from a sequence, as in a table with a serial column: handed out when a batch is written,
    not in the order of commits.  For batches of one record in partition 0.
    """
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SEQUENCE logstore.offsets MINVALUE 0 START 0")
    _operate(
        dsn,
        "append",
        ("for no key update of p;", ";"),
        ("base := coalesce(base, segment_start);", "base := nextval('offsets');"),
    )


def without_claim_epochs(dsn: str) -> None:
    """Commits are taken from whoever was an owner once."""
    _operate(
        dsn,
        "commit_offsets",
        ("where c.owner is distinct from me or c.claim_epoch is distinct from w.claim_epoch", "where false"),
    )


def without_producer_epochs(dsn: str) -> None:
    """Whoever has held a transactional id may go on, and so may its batches."""
    _operate(
        dsn,
        "check_producer",
        ("and holder.producer_epoch = check_producer.producer_epoch) is not true", ") is not true"),
    )
    without_sequences(dsn)


def without_sequences(dsn: str) -> None:
    """Nobody looks whether a batch is in the log already."""
    _operate(dsn, "append", ("if first_answer is not null then", "if false then"))
    _operate(dsn, "repeated_batch", ("\nbegin\n", "\nbegin\n    return null;\n"))
