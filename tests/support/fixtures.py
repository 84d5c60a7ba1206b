"""Fixtures for tests of clients; a conftest imports those that its tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.appender import Appender
from tests.support.colours import Asyncio, Colour, Threads

__all__ = ["appender", "colour"]


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def colour(request: pytest.FixtureRequest, database: str) -> Iterator[Colour]:
    """Makes clients of one colour, then of the other, and closes them before their database is dropped."""
    made: Colour = request.param()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def appender(database: str) -> Iterator[Appender]:
    """Puts batches into the log of ``database``."""
    with Appender(database) as made:
        yield made
