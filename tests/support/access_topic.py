"""The topic of the demo and of docs/sql.md, batch by batch, so that its offsets are always the same."""

from __future__ import annotations

import zlib

from logstore.cli.access_log import Request, requests
from logstore.cli.checks import LINE
from tests.support.sqllog import Session, append, value

__all__ = ["PARTITIONS", "make"]

PARTITIONS = 4
BATCH = 500


def make(session: Session) -> None:
    """Create topic ``access`` with the 10,000 requests, each with the number of its line as a header."""
    topic = value(session, "SELECT create_topic('access', %s)", PARTITIONS)
    lines: list[list[tuple[int, Request]]] = [[] for _ in range(PARTITIONS)]
    for number, request in enumerate(requests(), 1):
        lines[zlib.crc32(request.client) % PARTITIONS].append((number, request))
    with session.transaction():
        for partition, mine in enumerate(lines):
            for first in range(0, len(mine), BATCH):
                batch = mine[first : first + BATCH]
                append(
                    session,
                    topic,
                    [request.value for _, request in batch],
                    partition,
                    keys=[request.client for _, request in batch],
                    timestamps=[request.timestamp_ms for _, request in batch],
                    headers=[(at, LINE, b"%d" % number) for at, (number, _) in enumerate(batch, 1)],
                )
