"""The records that are produced: 16-byte keys, 100-byte values, and how they fall into batches."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["PARTITIONS", "VALUE_BYTES", "Batch", "Workload"]

PARTITIONS: Final = 4
KEY_BYTES: Final = 16
VALUE_BYTES: Final = 100
DISTINCT_KEYS: Final = 10_000


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

    def requests(self, shape: Iterable[Sequence[tuple[int, int]]]) -> list[list[Batch]]:
        """The records in requests of this shape: for each the (partition, record count) of its batches.

        Keyed records fall to partitions by CRC32, as they do in the client.
        """
        keys: list[list[bytes]] = [[] for _ in range(self.partitions)]
        values: list[list[bytes]] = [[] for _ in range(self.partitions)]
        for key, value in zip(self.keys, self.values, strict=True):
            partition = zlib.crc32(key) % self.partitions
            keys[partition].append(key)
            values[partition].append(value)
        begin = [0] * self.partitions
        requests = []
        for request in shape:
            batches = []
            for partition, count in request:
                taken = slice(begin[partition], begin[partition] + count)
                begin[partition] += count
                batches.append(Batch(partition, keys[partition][taken], values[partition][taken]))
            requests.append(batches)
        if begin != list(map(len, keys)):
            raise AssertionError(
                f"the shape has {begin} records of each partition, the workload {list(map(len, keys))}"
            )
        return requests
