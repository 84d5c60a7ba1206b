"""Producers that write all the time, and what became of each record they were told is safe."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from logstore import RecordMetadata
from tests.support.colours import Colour
from tests.support.log import records
from tests.support.programs import eventually

__all__ = ["Load", "load"]

PARTITIONS: Final = 4
AT_A_TIME: Final = 20
PATIENCE_S: Final = 90.0


class Load:
    """``producers`` threads, each with a producer of its own, each writing ``<number>:<count>``."""

    def __init__(self, colour: Colour, dsn: str, topic: str, producers: int, **options: Any) -> None:
        self._dsn, self._topic = dsn, topic
        self.acknowledged: dict[bytes, RecordMetadata] = {}
        self.errors: list[BaseException] = []
        self._moments: list[float] = []
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(colour, number, options))
            for number in range(producers)
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a producer hangs"

    def _write(self, colour: Colour, number: int, options: dict[str, Any]) -> None:
        try:
            producer = colour.producer(self._dsn, acks="all", linger_ms=1, **options)
            count = 0
            while not self._done.is_set():
                values = [b"%d:%d" % (number, count + each) for each in range(AT_A_TIME)]
                count += AT_A_TIME
                futures = [
                    producer.send(self._topic, value, partition=number % PARTITIONS) for value in values
                ]
                for value, future in zip(values, futures, strict=True):
                    self.acknowledged[value] = future.get(PATIENCE_S)
                self._moments.append(time.monotonic())
            producer.close()
        except BaseException as error:
            self.errors.append(error)

    def advance(self, count: int = 400) -> None:
        """Wait until ``count`` more records have been acknowledged."""
        goal = len(self.acknowledged) + count
        eventually(
            lambda: bool(self.errors) or len(self.acknowledged) >= goal, "records are taken", PATIENCE_S
        )
        assert not self.errors, self.errors

    def longest_silence(self) -> float:
        """Seconds in which nothing at all was acknowledged."""
        return max(late - early for early, late in itertools.pairwise(sorted(self._moments)))

    def judge(self, dsn: str) -> None:
        """Nothing acknowledged is lost or elsewhere; nothing is there twice; each producer's order holds."""
        assert not self.errors, self.errors
        found = records(dsn, self._topic)
        times = Counter(record.value for record in found)
        assert [value for value, count in times.items() if count > 1] == []
        places = {record.value: (record.partition, record.offset) for record in found}
        wrong = {
            value: (said, places.get(value))
            for value, said in self.acknowledged.items()
            if places.get(value) != (said.partition, said.offset)
        }
        assert not wrong, dict(list(wrong.items())[:5])
        last: dict[bytes, int] = {}
        for record in found:
            writer, _, count = (record.value or b"").partition(b":")
            assert int(count) > last.get(writer, -1), record
            last[writer] = int(count)


@contextmanager
def load(colour: Colour, dsn: str, topic: str, producers: int, **options: Any) -> Iterator[Load]:
    """A load that has begun well, and is ended, and judged, at the end."""
    made = Load(colour, dsn, topic, producers, **options)
    made.begin()
    try:
        made.advance()
        yield made
        made.advance()
    finally:
        made.end()
    made.judge(dsn)
