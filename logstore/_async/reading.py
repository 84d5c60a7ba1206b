"""Reading a part of a topic, wherever its records are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Final

from logstore._async.concurrency import offload, sleep
from logstore._async.driver import Connection
from logstore._async.session import Session
from logstore._core.calls import Calls, FetchRow
from logstore._core.fetched import Deserializer, Deserializers, FetchedBatch
from logstore._core.pace import Pace
from logstore._core.tier_calls import RemoteFile, TierCalls
from logstore._core.topic_name import check_topic_name
from logstore.errors import InvalidArgumentError, RemoteFileError, UnknownTopicOrPartitionError
from logstore.records import ConsumerRecord, TopicPartition
from logstore.tier.files import Readers

__all__ = ["read"]

TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 8 << 20
"""About how much is read from the server at once."""
SEAL_S: Final = 0.5
"""How long what is committed is given to be replicated, so that it may be read."""
FILES: Final = 50
"""How many files are looked up at once."""


async def read(
    topic: str,
    partition: int | None = None,
    from_offset: int | None = None,
    to_offset: int | None = None,
    from_time: datetime | int | None = None,
    to_time: datetime | int | None = None,
    max_records: int | None = None,
    *,
    dsn: str | None = None,
    schema: str = "logstore",
    key_deserializer: Deserializer | None = None,
    value_deserializer: Deserializer | None = None,
) -> AsyncIterator[ConsumerRecord]:
    """The records of a topic, or of one partition, that the log has now, in order of partition and offset.

    As the SQL function ``read``, with its arguments, but files are read as well (see ``docs/tiering.md``):
    from ``from_offset`` to before ``to_offset``, with a timestamp from ``from_time`` to before ``to_time`` (a
    datetime with a time zone, or milliseconds since the epoch), at most ``max_records``.  It ends at the end
    that each partition has when it comes to it; where followers are waited for, as far as they have it after
    half a second.  Memory is bounded, whatever the size of the log.

    ``dsn``: by default ``LOGSTORE_DSN``, else the embedded server.

    Raises UnknownTopicOrPartitionError; RemoteFileError when a file is missing or was changed,
    RemoteStorageError when its place cannot be reached, ConfigurationError when the extra ``tier`` is needed
    and not there; ConnectionFailedError and what else the server answers.
    """
    check_topic_name(topic)
    wanted = _Range(from_offset, to_offset, _milliseconds(from_time), _milliseconds(to_time))
    left = max_records
    if left is not None and (isinstance(left, bool) or not isinstance(left, int) or left < 0):
        raise InvalidArgumentError(f"max_records is an integer from 0, not {left!r}.")
    deserializers = Deserializers(key_deserializer, value_deserializer)
    session = Session(dsn, schema, timeout_s=TIMEOUT_S, application_name="logstore read")
    connection: Connection | None = None
    try:
        connection, info = await session.open()
        seals = info.replicated and not info.is_in_recovery and not connection.access.read_only
        numbers = await _partitions(connection, session.calls, topic, partition)
        for number in numbers:
            part = _Part(connection, TopicPartition(topic, number), wanted, schema)
            if seals:
                await part.settle(max_wait_s=SEAL_S)
            while left is None or left > 0:
                rows = await part.next(left)
                if not rows:
                    break
                for row in rows:
                    batch = FetchedBatch(part.tp, row, part.first)
                    records = wanted.only(batch.take(row.record_count, deserializers))[:left]
                    for record in records:
                        yield record
                    if left is not None:
                        left -= len(records)
    finally:
        if connection is not None:
            await connection.close()
        await session.close()


class _Range:
    """What is wanted; half open."""

    def __init__(
        self, from_offset: int | None, to_offset: int | None, after: int | None, before: int | None
    ) -> None:
        for offset in (from_offset, to_offset):
            if offset is not None and (isinstance(offset, bool) or not isinstance(offset, int)):
                raise InvalidArgumentError(f"An offset is an integer, not {offset!r}.")
        self.from_offset = max(0, from_offset or 0)
        self.to_offset = to_offset
        self.after = after
        self.before = before

    def only(self, records: list[ConsumerRecord]) -> list[ConsumerRecord]:
        to_offset, after, before = self.to_offset, self.after, self.before
        if to_offset is not None and records and records[-1].offset >= to_offset:
            records = [record for record in records if record.offset < to_offset]
        if after is not None:
            records = [record for record in records if record.timestamp >= after]
        if before is not None:
            records = [record for record in records if record.timestamp < before]
        return records

    def overlaps(self, file: RemoteFile) -> bool:
        return (
            file.min_timestamp is not None
            and file.max_timestamp is not None
            and (self.after is None or file.max_timestamp >= self.after)
            and (self.before is None or file.min_timestamp < self.before)
        )


class _Part:
    """One partition, read from ``position`` on."""

    def __init__(self, connection: Connection, tp: TopicPartition, wanted: _Range, schema: str) -> None:
        self.tp = tp
        self._connection = connection
        self._calls = TierCalls(schema)
        self._wanted = wanted
        self._position = wanted.from_offset
        self._end = wanted.to_offset
        self._topic_id: int | None = None
        self._bounded = False
        self._readers = Readers(2)
        self._files: list[RemoteFile] = []
        self._chunk = 100
        self._told: RemoteFile | None = None
        self.first = 0
        """Records below it, in what :meth:`next` has returned, are not wanted."""

    async def settle(self, max_wait_s: float) -> None:
        """Wait until all that is committed now may be read, if it is soon."""
        pace = Pace(woken=False)
        until = monotonic() + max_wait_s
        call = self._calls.read_chunk(*self.tp, 2**62, 2**62, None, None, 1)
        end: int | None = None
        while True:
            (state, *_) = await self._connection.run(call, timeout_s=TIMEOUT_S)
            end = (state.log_end or 0) if end is None else end
            if (state.high_watermark or 0) >= end or monotonic() > until:
                return
            await self._connection.run(Calls(self._calls.schema).seal(), timeout_s=TIMEOUT_S)
            await sleep(pace.hasten().seconds)

    async def next(self, left: int | None) -> list[FetchRow]:
        """Some batches, none of them empty; no batch: that is all."""
        while self._end is None or self._position < self._end:
            if self._files:
                rows = await self._from_file()
            else:
                found = await self._from_server(left)
                if found is None:
                    return []
                rows = found
            if rows:
                return rows
        return []

    async def _from_server(self, left: int | None) -> list[FetchRow] | None:
        """The next batches that PostgreSQL has; no batch: it is the turn of files; None: that is all."""
        wanted = self._wanted
        count = self._chunk if left is None else min(left, self._chunk)
        call = self._calls.read_chunk(
            *self.tp, self._position, self._end, wanted.after, wanted.before, max(1, count)
        )
        state, *rows = await self._connection.run(call, timeout_s=TIMEOUT_S)
        log_start, end, local_start = state.log_start or 0, state.high_watermark or 0, state.local_start or 0
        asked, self._position = self._position, max(self._position, log_start)
        self.first = self._position
        if not self._bounded:
            self._bounded = True
            self._end = end if self._end is None else min(end, self._end)
        if self._position >= (self._end or 0):
            return None
        if self._position < local_start:
            await self._look_up()
            return []
        if asked < local_start:
            return []  # it was only told where the log begins by now
        if not rows:
            return None
        self._position = rows[-1].last_offset + 1
        records = sum(row.record_count for row in rows)
        size = sum(FetchedBatch(self.tp, row, 0).size for row in rows) + 64 * records
        self._chunk = max(1, min(self._chunk * 10, CHUNK_BYTES * records // max(1, size), 1_000_000))
        return [row for row in rows if row.record_count]

    async def _look_up(self) -> None:
        if self._topic_id is None:
            calls = Calls(self._calls.schema)
            (found,) = await self._connection.run(calls.metadata([self.tp.topic]), timeout_s=TIMEOUT_S)
            self._topic_id = found.topic_id
        call = self._calls.remote_files(self._topic_id, self.tp.partition, self._position, FILES)
        self._files = await self._connection.run(call, timeout_s=TIMEOUT_S)
        if not self._files or self._files[0].first_offset > self._position:
            raise RemoteFileError(
                f"Neither PostgreSQL nor any file holds offset {self._position} of partition "
                f"{self.tp.partition} of topic {self.tp.topic!r}.",
                advice="`logstore verify` says what the catalog lacks.",
            )

    async def _from_file(self) -> list[FetchRow]:
        """The next row group; nothing, if it has nothing that is wanted."""
        file = self._files[0]
        group = None
        if self._wanted.overlaps(file):
            try:
                group = await offload(
                    partial(_group, self._readers, file, self._position, self._wanted.after)
                )
            except RemoteFileError:
                # It may have been replaced, or deleted, since it was looked up.
                if self._told == file:
                    raise
                self._told, self._files = file, []
                return []
        if group is None:
            self._files.pop(0)
            self._position = file.last_offset + 1
            return []
        self.first = self._position
        self._position = group[-1].last_offset + 1
        if self._position > file.last_offset:
            self._files.pop(0)
        return group


def _group(readers: Readers, file: RemoteFile, offset: int, after: int | None) -> list[FetchRow] | None:
    """The first row group from ``offset`` on with a record that is late enough; None: no such in the file."""
    reader = readers.get(file)
    for group in range(reader.group_of(offset), reader.groups):
        if after is None or file.group_max_timestamps[group] >= after:
            return reader.rows(group, 1)
    return None


async def _partitions(connection: Connection, calls: Calls, topic: str, only: int | None) -> list[int]:
    found = await connection.run(calls.metadata([topic]), timeout_s=TIMEOUT_S)
    if not found:
        raise UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    count = found[0].partitions
    if only is None:
        return list(range(count))
    if isinstance(only, bool) or not isinstance(only, int) or not 0 <= only < count:
        raise UnknownTopicOrPartitionError(
            f"Topic {topic!r} has no partition {only!r}: it has {count}.",
            details={"topic": topic, "partition": only},
        )
    return [only]


def _milliseconds(at: datetime | int | None) -> int | None:
    """Rounded up: a record is at or after the one exactly if it is at or after the other."""
    if at is None or (isinstance(at, int) and not isinstance(at, bool)):
        return at
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise InvalidArgumentError(f"A time is a datetime with a time zone, or milliseconds, not {at!r}.")
    seconds, rest = divmod(at.timestamp(), 1)
    return int(seconds) * 1000 + -(-round(rest * 1_000_000) // 1000)
