"""Databases on the oldest and on the newest server, and sessions in them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.support.servers import Server
from tests.support.sqllog import Connect, Session


@pytest.fixture(params=["postgres", "postgres15"])
def release(request: pytest.FixtureRequest) -> Server:
    """The server to test on: the chosen one, and PostgreSQL 15 where it is installed."""
    name = {"postgres": "server", "postgres15": "postgres15"}[request.param]
    found: Server = request.getfixturevalue(name)
    return found


@pytest.fixture
def log_dsn(release: Server) -> Iterator[str]:
    """The DSN of a fresh database with the schema in it, on each release."""
    dsn = release.create()
    yield dsn
    release.drop(dsn)


@pytest.fixture
def connect(log_dsn: str) -> Iterator[Connect]:
    """Opens sessions that commit each statement and find the log without its schema's name."""
    opened: list[Session] = []

    def make(dsn: str = log_dsn, **options: str) -> Session:
        settings = " ".join(
            f"-c {name}={text}" for name, text in {"search_path": "logstore", **options}.items()
        )
        session = psycopg.connect(dsn, autocommit=True, options=settings)
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()


@pytest.fixture
def session(connect: Connect) -> Session:
    return connect()
