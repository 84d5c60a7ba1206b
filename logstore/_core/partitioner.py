"""Which partition a keyed record goes to.

One key always goes to one partition as long as the number of partitions does not change.  Clients that
share keyed topics have to agree on the function: ``crc32`` is librdkafka's (and so confluent-kafka's)
``consistent``, and what the SQL function ``produce`` uses; ``murmur2`` is that of the Java client,
kafka-python and aiokafka.
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from logstore.errors import ConfigurationError, InvalidArgumentError

__all__ = ["Partitioner", "as_partitioner", "crc32_partition", "hash_of", "murmur2", "murmur2_partition"]

Partitioner = Callable[[bytes, int], int]
"""From a key and the number of partitions to a partition."""


def crc32_partition(key: bytes, partitions: int) -> int:
    """CRC-32 (zlib's) modulo the number of partitions, as librdkafka's ``consistent``."""
    return crc32(key) % partitions


def murmur2_partition(key: bytes, partitions: int) -> int:
    """The Java client's default: ``toPositive(murmur2(key)) % partitions``."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with Kafka's seed, unsigned."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    whole = length & ~3
    h = (0x9747B28C ^ length) & mask
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def hash_of(partitioner: Partitioner) -> Callable[[bytes], int] | None:
    """The hash whose remainder by the number of partitions is what ``partitioner`` returns, if it has one.

    Taking the remainder of a C function's result in place is twice as fast as calling a Python function.
    """
    return crc32 if partitioner is crc32_partition else None


def as_partitioner(choice: object) -> Partitioner:
    """The function behind the ``partitioner`` option.

    Raises ConfigurationError for what is neither a known name nor callable.
    """
    if choice == "crc32":
        return crc32_partition
    if choice == "murmur2":
        return murmur2_partition
    if callable(choice):
        return _checked(choice)
    raise ConfigurationError(
        f"partitioner={choice!r} is not possible.",
        advice='Use "crc32", "murmur2" or a function of the key (bytes) and the number of partitions.',
    )


def _checked(function: Callable[[bytes, int], object]) -> Partitioner:
    def partition(key: bytes, partitions: int) -> int:
        chosen = function(key, partitions)
        if type(chosen) is not int or not 0 <= chosen < partitions:
            raise InvalidArgumentError(f"The partitioner chose {chosen!r} of {partitions} partitions.")
        return chosen

    return partition
