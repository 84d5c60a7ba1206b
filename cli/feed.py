"""Lines into a topic: as many at a time as there are, so that a pipe is fast and a keyboard is prompt."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from logstore.cli.failures import InputError
from logstore.cli.lines import Line, Parser
from logstore.errors import BufferExhaustedError, ClientClosedError, LogstoreError

if TYPE_CHECKING:
    from logstore import BulkFuture, Producer

__all__ = ["Feed", "chunks"]

CHUNK: Final = 256 * 1024
"""Bytes read at once at most; what is there already is never waited with."""


def chunks(source: IO[bytes], seen: Callable[[int], object]) -> Iterator[list[bytes]]:
    """Lines without their ends, in lists of those that are there; ``seen`` is told the bytes read so far."""
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    rest: list[bytes] = []
    total = 0
    while piece := read(CHUNK):
        total += len(piece)
        seen(total)
        *lines, last = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*rest, lines[0]])
            rest.clear()
            yield lines
        if last:
            rest.append(last)
    if rest:
        yield [b"".join(rest)]


class _Sent(NamedTuple):
    """Consecutive lines on their way."""

    first: int
    """The number of the first of them in the input, from 1."""
    records: int
    size: int
    future: BulkFuture


class Feed:
    """Sends lines and keeps count of what became of them."""

    def __init__(self, producer: Producer, topic: str, parse: Parser, defaults: Line) -> None:
        self._producer = producer
        self._topic = topic
        self._parse = parse
        self._defaults = defaults
        self._waiting: deque[_Sent] = deque()
        self._lines = 0
        self._began: float | None = None
        self._partitions: dict[int, list[int]] = {}
        self.acknowledged = 0
        self.bytes = 0
        self.unknown = 0
        """Records that were handed over and are not known to be in the log."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Sends ``lines``; returns when they are in the producer's buffer.

        Raises InputError for a line that cannot be read, after sending those before it, and what the
        producer raised for these or earlier ones.
        """
        records: list[Line] = []
        wrong: InputError | None = None
        for number, line in enumerate(lines, self._lines + 1):
            try:
                records.append(self._completed(self._parse(line, number)))
            except InputError as error:
                wrong = error
                break
        for partition, run in groupby(records, key=lambda record: record.partition):
            self._send_run(list(run), partition)
        if wrong is not None:
            raise wrong
        self._settle()

    def _completed(self, record: Line) -> Line:
        defaults = self._defaults
        headers = defaults.headers
        if record.headers:
            headers = [*(headers or ()), *record.headers]
        return Line(
            record.value,
            defaults.key if record.key is None else record.key,
            headers,
            defaults.partition if record.partition is None else record.partition,
            record.timestamp_ms,
        )

    def _send_run(self, records: Sequence[Line], partition: int | None) -> None:
        self._began = self._began or time.perf_counter()
        try:
            self._hand_over(records, partition)
        except (BufferExhaustedError, ClientClosedError):
            raise
        except LogstoreError:
            # One of them is refused, and none was taken: alone, each says which line it is.
            for record in records:
                try:
                    self._hand_over([record], partition)
                except LogstoreError as error:
                    raise _about(error, self._lines + 1, 1) from None

    def _hand_over(self, records: Sequence[Line], partition: int | None) -> None:
        values, keys, headers, _, stamps = zip(*records, strict=True)
        now = time.time_ns() // 1_000_000
        future = self._producer.send_many(
            self._topic,
            values,
            keys=keys if any(key is not None for key in keys) else None,
            headers=headers if any(headers) else None,
            partition=partition,
            timestamps_ms=[now if stamp is None else stamp for stamp in stamps] if any(stamps) else now,
        )
        size = sum(map(len, filter(None, values))) + sum(map(len, filter(None, keys)))
        self._waiting.append(_Sent(self._lines + 1, len(records), size, future))
        self._lines += len(records)

    def _settle(self) -> None:
        """Counts what has been answered, from the oldest on; raises the first failure."""
        while self._waiting and self._waiting[0].future.done():
            sent = self._waiting.popleft()
            if error := self._count(sent):
                raise _about(error, sent.first, sent.records)

    def _count(self, sent: _Sent) -> LogstoreError | None:
        failed: LogstoreError | None = None
        written = 0
        for run in sent.future.runs():
            if isinstance(run, LogstoreError):
                failed = run
                continue
            written += run.record_count
            seen = self._partitions.setdefault(run.partition, [0, run.base_offset, -1])
            seen[0] += run.record_count
            seen[2] = run.base_offset + run.record_count - 1 if run.base_offset >= 0 else -1
        self.acknowledged += written
        self.unknown += sent.records - written
        self.bytes += sent.size if failed is None else 0
        return failed

    def finish(self) -> None:
        """Waits for every answer; raises the first failure."""
        self._producer.flush()
        self._settle()

    def give_up(self, timeout_s: float) -> None:
        """Waits ``timeout_s`` seconds for what is on its way and counts it; raises nothing."""
        with suppress(LogstoreError):
            self._producer.flush(timeout_s)
        for sent in self._waiting:
            if sent.future.done():
                self._count(sent)
            else:
                self.unknown += sent.records
        self._waiting.clear()

    def seconds(self) -> float:
        """Since the first record was handed over."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    def document(self, *, complete: bool) -> Mapping[str, Any]:
        return {
            "topic": self._topic,
            "complete": complete,
            "records": self.acknowledged,
            "not_acknowledged": self.unknown,
            "bytes": self.bytes,
            "seconds": round(self.seconds(), 6),
            "partitions": [
                {"partition": partition, "records": count, "first_offset": first, "last_offset": last}
                for partition, (count, first, last) in sorted(self._partitions.items())
            ],
        }


def _about(error: LogstoreError, first: int, count: int) -> LogstoreError:
    """The same error, saying which lines of the input it is about."""
    where = f"Line {first}" if count == 1 else f"Lines {first} to {first + count - 1}"
    return type(error)(f"{where}: {error.message}", advice=error.advice, details=error.details)
