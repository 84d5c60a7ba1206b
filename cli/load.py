"""Load for measurements: records to send, and a clock that says when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Payloads", "paced"]


class Payloads(NamedTuple):
    """Values and keys to cycle through."""

    values: list[bytes]
    keys: list[bytes] | None

    @classmethod
    def make(cls, record_size: int, keys: int, variety: int = 1024) -> Payloads:
        """``variety`` values of random bytes, which nothing compresses; ``keys`` different keys, 0: none."""
        pool = os.urandom(record_size + variety)
        values = [pool[start : start + record_size] for start in range(variety)]
        return cls(values, [b"key-%012d" % number for number in range(keys)] if keys else None)


def paced(count: int, rate: float) -> Iterator[float]:
    """Yields ``count`` times, when each is due; the moment it was due, not the moment it came.

    A sender that falls behind is not excused: what waits for it waits since its due moment.  ``rate`` is
    per second; 0 does not wait at all.
    """
    clock = time.perf_counter
    began = clock()
    if rate <= 0:
        for _ in range(count):
            yield clock()
        return
    for number in range(count):
        due = began + number / rate
        left = due - clock()
        if left > 0:
            # Never by spinning: that would keep the interpreter from the thread that reads.
            time.sleep(left)
        yield due
