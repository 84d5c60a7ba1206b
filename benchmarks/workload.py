"""The records that are produced: 16-byte keys, 100-byte values, and how they fall into batches."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["Batch", "Workload"]

PARTITIONS: Final = 4
KEY_BYTES: Final = 16
VALUE_BYTES: Final = 100
DISTINCT_KEYS: Final = 10_000
_RECORD_OVERHEAD: Final = 24
_BATCH_OVERHEAD: Final = 128


@dataclass(frozen=True)
class Batch:
    """Records of one partition that travel together."""

    partition: int
    keys: list[bytes]
    values: list[bytes]


@dataclass(frozen=True)
class Workload:
    """``records`` records, the same every time; every value is an object of its own, as in a program."""

    records: int
    partitions: int = PARTITIONS

    @cached_property
    def keys(self) -> list[bytes]:
        distinct = [b"key-%012d" % number for number in range(min(DISTINCT_KEYS, self.records))]
        picks = random.Random(2).choices(distinct, k=self.records)
        return [bytes(bytearray(key)) for key in picks]

    @cached_property
    def values(self) -> list[bytes]:
        source = random.Random(1).randbytes(VALUE_BYTES * self.records)
        return [
            source[place : place + VALUE_BYTES] for place in range(0, VALUE_BYTES * self.records, VALUE_BYTES)
        ]

    def requests(self, batch_size: int) -> list[list[Batch]]:
        """The records as the client groups them: by CRC32 of the key, batches of up to ``batch_size`` bytes.

        A request holds the next batch of every partition, in ascending order.
        """
        record_size = _RECORD_OVERHEAD + KEY_BYTES + VALUE_BYTES
        length = max(1, (batch_size - _BATCH_OVERHEAD) // record_size)
        keys: list[list[bytes]] = [[] for _ in range(self.partitions)]
        values: list[list[bytes]] = [[] for _ in range(self.partitions)]
        for key, value in zip(self.keys, self.values, strict=True):
            partition = zlib.crc32(key) % self.partitions
            keys[partition].append(key)
            values[partition].append(value)
        longest = max(map(len, keys))
        return [
            [
                Batch(
                    partition,
                    keys[partition][place : place + length],
                    values[partition][place : place + length],
                )
                for partition in range(self.partitions)
                if place < len(keys[partition])
            ]
            for place in range(0, longest, length)
        ]
