"""How far mirrors are behind their sources."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from logstore.errors import LogstoreError, MirrorError
from logstore.workers.connections import Connection, opened
from logstore.workers.mirroring import LIMITS, chosen, log_end

__all__ = ["report"]


def report(
    dsn: str,
    schema: str = "logstore",
    *,
    source: str | None = None,
    source_schema: str = "logstore",
    topics: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], str | None]:
    """A document for each mirrored partition in ``dsn``, and why the source was not asked, if it was not.

    ``live``: the source was asked just now; else its end is what was last seen.  ``seconds_behind``: for how
    long the first record that the mirror lacks has been at the source (0: it lacks none; None: not known, as
    when the source was not asked).  ``parted``: the mirror has records that the source does not have.
    """
    with opened(dsn, schema, "mirror status", LIMITS) as connection:
        documents = [
            {
                "topic": topic,
                "partition": partition,
                "state": state,
                "source_start": start,
                "source_end": end,
                "mirror_start": mirror_start,
                "mirror_end": mirror_end,
                "records_behind": None if end is None or state != "mirror" else max(0, end - mirror_end),
                "seconds_behind": None,
                "leader_epoch": epoch,
                "live": False,
                "parted": False,
                "seen_at": seen_at,
                "peer": address,
                "changed_at": changed_at,
                "_peer": peer,
                "_id": peer_id,
            }
            for (
                topic, partition, state, start, end, mirror_start, mirror_end, epoch, seen_at, address,
                changed_at, peer, peer_id,
            ) in connection.rows(
                'SELECT topic, "partition", state, peer_start, peer_end, log_start, end_offset, leader_epoch,'
                " seen_at, peer_address, changed_at, peer, peer_topic_id FROM {}.mirrors"
                ' ORDER BY topic, "partition"'
            )
            if chosen(topic, topics)
        ]  # fmt: skip
    trouble = "no --from was given" if source is None else None
    if source is not None and documents:
        try:
            with opened(source, source_schema, "mirror status", LIMITS) as asked:
                _ask(asked, documents)
        except MirrorError:
            raise
        except LogstoreError as error:
            trouble = error.message
    for document in documents:
        del document["_peer"], document["_id"]
    return documents, trouble if documents else None


def _ask(source: Connection, documents: list[dict[str, Any]]) -> None:
    identity = source.value("SELECT {}.log_identity()")
    wanted = [each for each in documents if each["state"] == "mirror" and each["_peer"] == identity]
    if not wanted and any(each["state"] == "mirror" for each in documents):
        raise MirrorError(
            "None of the mirrors is copied from the log that --from leads to.",
            advice=f"They are copied from {', '.join(sorted({str(each['peer']) for each in documents}))}.",
            details={"reason": "other_peer"},
        )
    now = datetime.now(UTC)
    now_ms = source.value("SELECT {}.clock_ms()")
    rows = source.rows(
        "SELECT log_start, high_watermark, waiting_since"
        " FROM {}.mirror_lag(%s::int4[], %s::int4[], %s::int8[]) ORDER BY idx",
        [each["_id"] for each in wanted],
        [each["partition"] for each in wanted],
        [each["mirror_end"] for each in wanted],
    )
    for document, (start, end, since) in zip(wanted, rows, strict=True):
        if start is None:
            # Deleted at the source.
            document |= {"source_start": None, "source_end": None, "records_behind": None, "live": True}
            continue
        behind = max(0, end - max(document["mirror_end"], start))
        document |= {
            "source_start": start,
            "source_end": end,
            "records_behind": behind,
            "seconds_behind": 0.0 if not behind else None if since is None else max(0, now_ms - since) / 1000,
            "live": True,
            "parted": end < document["mirror_end"]
            and log_end(source, document["_id"], document["partition"]) < document["mirror_end"],
            "seen_at": now,
        }
