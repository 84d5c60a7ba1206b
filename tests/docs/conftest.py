"""An embedded server for pages that give no DSN."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from logstore.embedded import EmbeddedServer


@pytest.fixture
def embedded_home() -> Iterator[Path]:
    """A LOGSTORE_HOME in which the page's first client starts the server; stopped afterwards."""
    # Not under tmp_path, which is too long for the path of a socket.
    home = Path(tempfile.mkdtemp(prefix="logstore-docs-"))
    try:
        yield home
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)
