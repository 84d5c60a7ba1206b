"""The options of a share consumer, with Kafka's names, meanings and defaults where Kafka has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypedDict

from logstore.errors import ConfigurationError, LogstoreError
from logstore.options import any_callable, is_text, number, one_of, text, whatever
from logstore.records import TopicPartition

__all__ = ["AcknowledgementCallback", "ShareConsumerConfig", "ShareConsumerOptions"]

AcknowledgementCallback = Callable[[TopicPartition, Sequence[int], LogstoreError | None], object]
"""Called with a partition, offsets, and None when their acknowledgement holds, else why it does not."""


class ShareConsumerOptions(TypedDict, total=False):
    """What a share consumer may be given; :class:`ShareConsumerConfig` says what each means."""

    acknowledgement_commit_callback: AcknowledgementCallback | None
    client_id: str
    consumer_timeout_ms: int | None
    fetch_max_bytes: int
    fetch_max_wait_ms: int
    key_deserializer: Callable[[bytes], Any] | None
    key_ordered: bool | None
    max_poll_records: int
    reconnect_backoff_max_ms: int
    reconnect_backoff_ms: int
    request_timeout_ms: int
    schema: str
    share_acknowledgement_mode: Literal["implicit", "explicit"]
    value_deserializer: Callable[[bytes], Any] | None
    wakeup: Literal["auto", "notify", "poll"]


def _group_id(name: str, value: Any) -> str:
    if is_text(value):
        return value
    raise ConfigurationError(
        f"{name} is the name of a share group, not {value!r}.",
        advice='For example ShareConsumer("orders", group_id="shipping").',
    )


def _yes_no_or_none(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name} is True, False or None, not {value!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConsumerConfig:
    """Every option of a share consumer.  Sizes are bytes, times milliseconds.

    How long a lock lasts, how often a record is delivered, where the group begins and what becomes of dead
    letters are the group's configs, not a member's: ``logstore share alter``.
    """

    group_id: str = whatever(MISSING, _group_id)
    """The share group; it is made when it is new."""
    schema: str = text("logstore")
    """The database schema that the log lives in."""
    client_id: str = text("logstore")
    """The ``application_name`` of the connection, as ``pg_stat_activity`` shows it, and the beginning of the
    member's name."""
    share_acknowledgement_mode: str = one_of("implicit", "implicit", "explicit")
    """"implicit": asking for more records accepts those that were handed out before, and so does ``commit``.
    "explicit": the program acknowledges each record before it asks for more."""
    key_ordered: bool | None = whatever(None, _yes_no_or_none)
    """True: at most one record of a key is in flight in the group, so each key keeps its order.  False: the
    group must not be one that does that.  None: as the group is (its config ``share.key.ordered``)."""
    max_poll_records: int = number(500, 1, 100_000)
    """The most records that are acquired, and handed out, at a time."""
    fetch_max_bytes: int = number(52_428_800, 1)
    """Roughly the most that is handed out at a time, unless the first record alone is larger."""
    fetch_max_wait_ms: int = number(2_100, 0)
    """The longest that a member which has read everything goes without looking at the log again; in this
    time it asks the server two things at most.  It is not how long a record waits: where the server can
    wake the member (``wakeup``), it does so when records are committed, and this bounds what a lost wake-up
    costs.  Where it cannot, the pauses between looks grow to half of this, so a record that comes after a
    long silence waits so long at most.  (Kafka's default is 500; idle members cost less here.)"""
    key_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a key into what the record shows.  Never called with None.  None: keys are bytes."""
    value_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a value into what the record shows.  Never called with None.  None: values are
    bytes."""
    acknowledgement_commit_callback: AcknowledgementCallback | None = any_callable()
    """Called with what became of acknowledgements that ``poll`` or iteration sent.  Without one, those that
    were refused are logged as warnings."""
    consumer_timeout_ms: int | None = number(None, 0, optional=True)
    """Iteration ends when no record has come for this long; None: never."""
    wakeup: str = one_of("auto", "auto", "notify", "poll")
    """How a member without work learns of new records: woken by the server ("notify"), or by looking again,
    every 5 ms at first and ever less often (see ``fetch_max_wait_ms``; "poll").  "auto": woken where the
    server can do that."""
    request_timeout_ms: int = number(30_000, 1)
    """How long the server may take to accept a connection or to answer."""
    reconnect_backoff_ms: int = number(50, 0)
    """The pause before the first attempt to connect again; it doubles."""
    reconnect_backoff_max_ms: int = number(1_000, 0)
    """The longest pause between attempts to connect again."""
