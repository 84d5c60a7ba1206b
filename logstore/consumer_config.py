"""The options of a consumer, with Kafka's names, meanings and defaults where Kafka has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from logstore._core.reset import ResetPolicy
from logstore.errors import ConfigurationError
from logstore.options import any_callable, is_text, number, one_of, text, whatever

__all__ = ["ConsumerConfig", "ConsumerOptions"]


class ConsumerOptions(TypedDict, total=False):
    """What a consumer may be given; :class:`ConsumerConfig` says what each means and its default."""

    auto_commit_interval_ms: int
    auto_offset_reset: str
    client_id: str
    client_rack: str | None
    consumer_timeout_ms: int | None
    delivery: Literal["at_least_once", "at_most_once", "exactly_once"]
    enable_auto_commit: bool
    fetch_max_bytes: int
    fetch_max_wait_ms: int
    group_instance_id: str | None
    group_remote_assignor: Literal["uniform", "range"] | None
    heartbeat_interval_ms: int
    key_deserializer: Callable[[bytes], Any] | None
    max_partition_fetch_bytes: int
    max_poll_interval_ms: int
    max_poll_records: int
    max_replica_lag_ms: int
    metadata_max_age_ms: int
    read_from: Literal["leader", "follower", "nearest"]
    reconnect_backoff_max_ms: int
    reconnect_backoff_ms: int
    request_timeout_ms: int
    schema: str
    session_timeout_ms: int
    value_deserializer: Callable[[bytes], Any] | None
    wakeup: Literal["auto", "notify", "poll"]


def _reset_policy(name: str, value: Any) -> str:
    ResetPolicy.parse(value)
    return str(value)


def _name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if is_text(value) and len(value) <= 255:
        return value
    raise ConfigurationError(f"{name} is a string of 1 to 255 characters, without NUL, not {value!r}.")


def _rack(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if is_text(value):
        return value
    raise ConfigurationError(f"{name} is a string, or None, not {value!r}.")


def _assignor(name: str, value: Any) -> str | None:
    if value not in (None, "uniform", "range"):
        raise ConfigurationError(f'{name} is "uniform", "range" or None, not {value!r}.')
    return None if value is None else str(value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is True or False, not {value!r}.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """Every option of a consumer.  Sizes are bytes, times milliseconds."""

    schema: str = text("logstore")
    """The database schema that the log lives in."""
    client_id: str = text("logstore")
    """The ``application_name`` of the connection, as ``pg_stat_activity`` shows it."""
    group_id: str | None = whatever(None, _name)
    """The group to be a member of, and to commit for.  None: positions are the program's own affair."""
    group_instance_id: str | None = whatever(None, _name)
    """A name that this member keeps across restarts (a static member): a restart within
    ``session_timeout_ms`` moves no partition.  Closing does not leave the group.  A second member with the
    same name takes the first one's place, and the first gets FencedInstanceIdError."""
    group_remote_assignor: str | None = whatever(None, _assignor)
    """Who gets which partition: "uniform" spreads all partitions evenly and moves as few as it can; "range"
    gives equal partitions of co-partitioned topics to one member.  The group uses what most of its members
    ask for; None: no preference ("uniform")."""
    session_timeout_ms: int = number(45_000, 100, 1_800_000)
    """How long a member may be silent before its partitions are given to others."""
    heartbeat_interval_ms: int = number(3_000, 10)
    """How often a member sends a heartbeat; less than ``session_timeout_ms``, a third of it at most makes
    sense.  Heartbeats do not depend on the program's speed."""
    max_poll_interval_ms: int = number(300_000, 1)
    """How long the program may go without asking for records before the member leaves its group, so that
    others can go on with its partitions."""
    delivery: str = one_of("at_least_once", "at_least_once", "at_most_once", "exactly_once")
    """With a group, what a crash does.  "at_least_once": what was handed out is committed by a later poll,
    so it may come again.  "at_most_once": offsets are committed before records are handed out, so records
    may be missing, and none comes twice.  "exactly_once": records are handed out in transactions only, with
    ``transaction`` or ``run``, which commit the offsets with what the program writes."""
    enable_auto_commit: bool = whatever(True, _switch)
    """With a group: poll commits what the polls before it handed out, every ``auto_commit_interval_ms``, and
    so do losing a partition and close.  False: only ``commit`` does."""
    auto_commit_interval_ms: int = number(5_000, 0)
    """How often poll commits by itself."""
    auto_offset_reset: str = whatever("latest", _reset_policy)
    """Where to begin in a partition without a position, or whose position has left the log: "earliest",
    "latest", "none" (raise) or "by_duration:" and an ISO 8601 duration (the last hour: "by_duration:PT1H").
    Partitions that are added to a topic its readers know begin at their start."""
    max_poll_records: int = number(500, 1)
    """The most records that one poll returns."""
    fetch_max_bytes: int = number(52_428_800, 1)
    """The most that one fetch brings, unless its first batch alone is larger, and roughly the most that is
    kept fetched ahead."""
    max_partition_fetch_bytes: int = number(1_048_576, 1)
    """The most that one fetch brings of one partition, unless its first batch alone is larger."""
    fetch_max_wait_ms: int = number(2_100, 0)
    """The longest that a consumer which has read everything goes without looking at the log again; in this
    time it asks the server two things at most.  It is not how long a record waits: where the server can
    wake the consumer (``wakeup``), it does so when records are committed, and this bounds what a lost wake-up
    costs.  Where it cannot, the pauses between looks grow to half of this, so a record that comes after a
    long silence waits so long at most.  (Kafka's default is 500; idle consumers cost less here.)"""
    key_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a key into what the record shows.  Never called with None.  None: keys are
    bytes."""
    value_deserializer: Callable[[bytes], Any] | None = any_callable()
    """Turns the bytes of a value into what the record shows.  Never called with None.  None: values
    are bytes."""
    consumer_timeout_ms: int | None = number(None, 0, optional=True)
    """Iteration ends when no record has come for this long and there is none; None: never."""
    wakeup: str = one_of("auto", "auto", "notify", "poll")
    """How a consumer that has read everything learns of new records: woken by the server ("notify"), or by
    looking again, every 5 ms at first and ever less often (see ``fetch_max_wait_ms``; "poll").  "auto": woken
    where the server can do that, which a follower cannot, nor one behind a pooler."""
    read_from: str = one_of("leader", "leader", "follower", "nearest")
    """Which of the hosts that the DSN names records are read from.  "follower": one of those that follow, of
    ``client_rack`` if there is one; "nearest": one of ``client_rack``, else the one with the shortest round
    trip.  While no follower will do, the leader is read from.  Everything else is asked of the leader."""
    client_rack: str | None = whatever(None, _rack)
    """Where the program runs, for ``read_from``: a server is there if its setting ``logstore.rack`` or
    ``cluster_name`` says the same, or if the DSN names it so."""
    max_replica_lag_ms: int = number(5_000, 100)
    """A follower that lacks for longer what the leader has, or does not answer for longer, is not read from
    until it has caught up."""
    request_timeout_ms: int = number(30_000, 1)
    """How long the server may take to accept a connection or to answer."""
    metadata_max_age_ms: int = number(300_000, 1)
    """How often to look for partitions that were added to the topics."""
    reconnect_backoff_ms: int = number(50, 0)
    """The pause before the first attempt to connect again; it doubles."""
    reconnect_backoff_max_ms: int = number(1_000, 0)
    """The longest pause between attempts to connect again."""

    def __post_init__(self) -> None:
        if self.heartbeat_interval_ms >= self.session_timeout_ms:
            raise ConfigurationError(
                f"heartbeat_interval_ms={self.heartbeat_interval_ms} has to be less than "
                f"session_timeout_ms={self.session_timeout_ms}; a third of it is usual."
            )
        if self.group_id is None and self.group_instance_id is not None:
            raise ConfigurationError("group_instance_id needs a group_id.")
        if self.client_rack is not None and self.read_from == "leader":
            raise ConfigurationError(
                'client_rack chooses among followers: it needs read_from="nearest" or "follower".'
            )
        if self.delivery == "exactly_once" and self.group_id is None:
            raise ConfigurationError(
                'delivery="exactly_once" moves the offsets of a group: it needs a group_id.'
            )
        if self.delivery == "at_most_once" and (self.group_id is None or not self.enable_auto_commit):
            raise ConfigurationError(
                'delivery="at_most_once" commits before records are handed out: it needs a group_id, and '
                "enable_auto_commit=False contradicts it."
            )
