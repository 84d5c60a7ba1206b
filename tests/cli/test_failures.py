"""Errors become one line and an exit code; passwords never show."""

from __future__ import annotations

import signal

import pytest

import logstore.errors
from logstore.cli import failures, main
from logstore.cli.failures import BY_CLASS, exit_code, redact
from logstore.errors import LogstoreError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("UnknownTopicOrPartitionError", 3),
        ("OffsetOutOfRangeError", 3),
        ("TopicAlreadyExistsError", 4),
        ("RecordTooLargeError", 4),
        ("InvalidTopicError", 2),
        ("InvalidConfigError", 2),
        ("ConnectionFailedError", 5),
        ("RequestTimedOutError", 5),
        ("StorageFullError", 5),
        ("NotLeaderError", 5),
        ("DeliveryTimeoutError", 5),
        ("AuthenticationFailedError", 6),
        ("SchemaMissingError", 7),
        ("SchemaVersionError", 7),
        ("UnsupportedServerError", 7),
        ("EmbeddedServerError", 5),
        ("ServerError", 1),
        ("ClientClosedError", 1),
    ],
)
def test_a_code_follows_from_the_class(error: str, code: int) -> None:
    assert exit_code(getattr(logstore.errors, error)("what happened")) == code


def test_every_class_in_the_table_exists() -> None:
    for name in BY_CLASS:
        assert issubclass(getattr(logstore.errors, name), LogstoreError)


def test_a_retriable_error_never_says_that_trying_again_will_not_help() -> None:
    for name in logstore.errors.__all__:
        cls = getattr(logstore.errors, name)
        if isinstance(cls, type) and issubclass(cls, LogstoreError) and cls.retriable:
            assert exit_code(cls("x")) == 5, name


@pytest.mark.parametrize(
    ("text", "argv", "shown"),
    [
        ("at postgresql://me:s3cret@host:5/db now", (), "at postgresql://me:****@host:5/db now"),
        ("host=a password=s3cret user=b", (), "host=a password=**** user=b"),
        ("host=a password='s3 cr\\'et' user=b", (), "host=a password=**** user=b"),
        (
            "postgresql://host/db?password=s3cret&sslmode=require",
            (),
            "postgresql://host/db?password=****&sslmode=require",
        ),
        ("no such role: s3cret", ("--dsn", "postgresql://me:s3cret@host"), "no such role: ****"),
        ("no such role: s3cret", ("--dsn", "password=s3cret"), "no such role: ****"),
        ("a plain message", ("--dsn", "postgresql://me:a@host"), "a plain message"),
    ],
)
def test_passwords_are_hidden(text: str, argv: tuple[str, ...], shown: str) -> None:
    assert redact(text, argv) == shown


def test_the_password_of_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGSTORE_DSN", "postgresql://me:s3cret@host")
    monkeypatch.setenv("PGPASSWORD", "an0ther")
    assert redact("s3cret and an0ther") == "**** and ****"


def test_ctrl_c_before_the_command_is_there_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(failures, "guarded", lambda root, argv: int(signal.getsignal(signal.SIGINT)))  # type: ignore[arg-type]
    try:
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == int(signal.SIG_DFL)
