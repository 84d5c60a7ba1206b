"""Which server a client talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from logstore import migrations
from logstore.embedded import EmbeddedServer
from logstore.embedded.dsn import Resolved, resolve
from tests.support.servers import SETTINGS


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch, used_home: Path) -> Iterator[EmbeddedServer]:
    """The embedded server that runs where nobody says otherwise."""
    monkeypatch.setenv("LOGSTORE_HOME", str(used_home))
    monkeypatch.delenv("LOGSTORE_DSN", raising=False)
    server = EmbeddedServer(settings=SETTINGS)
    with server.start_or_join():
        yield server


def test_the_argument_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSTORE_DSN", "postgresql://environment")
    assert resolve("postgresql://argument") == Resolved("postgresql://argument", embedded=False)


def test_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSTORE_DSN", "postgresql://environment")
    assert resolve() == Resolved("postgresql://environment", embedded=False)


def test_then_the_embedded_server_which_gets_the_schema(default: EmbeddedServer) -> None:
    found = resolve()
    assert (found.dsn, found.embedded) == (default.dsn, True)
    assert found.keep is not None
    assert migrations.status(found.dsn).up_to_date
    found.keep.close()


def test_two_logs_in_one_server(default: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    for schema in ("logstore", "other", "other"):
        found = resolve(schema=schema)
        assert found.keep is not None
        with found.keep:
            assert migrations.status(found.dsn, schema).up_to_date
    # Of the first one nothing is said; the second one may be a slip.
    assert caplog.messages == ["There was no log in schema other: it was made, beside logstore."]
    assert default.home.logs() == ["logstore", "other"]


def test_an_older_schema_is_brought_up_to_date(default: EmbeddedServer) -> None:
    first = resolve()
    assert first.keep is not None
    with first.keep, psycopg.connect(first.dsn, autocommit=True) as connection:
        connection.execute("DROP FUNCTION logstore.schema_fingerprint CASCADE")
        assert not migrations.status(first.dsn).up_to_date
        second = resolve()
        assert second.keep is not None
        with second.keep:
            assert migrations.status(second.dsn).up_to_date


def test_a_current_schema_is_left_alone(default: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve()
    assert first.keep is not None
    with first.keep:

        def fail(*_: object) -> None:
            raise AssertionError("upgraded again")

        monkeypatch.setattr(migrations, "upgrade", fail)
        second = resolve()
        assert second.keep is not None
        second.keep.close()
