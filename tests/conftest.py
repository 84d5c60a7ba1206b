"""Servers and databases for tests.

``server`` is the one that ``--postgres`` chooses: ``embedded`` (default), ``dsn`` (the server that
LOGSTORE_TEST_DSN names; default when it is set) or ``docker`` (an image, LOGSTORE_TEST_IMAGE, run by
testcontainers).  ``database`` is a fresh database with the schema in it.  A test in
``conformance``, or one marked ``every_server``, gets one on each kind of server that is there, unless it is
marked ``one_server``.

What that would come to is too much for everybody's `make test`, so there:

* A conformance test runs on the chosen server in one colour, and every fourth one in the other colour on
  PostgreSQL 15 or behind PgBouncer; those marked ``both_colours``, of what is written by hand for each
  (drivers, threads and tasks, waiting, borrowed connections), run in both.  Everything else of one colour is
  generated from the other.
* A test of ``sql`` or ``migration`` runs on PostgreSQL 15 or on the chosen server, where all others run.
* Tests marked ``every_server`` run on all of them: those of what the planner does, of locks and of DDL.  What
  is about the pooler itself asks for ``pgbouncer_dsn``.

A number made of the test's name decides which.  With ``--all`` (``make test-all``) everything runs on
everything in both colours, and tests that have a short and a long version run the long one (fixture
``long_version``).

Tests marked ``long`` begin first, or the last of them would run alone at the end.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from tests.support import lengths, log, prepared, servers
from tests.support.colours import Asyncio, Threads
from tests.support.pgbouncer import pgbouncer
from tests.support.prestarted import prestarted
from tests.support.servers import Server

POSTGRES15 = Path("/usr/lib/postgresql/15/bin")
CONFORMANCE = Path(__file__).parent / "conformance"
KINDS = ("postgres", "postgres15", "pgbouncer")
COLOURS = (Threads, Asyncio)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        choices=("embedded", "dsn", "docker"),
        default="dsn" if os.environ.get("LOGSTORE_TEST_DSN") else "embedded",
        help="the server to test on (default: LOGSTORE_TEST_DSN if set, else the embedded one)",
    )
    parser.addoption(
        "--all",
        action="store_true",
        dest="everything",
        help="every test on every server in both colours, and the long versions of tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Nothing of what collecting makes is garbage, and looking for it takes a third of the time.
    gc.disable()
    # Hundreds of processes are started: none should compile all its modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Tests that are not about the worker need none beside each embedded server.
    os.environ.setdefault("LOGSTORE_WORKER", "off")
    # The same stories each time: what is new is looked for by `make prove`, not by whoever runs the tests.
    number = 100 if config.getoption("everything") else lengths.SHORT
    hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=number)
    hypothesis.settings.load_profile("suite")
    if prepared.VARIABLE not in os.environ:
        here = ExitStack()
        here.enter_context(prepared.place(servers.make_directory()))
        config.add_cleanup(here.close)
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


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [] if config.getoption("everything") else [item for item in items if _redundant(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        without = set(left_out)
        items[:] = [item for item in items if item not in without]
    items[:] = _long_ones_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _redundant(item: pytest.Item) -> bool:
    """It runs on another server, or in the other colour."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    kind, colour = item.callspec.params.get("database"), item.callspec.params.get("colour")
    release = item.callspec.params.get("release") or item.callspec.params.get("server_of_release")
    everywhere = item.get_closest_marker("every_server") is not None
    ours = {*KINDS, *(each.name for each in COLOURS)}
    words = [word for word in item.callspec.id.split("-") if word not in ours]
    number = zlib.crc32("-".join([item.originalname, *words]).encode())
    if release is not None:
        both_are_there = item.config.getoption("--postgres") == "embedded" and _postgres15_is_there()
        return both_are_there and not everywhere and release != KINDS[number % 2]
    ours_first = number // 2 % 2
    if kind in (None, "postgres"):
        both = CONFORMANCE not in item.path.parents or item.get_closest_marker("both_colours") is not None
        return not both and colour is COLOURS[1 - ours_first]
    if not everywhere and (kind != KINDS[1 + number % 2] or number // 4 % 4):
        return True
    return colour is COLOURS[ours_first]


def _long_ones_first(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """In the order in which ``--dist=worksteal`` cuts them into one part for each process.

    The tests of a file stay together, because they may share what it takes long to make.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    files = [list(group) for _, group in itertools.groupby(long, key=lambda item: item.path)]
    begun = set(long)
    rest = [item for item in items if item not in begun]
    ordered: list[pytest.Item] = []
    for place in range(processes):
        mine = [item for file in files[place::processes] for item in file]
        size = (len(items) - len(ordered)) // (processes - place)
        short = max(0, size - len(mine))
        ordered += mine + rest[:short]
        del rest[:short]
    return ordered + rest


def _postgres15_is_there() -> bool:
    return (POSTGRES15 / "initdb").exists()


@pytest.fixture(autouse=True)
def no_handler_outlives_its_test() -> Iterator[None]:
    """A command that was run here has told the logger to write to a stream that its test closes."""
    yield
    logging.getLogger("logstore").handlers.clear()


@pytest.fixture(scope="session")
def long_version(pytestconfig: pytest.Config) -> bool:
    """More rounds than `make test` has time for are wanted."""
    return bool(pytestconfig.getoption("everything"))


@pytest.fixture(scope="session")
def command() -> Iterator[Path]:
    """A directory with a ``logstore`` in it that takes no time to start; for the front of PATH."""
    with prestarted() as directory:
        yield directory


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
    if not _postgres15_is_there():
        pytest.skip("PostgreSQL 15 is not installed (Debian: postgresql-15)")
    with servers.embedded(POSTGRES15) as found:
        yield found


@pytest.fixture(scope="session")
def pooled(server: Server) -> Iterator[Server]:
    """``server`` behind PgBouncer in transaction mode."""
    with pgbouncer(server) as found:
        yield found


@pytest.fixture
def contents() -> Callable[[str], object] | None:
    """What puts something into a database before tests get it: once for each server, for they get copies."""
    return None


@pytest.fixture
def database(request: pytest.FixtureRequest, contents: Callable[[str], object] | None) -> Iterator[str]:
    """The DSN of a fresh database with the schema in it."""
    kind = getattr(request, "param", "postgres")
    name = {"postgres": "server", "postgres15": "postgres15", "pgbouncer": "pooled"}[kind]
    found: Server = request.getfixturevalue(name)
    yield from _fresh(found, like=found.filled(contents) if contents else None)


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


def _fresh(server: Server, *, migrated: bool = True, like: str | None = None) -> Iterator[str]:
    dsn = server.create(migrated=False, like=like) if like else server.create(migrated=migrated)
    try:
        with log.kept(dsn):
            yield dsn
    finally:
        server.drop(dsn)
