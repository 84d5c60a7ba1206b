"""End-to-end latency: one thread sends at a steady rate, another reads, one clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from logstore.cli.extent import all_partitions
from logstore.cli.load import paced
from logstore.errors import RequestTimedOutError

if TYPE_CHECKING:
    from logstore import Consumer, Producer

__all__ = ["EndToEnd", "measure"]

ORDINAL: Final = "ordinal"
PATIENCE_S: Final = 30.0
"""How long after the last send the last record may take to arrive."""


class EndToEnd(NamedTuple):
    latencies: list[float]
    """Seconds from when a record was due to be sent to when poll() returned it, in order of sending."""
    seconds: float


def measure(
    producer: Producer,
    consumer: Consumer,
    topic: str,
    values: Sequence[bytes],
    keys: Sequence[bytes] | None,
    rate: float,
    seen: Callable[[int], object],
) -> EndToEnd:
    """Sends ``values`` at ``rate`` a second and waits until all came back; closes both clients.

    Raises what the producer or the consumer raised, and RequestTimedOutError when records do not arrive.
    """
    reader = _Reader(consumer, topic, len(values))
    failed: list[BaseException] = []
    with producer, consumer:
        producer.partitions_for(topic)
        reader.position()
        reader.start()
        due_at: list[float] = []
        began = time.perf_counter()
        try:
            for number, due in enumerate(paced(len(values), rate)):
                due_at.append(due)
                future = producer.send(
                    topic, values[number], keys[number] if keys else None, headers=[(ORDINAL, b"%d" % number)]
                )
                future.add_errback(failed.append)
                if number % 50 == 0:
                    seen(number)
                    if failed or reader.error:
                        break
            producer.flush()
            if not failed:
                reader.wait(PATIENCE_S)
        finally:
            reader.stop()
        seconds = time.perf_counter() - began
        seen(len(values))
    for error in (*failed, reader.error):
        if error is not None:
            raise error
    missing = len(values) - len(reader.arrived)
    if missing:
        raise RequestTimedOutError(
            f"{missing} of {len(values)} records did not arrive within {PATIENCE_S:g} s."
        )
    return EndToEnd([reader.arrived[number] - due for number, due in enumerate(due_at)], seconds)


class _Reader(threading.Thread):
    """Polls until it has seen every record, and notes when."""

    def __init__(self, consumer: Consumer, topic: str, count: int) -> None:
        super().__init__(name="end-to-end-reader", daemon=True)
        self._consumer = consumer
        self._topic = topic
        self._count = count
        self._stopped = threading.Event()
        self._complete = threading.Event()
        self.arrived: dict[int, float] = {}
        self.error: BaseException | None = None

    def position(self) -> None:
        """Stands at the end of every partition before anything is sent."""
        everything = all_partitions(self._consumer, self._topic)
        self._consumer.assign(everything)
        for tp, end in self._consumer.end_offsets(everything).items():
            self._consumer.seek(tp, end)

    def run(self) -> None:
        clock = time.perf_counter
        arrived = self.arrived
        try:
            while not self._stopped.is_set() and len(arrived) < self._count:
                polled = self._consumer.poll(timeout_ms=200)
                now = clock()
                for records in polled.values():
                    for record in records:
                        for name, value in record.headers:
                            if name == ORDINAL and value is not None:
                                arrived.setdefault(int(value), now)
        except BaseException as error:
            self.error = error
        finally:
            self._complete.set()

    def wait(self, seconds: float) -> None:
        self._complete.wait(seconds)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
