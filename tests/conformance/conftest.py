"""Every test here runs once with the threaded clients and once with the asyncio ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.appender import Appender
from tests.support.colours import Asyncio, Colour, Threads


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def colour(request: pytest.FixtureRequest) -> Iterator[Colour]:
    """Makes clients of one colour and closes them afterwards."""
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
