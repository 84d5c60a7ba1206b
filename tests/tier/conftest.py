"""Logs with records in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import appender, colour
from tests.support.tiered import TieredLog

__all__ = ["appender", "colour"]


@pytest.fixture
def make_log(database: str, tmp_path: Path) -> Iterator[Callable[..., TieredLog]]:
    """Makes topic ``t`` with its files under ``tmp_path``; see :class:`TieredLog`."""
    with ExitStack() as opened:

        def make(url: str | None = None, **options: Any) -> TieredLog:
            return opened.enter_context(TieredLog(database, url or f"file://{tmp_path}", **options))

        yield make


@pytest.fixture
def log(make_log: Callable[..., TieredLog]) -> TieredLog:
    """Two partitions, most of whose records are in files only."""
    made = make_log(partitions=2).fill()
    made.settle()
    return made
