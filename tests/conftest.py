"""Servers and databases for tests.

``server`` is the one that ``--postgres`` chooses: ``embedded`` (default), ``dsn`` (the server that
LOGSTORE_TEST_DSN names; default when it is set) or ``docker`` (an image, LOGSTORE_TEST_IMAGE, run by
testcontainers).  ``database`` is a fresh database with the schema in it.  A test in
``conformance``, or one marked ``every_server``, gets one on each kind of server that is there, unless it is
marked ``one_server``.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import servers
from tests.support.colours import Asyncio
from tests.support.pgbouncer import pgbouncer
from tests.support.servers import Server

POSTGRES15 = Path("/usr/lib/postgresql/15/bin")
CONFORMANCE = Path(__file__).parent / "conformance"
KINDS = ("postgres", "postgres15", "pgbouncer")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        choices=("embedded", "dsn", "docker"),
        default="dsn" if os.environ.get("LOGSTORE_TEST_DSN") else "embedded",
        help="the server to test on (default: LOGSTORE_TEST_DSN if set, else the embedded one)",
    )


def pytest_configure() -> None:
    # Tests that are not about the worker need none beside each embedded server.
    os.environ.setdefault("LOGSTORE_WORKER", "off")
    # The same stories each time: what is new is looked for by `make prove`, not by whoever runs the tests.
    hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("suite")
    # A shell's background jobs ignore Ctrl-C, and so would the programs that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" not in metafunc.fixturenames or metafunc.config.getoption("--postgres") != "embedded":
        return
    marked = metafunc.definition.get_closest_marker
    if marked("every_server") or (
        CONFORMANCE in metafunc.definition.path.parents and not marked("one_server")
    ):
        metafunc.parametrize("database", KINDS, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the older server one colour is enough: servers differ in SQL, and both colours send the same."""

    def redundant(item: pytest.Item) -> bool:
        values = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        return values.get("database") == "postgres15" and values.get("colour") is Asyncio

    left_out = [item for item in items if redundant(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not redundant(item)]


@pytest.fixture(autouse=True)
def no_handler_outlives_its_test() -> Iterator[None]:
    """A command that was run here has told the logger to write to a stream that its test closes."""
    yield
    logging.getLogger("logstore").handlers.clear()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server that --postgres chooses."""
    kind = request.config.getoption("--postgres")
    if kind == "embedded":
        with servers.embedded() as found:
            yield found
    elif kind == "dsn":
        dsn = os.environ.get("LOGSTORE_TEST_DSN")
        if not dsn:
            pytest.fail("--postgres=dsn needs LOGSTORE_TEST_DSN")
        with servers.named(dsn) as found:
            yield found
    else:
        with servers.container(os.environ.get("LOGSTORE_TEST_IMAGE", "postgres:18")) as found:
            yield found


@pytest.fixture(scope="session")
def postgres15() -> Iterator[Server]:
    """The oldest server we support, from Debian's package."""
    if not (POSTGRES15 / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed (Debian: postgresql-15)")
    with servers.embedded(POSTGRES15) as found:
        yield found


@pytest.fixture(scope="session")
def pooled(server: Server) -> Iterator[Server]:
    """``server`` behind PgBouncer in transaction mode."""
    with pgbouncer(server) as found:
        yield found


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of a fresh database with the schema in it."""
    kind = getattr(request, "param", "postgres")
    name = {"postgres": "server", "postgres15": "postgres15", "pgbouncer": "pooled"}[kind]
    yield from _fresh(request.getfixturevalue(name))


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The DSN of a fresh database with nothing in it."""
    yield from _fresh(server, migrated=False)


@pytest.fixture
def postgres15_database(postgres15: Server) -> Iterator[str]:
    """The DSN of a fresh database with the schema in it, on PostgreSQL 15."""
    yield from _fresh(postgres15)


@pytest.fixture
def pgbouncer_dsn(pooled: Server) -> Iterator[str]:
    """The DSN of a fresh database with the schema in it, behind PgBouncer in transaction mode."""
    yield from _fresh(pooled)


def _fresh(server: Server, *, migrated: bool = True) -> Iterator[str]:
    dsn = server.create(migrated=migrated)
    try:
        yield dsn
    finally:
        server.drop(dsn)
