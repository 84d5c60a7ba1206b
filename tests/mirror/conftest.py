"""Two logs: a source, and the one that its topics are copied to."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from logstore.workers.mirroring import Link
from tests.support.mirrored import Both
from tests.support.servers import Server


@pytest.fixture
def both(request: pytest.FixtureRequest, server: Server) -> Iterator[Both]:
    """Each on the server that --postgres chooses; parametrized indirectly: on those named, source first."""
    kinds = getattr(request, "param", ("server", "server"))
    servers = [request.getfixturevalue(kind) for kind in kinds]
    source, target = (each.create() for each in servers)
    try:
        # What a test asks by itself goes around a pooler.
        direct = (
            server.database(urlsplit(dsn).path[1:]) if kind == "pooled" else dsn
            for kind, dsn in zip(kinds, (source, target), strict=True)
        )
        with Both(Link(source, target), Link(*direct)) as made:
            yield made
    finally:
        servers[0].drop(source)
        servers[1].drop(target)
