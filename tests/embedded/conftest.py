"""Homes for embedded servers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logstore.embedded import EmbeddedServer
from tests.support import prepared
from tests.support.servers import SETTINGS, make_directory, remove_leftovers

Make = Callable[..., EmbeddedServer]


@pytest.fixture(scope="session")
def data_directory() -> Iterator[Path]:
    """A data directory to copy: making one takes longer than everything else a start does."""
    ready_made = prepared.data_directory(SETTINGS)
    if ready_made is not None:
        yield ready_made
        return
    remove_leftovers()
    home = make_directory()
    server = EmbeddedServer(home, SETTINGS, idle_s=60)
    server.start_or_join().close()
    server.stop()
    yield home / "data"
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory with a path short enough for a socket."""
    path = make_directory()
    yield path
    EmbeddedServer(path).stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def used_home(home: Path, data_directory: Path) -> Path:
    """A home with a data directory in it."""
    subprocess.run(["cp", "-R", "-p", data_directory, home / "data"], check=True)
    return home


@pytest.fixture
def embedded_server(used_home: Path) -> EmbeddedServer:
    """A server that is not running, with a data directory;

    it stops ten seconds after its last user has gone.
    """
    return EmbeddedServer(used_home, SETTINGS, idle_s=10)
