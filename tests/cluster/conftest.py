"""Local clusters for tests.

``make test`` runs :mod:`test_smoke` and :mod:`test_short_storm` only, ``make test-cluster``, which sets
LOGSTORE_TEST_CLUSTER, the rest too.  No cluster outlives the process that made it, whatever ends that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from logstore.cluster import LocalCluster
from tests.cluster.guardian import guarded
from tests.support.colours import Asyncio, Colour, Threads
from tests.support.servers import make_directory

collect_ignore_glob = [] if os.environ.get("LOGSTORE_TEST_CLUSTER") else ["test_[!s]*.py"]

SETTINGS = {"fsync": "off", "shared_buffers": "32MB"}
"""Tests do not crash the machine."""


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalCluster]:
    """A cluster of three that several tests hurt, one after the other."""
    home = make_directory()
    with guarded(home):
        cluster = LocalCluster(home)
        cluster.up(3, SETTINGS)
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """It, whole: what an earlier test killed runs again."""
    shared_cluster.up()
    return shared_cluster


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for a cluster of the test's own, stopped and removed afterwards."""
    directory = make_directory()
    monkeypatch.setenv("LOGSTORE_HOME", str(directory))
    with guarded(directory):
        yield directory


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def colour(request: pytest.FixtureRequest) -> Iterator[Colour]:
    """Makes clients of one colour, then of the other."""
    made: Colour = request.param()
    try:
        yield made
    finally:
        made.close()
