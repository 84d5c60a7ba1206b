"""Logs with records in files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import appender, colour
from tests.support.tiered import Record, TieredLog

__all__ = ["appender", "colour"]


@pytest.fixture
def make_log(database: str, tmp_path: Path) -> Iterator[Callable[..., TieredLog]]:
    """Makes topic ``t`` with its files under ``tmp_path``; see :class:`TieredLog`."""
    with ExitStack() as opened:

        def make(url: str | None = None, **options: Any) -> TieredLog:
            return opened.enter_context(TieredLog(database, url or f"file://{tmp_path}", **options))

        yield make


class Settled:
    """Two partitions, most of whose records are in files only: made once for each server, and copied."""

    def __init__(self, files: Path) -> None:
        self._files = files
        self._records: dict[int, list[Record]] = {}

    def __call__(self, dsn: str) -> None:
        shutil.rmtree(self._files, ignore_errors=True)
        with TieredLog(dsn, f"file://{self._files}", partitions=2) as log:
            log.fill().settle()
            self._records = log.records

    def copy(self, dsn: str, files: Path) -> TieredLog:
        shutil.copytree(self._files, files, dirs_exist_ok=True)
        log = TieredLog.again(dsn, *self._records.values(), url=f"file://{self._files}")
        return log.moved(f"file://{files}")


@pytest.fixture(scope="session")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Settled]:
    """One for each kind of server."""
    made: dict[str, Settled] = {}

    def of(kind: str) -> Settled:
        return made.setdefault(kind, Settled(tmp_path_factory.mktemp("settled") / "files"))

    return of


@pytest.fixture
def contents(request: pytest.FixtureRequest, settled: Callable[[str], Settled]) -> Settled | None:
    if "log" not in request.fixturenames:
        return None
    # Behind PgBouncer is the newest.
    return settled("postgres15" if _kind(request) == "postgres15" else "postgres")


@pytest.fixture
def log(contents: Settled, database: str, tmp_path: Path) -> Iterator[TieredLog]:
    with contents.copy(database, tmp_path) as made:
        yield made


def _kind(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.node, pytest.Function)
    callspec = getattr(request.node, "callspec", None)
    return callspec.params.get("database", "postgres") if callspec else "postgres"
