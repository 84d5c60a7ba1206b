"""Restored logs.  ``make test`` runs :mod:`test_point_in_time`, ``make test-cluster`` the rest too."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import servers
from tests.support.recovery import Archived, archived
from tests.support.servers import Server

collect_ignore_glob = [] if os.environ.get("LOGSTORE_TEST_CLUSTER") else ["test_[!p]*.py"]


@pytest.fixture
def server() -> Iterator[Archived]:
    """A server that archives, with an empty log in it."""
    with archived() as made:
        yield made


@pytest.fixture
def another() -> Iterator[Server]:
    """Another cluster."""
    with servers.embedded() as made:
        yield made
