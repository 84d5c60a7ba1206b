"""The options of a producer, with Kafka's names, meanings and defaults where Kafka has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from logstore.errors import ConfigurationError
from logstore.options import any_callable, is_text, number, text, whatever
from logstore.serde import Serializer

__all__ = ["ProducerConfig", "ProducerOptions"]


class ProducerOptions(TypedDict, total=False):
    """What a producer may be given; :class:`ProducerConfig` says what each means and its default."""

    acks: Literal["all", 0, 1, -1]
    batch_size: int
    buffer_memory: int
    client_id: str
    delivery_timeout_ms: int
    enable_idempotence: bool | None
    key_serializer: Serializer | None
    linger_ms: int
    max_block_ms: int
    max_in_flight_requests_per_connection: int
    max_request_size: int
    metadata_max_age_ms: int
    partitioner: str | Callable[[bytes, int], int]
    request_timeout_ms: int
    retries: int
    retry_backoff_max_ms: int
    retry_backoff_ms: int
    schema: str
    transaction_timeout_ms: int
    transactional_id: str | None
    value_serializer: Serializer | None


def _acks(name: str, value: Any) -> int:
    if value in ("all", "-1") or (type(value) is int and value == -1):
        return -1
    if value in ("0", "1") or (type(value) is int and value in (0, 1)):
        return int(value)
    raise ConfigurationError(f'{name} is "all", 0, 1 or -1, not {value!r}.')


def _flag(name: str, value: Any) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise ConfigurationError(f"{name} is True or False, not {value!r}.")


def _transactional_id(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if is_text(value) and len(value.encode()) <= 1024:
        return value
    raise ConfigurationError(f"{name} is a string of 1 to 1024 bytes, or None, not {value!r}.")


def _partitioner(name: str, value: Any) -> Any:
    if value in ("crc32", "murmur2") or callable(value):
        return value
    raise ConfigurationError(
        f'{name} is "crc32", "murmur2" or a function of the key (bytes) and the number of partitions, '
        f"not {value!r}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerConfig:
    """Every option of a producer.  Sizes are bytes, times milliseconds.

    Meanings follow https://kafka.apache.org/documentation/#producerconfigs; differences are stated.
    """

    schema: str = text("logstore")
    """The database schema that the log lives in."""
    client_id: str = text("logstore")
    """The ``application_name`` of the connection, as ``pg_stat_activity`` shows it."""
    acks: int = whatever(-1, _acks)
    """When a record counts as delivered.  0: at once, unawaited (its offset is -1, nothing is tried again,
    a crash of the server may lose it).  1: when it is on the leader's disk.  "all" or -1, the default: when
    it is also on the disks of the synchronous followers, of which there are at least
    ``min.insync.replicas`` - 1."""
    linger_ms: int = number(5, 0)
    """How long a record waits for others to share its batch.  0 sends at once, which costs a commit a
    record.
    """
    batch_size: int = number(256 * 1024, 0)
    """A batch of this many bytes does not linger any longer (Kafka's default: 16 KiB).  While the partition's
    previous batch is under way a batch grows on, up to what ``max.message.bytes`` and ``max_request_size``
    allow."""
    buffer_memory: int = number(32 * 1024 * 1024, 1024, 2**63 - 1)
    """Bytes of records that may wait; when they are full ``send`` waits, at most ``max_block_ms``."""
    max_block_ms: int = number(60_000, 0)
    """How long ``send``, ``send_many`` and ``partitions_for`` may wait for buffer space or for metadata."""
    max_in_flight_requests_per_connection: int = number(2, 1, 16)
    """How many requests may be under way at a time (Kafka's default: 5).  Each takes a database connection of
    its own, opened when there is so much to send that it gains time: a producer that sends little has one.
    The order within a partition is kept whatever this is."""
    max_request_size: int = number(1024 * 1024, 1024, 2**28)
    """The largest batch, and so the largest record, that is sent at all."""
    enable_idempotence: bool | None = whatever(None, _flag)
    """Number the batches, so that the log takes each once, however often it is sent, and in order.  A batch
    whose connection is lost during the commit is then sent again until it is known what became of it;
    otherwise it fails with UnknownOutcomeError.  None, the default, is True unless ``acks=0`` or
    ``retries=0``, with which it makes no sense (Kafka also turns it off with ``acks=1``)."""
    retries: int = number(2**31 - 1, 0)
    """How often a failed batch is sent again while ``delivery_timeout_ms`` lasts."""
    retry_backoff_ms: int = number(100, 0)
    """The pause before the first retry; doubled for each further one, with jitter (KIP-580)."""
    retry_backoff_max_ms: int = number(1_000, 0)
    """The longest pause before a retry."""
    delivery_timeout_ms: int = number(120_000, 1)
    """The longest time from ``send`` to success or failure; at least ``linger_ms + request_timeout_ms``.  A
    request that is under way then is given a second more: giving it up leaves its outcome unknown."""
    request_timeout_ms: int = number(30_000, 1)
    """How long the server may take to accept a connection or to answer."""
    metadata_max_age_ms: int = number(300_000, 1)
    """How often to look for partitions that were added to the topics."""
    transactional_id: str | None = whatever(None, _transactional_id)
    """A name for a producer that writes in transactions: of its own, and the same after a restart, because a
    new producer with this name fences the one before.  None: no transactions."""
    transaction_timeout_ms: int = number(60_000, 1, 900_000)
    """How long a transaction may be open; later it cannot be committed any more."""
    key_serializer: Serializer | None = any_callable()
    """Makes the bytes of a key.  Never called with None.  None: keys are bytes."""
    value_serializer: Serializer | None = any_callable()
    """Makes the bytes of a value.  Never called with None.  None: values are bytes."""
    partitioner: str | Callable[[bytes, int], int] = whatever("crc32", _partitioner)
    """Where keyed records go: "crc32" as librdkafka, "murmur2" as Java, or a function of the key and the
    number of partitions.  Records without a key go to one partition for ``batch_size`` bytes, then to
    another (KIP-794)."""

    def __post_init__(self) -> None:
        without = next((f"{name}=0" for name in ("acks", "retries") if getattr(self, name) == 0), None)
        if self.enable_idempotence and without:
            raise ConfigurationError(f"enable_idempotence=True and {without} contradict each other.")
        if self.enable_idempotence is False and self.transactional_id is not None:
            raise ConfigurationError("A transactional_id contradicts enable_idempotence=False.")
        if self.enable_idempotence is None:
            object.__setattr__(self, "enable_idempotence", without is None)
        least = self.linger_ms + self.request_timeout_ms
        if self.delivery_timeout_ms < least:
            raise ConfigurationError(
                f"delivery_timeout_ms={self.delivery_timeout_ms} is less than "
                f"linger_ms + request_timeout_ms, which is {least}."
            )
        if self.transactional_id is not None and self.acks != -1:
            raise ConfigurationError(f'A transactional_id needs acks="all": acks={self.acks} contradicts it.')
