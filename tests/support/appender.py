"""Records put into a log batch by batch, without a producer: a test says which batches there are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from logstore._core.arrays import ByteaArray, Int4Array, Int8Array, TextArray
from logstore._core.calls import AppendBatch, Calls
from logstore._sync.driver import Connection

__all__ = ["Appender", "values"]

Headers = Sequence[tuple[int, str, bytes | None]]


def values(count: int, begin: int = 0) -> list[bytes | None]:
    """The numbers from ``begin`` on, as text."""
    return [b"%d" % number for number in range(begin, begin + count)]


class Appender:
    """One connection that appends; wakes whoever waits unless it is told not to."""

    def __init__(self, dsn: str, schema: str = "logstore") -> None:
        self.calls = Calls(schema)
        self.connection = Connection.open(dsn, application_name="appender")

    def create(self, topic: str, partitions: int = 1, **configs: str) -> int:
        named = {name.replace("_", "."): value for name, value in configs.items()}
        return self.connection.run(self.calls.create_topic(topic, partitions, named))

    def topic_id(self, topic: str) -> int:
        return self.connection.run(self.calls.metadata([topic]))[0].topic_id

    def append(
        self,
        topic: str | int,
        records: Sequence[bytes | None],
        partition: int = 0,
        *,
        keys: Sequence[bytes | None] | None = None,
        headers: Headers | None = None,
        timestamps: Sequence[int] | None = None,
        wake: bool = True,
    ) -> int:
        """Append one batch to a topic, given its name or number; its base offset.

        ``headers`` are (ordinal from 1, name, value).
        """
        topic_id = topic if isinstance(topic, int) else self.topic_id(topic)
        batch = AppendBatch(
            topic_id,
            partition,
            len(records),
            max(timestamps) if timestamps else time.time_ns() // 1_000_000,
            None if timestamps is None else Int8Array(timestamps),
            None if keys is None else ByteaArray(keys),
            ByteaArray(records),
            None if headers is None else Int4Array([ordinal for ordinal, _, _ in headers]),
            None if headers is None else TextArray([name for _, name, _ in headers]),
            None if headers is None else ByteaArray([value for _, _, value in headers]),
        )
        (result,) = self.connection.run(self.calls.append([batch], 1))
        if wake:
            self.connection.run(self.calls.wake([topic_id]))
        return result.base_offset

    def transaction(self) -> AbstractContextManager[None]:
        return self.connection.transaction()

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
