"""Restored logs.  ``make test`` runs the first story of :mod:`test_point_in_time`, ``make test-cluster`` the
others and the rest too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import POSTGRES15
from tests.support import servers
from tests.support.recovery import Archived, archived
from tests.support.servers import Server

EVERYTHING = bool(os.environ.get("LOGSTORE_TEST_CLUSTER"))
collect_ignore_glob = [] if EVERYTHING else ["test_[!p]*.py"]
# The first of them is the one of `make test`.
RELEASES = ["postgres", "postgres15"] if EVERYTHING else ["postgres"]
MOMENTS = ["time", "lsn", "name"] if EVERYTHING else ["time"]


@pytest.fixture
def server() -> Iterator[Archived]:
    """A server that archives, with an empty log in it."""
    with archived() as made:
        yield made


@pytest.fixture(params=RELEASES)
def archiving(request: pytest.FixtureRequest) -> Iterator[Archived]:
    """The same, on the newest PostgreSQL and on 15, where that is installed."""
    old = request.param == "postgres15"
    if old and not (POSTGRES15 / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed")
    with archived(POSTGRES15 if old else None) as made:
        yield made


@pytest.fixture(params=MOMENTS)
def by(request: pytest.FixtureRequest) -> str:
    """How a moment is told."""
    return str(request.param)


@pytest.fixture
def another() -> Iterator[Server]:
    """Another cluster."""
    with servers.embedded(stranger=True) as made:
        yield made
