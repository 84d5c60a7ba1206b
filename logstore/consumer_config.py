"""The options of a consumer, with Kafka's names, meanings and defaults where Kafka has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from logstore._core.reset import ResetPolicy
from logstore.errors import ConfigurationError
from logstore.options import any_callable, number, one_of, text, whatever

__all__ = ["ConsumerConfig", "ConsumerOptions"]


class ConsumerOptions(TypedDict, total=False):
    """What a consumer may be given; :class:`ConsumerConfig` says what each means and its default."""

    auto_offset_reset: str
    client_id: str
    consumer_timeout_ms: int | None
    fetch_max_bytes: int
    fetch_max_wait_ms: int
    key_deserializer: Callable[[bytes], Any] | None
    max_partition_fetch_bytes: int
    max_poll_records: int
    metadata_max_age_ms: int
    reconnect_backoff_max_ms: int
    reconnect_backoff_ms: int
    request_timeout_ms: int
    schema: str
    value_deserializer: Callable[[bytes], Any] | None
    wakeup: Literal["auto", "notify", "poll"]


def _reset_policy(name: str, value: Any) -> str:
    ResetPolicy.parse(value)
    return str(value)


def _no_group(name: str, value: Any) -> None:
    if value is not None:
        raise ConfigurationError(
            f"{name}={value!r}: this version of logstore has no consumer groups.",
            advice="Leave group_id out: the consumer then reads every partition of its topics; "
            "or assign() partitions to each consumer.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """Every option of a consumer.  Sizes are bytes, times milliseconds."""

    schema: str = text("logstore")
    """The database schema that the log lives in."""
    client_id: str = text("logstore")
    """The ``application_name`` of the connection, as ``pg_stat_activity`` shows it."""
    group_id: None = whatever(None, _no_group)
    """Consumer groups are not there yet: anything but None is refused."""
    auto_offset_reset: str = whatever("latest", _reset_policy)
    """Where to begin in a partition without a position, or whose position has left the log: "earliest",
    "latest", "none" (raise) or "by_duration:" and an ISO 8601 duration ("by_duration:PT1H", the last hour)."""
    max_poll_records: int = number(500, 1)
    """The most records that one poll returns."""
    fetch_max_bytes: int = number(52_428_800, 1)
    """The most that one fetch brings, unless its first batch alone is larger, and roughly the most that is
    kept fetched ahead."""
    max_partition_fetch_bytes: int = number(1_048_576, 1)
    """The most that one fetch brings of one partition, unless its first batch alone is larger."""
    fetch_max_wait_ms: int = number(500, 0)
    """Accepted for Kafka's sake: a consumer that waits is woken when there are records."""
    key_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a key into what the record shows.  Never called with None.  None: keys are
    bytes."""
    value_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a value into what the record shows.  Never called with None.  None: values
    are bytes."""
    consumer_timeout_ms: int | None = number(None, 0, optional=True)
    """Iteration ends when no record has come for this long; None: never."""
    wakeup: str = one_of("auto", "auto", "notify", "poll")
    """How a consumer that has read everything learns of new records: woken by the server ("notify"), or by
    looking again, every 5 ms at first and every second in the end ("poll").  "auto": woken where the server
    can do that,
    which a follower cannot, nor one behind a pooler."""
    request_timeout_ms: int = number(30_000, 1)
    """How long the server may take to accept a connection or to answer."""
    metadata_max_age_ms: int = number(300_000, 1)
    """How often to look for partitions that were added to the topics."""
    reconnect_backoff_ms: int = number(50, 0)
    """The pause before the first attempt to connect again; it doubles."""
    reconnect_backoff_max_ms: int = number(1_000, 0)
    """The longest pause between attempts to connect again."""
