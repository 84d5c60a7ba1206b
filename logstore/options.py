"""Client options: read from keyword arguments, checked, and refused with the near miss named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from typing import Any, Final, TypeGuard, TypeVar

from logstore.errors import ConfigurationError

__all__ = ["any_callable", "is_text", "number", "one_of", "read_options", "text", "whatever"]

T = TypeVar("T")

_IN_DSN: Final = "How to connect is for the DSN to say: user, password, sslmode and so on."
_KAFKAS: Final[Mapping[str, str]] = {
    "bootstrap_servers": "The broker is PostgreSQL: give its DSN, as in "
    'dsn="postgresql://user@host/database", or nothing for a server of your own.',
    "security_protocol": _IN_DSN,
    "api_version": "There are no versions to choose from: leave it out.",
    "compression_type": "The server compresses: it is a config of the topic, compression.type.",
    "isolation_level": "Consumers read what is committed, always: leave it out.",
    "partition_assignment_strategy": 'It is group_remote_assignor here: "uniform" or "range".',
    "allow_auto_create_topics": "Topics are made by Admin.create_topic() or `logstore topic create`.",
    "fetch_min_bytes": "A consumer that waits is woken by the commit of the next record: leave it out.",
    **dict.fromkeys(
        ("api_version_auto_timeout_ms", "check_crcs", "connections_max_idle_ms", "exclude_internal_topics",
         "metric_reporters", "metrics_num_samples", "metrics_sample_window_ms", "receive_buffer_bytes",
         "selector", "send_buffer_bytes", "socket_options"),
        "There is nothing here that it would change: leave it out.",
    ),
}  # fmt: skip
"""What Kafka's clients have and these have not, and what to do instead."""

Check = Callable[[str, Any], Any]


def read_options(kind: type[T], given: Mapping[str, Any], *, elsewhere: Collection[str] = ()) -> T:
    """An instance of the dataclass ``kind`` from ``given`` options.

    Kafka's dotted names (``max.poll.records``) are read as well.  Raises :class:`ConfigurationError` for an
    option that does not exist, naming the one that was probably meant, and for a value that does not fit.
    ``elsewhere``: parameters of the client that are no options, for that advice only.
    """
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        plain = name.replace(".", "_")
        if plain not in known:
            raise ConfigurationError(
                f"There is no option {name!r}.", advice=_instead(plain, [*known, *elsewhere])
            )
        if plain in values:
            raise ConfigurationError(f"The option {plain!r} is given twice.")
        values[plain] = known[plain].metadata["check"](name, value)
    return kind(**values)


def _instead(name: str, known: Collection[str]) -> str:
    if name in _KAFKAS:
        return _KAFKAS[name]
    if name.startswith(("sasl_", "ssl_")):
        return _IN_DSN
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else "See the class's documentation for the options."


def number(default: int | None, minimum: int, maximum: int = 2**31 - 1, *, optional: bool = False) -> Any:
    """A dataclass field: an integer from ``minimum`` to ``maximum``; None too when ``optional``."""

    def check(name: str, value: Any) -> Any:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ConfigurationError(f"{name} is an integer from {minimum} to {maximum}, not {value!r}.")
        return value

    return _field(default, check)


def text(default: Any = MISSING) -> Any:
    """A dataclass field: a string that is not empty."""

    def check(name: str, value: Any) -> Any:
        if not is_text(value):
            raise ConfigurationError(f"{name} is a string without NUL, not {value!r}.")
        return value

    return _field(default, check)


def is_text(value: object) -> TypeGuard[str]:
    """A string that PostgreSQL takes (Unicode, and no NUL in it), and not an empty one."""
    if not isinstance(value, str) or "\0" in value:
        return False
    with suppress(UnicodeEncodeError):
        return bool(value.encode())
    return False


def one_of(default: str, *values: str) -> Any:
    """A dataclass field: one of ``values``."""

    def check(name: str, value: Any) -> Any:
        if value not in values:
            raise ConfigurationError(f"{name} is one of {', '.join(values)}, not {value!r}.")
        return value

    return _field(default, check)


def any_callable() -> Any:
    """A dataclass field: something that can be called, or None."""

    def check(name: str, value: Any) -> Any:
        if value is not None and not callable(value):
            raise ConfigurationError(f"{name} is a callable, not {value!r}.")
        return value

    return _field(None, check)


def whatever(default: Any, check: Check) -> Any:
    """A dataclass field that ``check`` reads: it returns the value or raises."""
    return _field(default, check)


def _field(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})
