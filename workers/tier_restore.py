"""Bring segments back from files into PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from logstore._core.calls import FetchRow
from logstore._core.tier_calls import RemoteFile, TierCalls
from logstore._sync.driver import Connection as Writing
from logstore.errors import InvalidArgumentError, LockTimeoutError, UnknownTopicOrPartitionError
from logstore.tier.files import Reader
from logstore.workers.connections import Connection, Limits, opened
from logstore.workers.tier import CLAIM_IDLE_MS, FILE_COLUMNS, claimed, file_of

__all__ = ["Restored", "restore"]

DAY_MS: Final = 86_400_000
BATCH_RECORDS: Final = 1_000
BATCH_BYTES: Final = 1 << 20
"""A batch has at most one of these, or a single record."""
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restoration came to."""

    topic: str
    files: int
    """How many files' records are in PostgreSQL again."""
    records: int
    offsets: int

    def summary(self) -> str:
        """In one line."""
        return f"{self.records} records of {self.files} files are in PostgreSQL again"


def restore(
    dsn: str,
    topic: str,
    *,
    schema: str = "logstore",
    partition: int | None = None,
    from_offset: int = 0,
    keep_ms: int = DAY_MS,
    stop: threading.Event | None = None,
) -> Restored:
    """Bring the records of ``topic`` (or of one partition) from ``from_offset`` on back from files.

    They go file by file, whole files, the newest first, so that what PostgreSQL has is always without a gap;
    each counts at once, and a run that was ended is gone on with by the next.  For ``keep_ms`` milliseconds
    they stay whatever ``local.retention.ms`` says; the files stay as well.

    Raises UnknownTopicOrPartitionError; LockTimeoutError when somebody else handles the topic's files just
    now; RemoteFileError and RemoteStorageError, what was restored by then being of use.
    """
    if keep_ms < 0 or from_offset < 0:
        raise InvalidArgumentError("An offset and a time to keep are not negative.")
    stop = stop or threading.Event()
    files = records = offsets = 0
    with opened(dsn, schema, "tier restore", Limits(idle_timeout_ms=CLAIM_IDLE_MS)) as control:
        topic_id = _topic(control, topic, partition)
        with claimed(dsn, schema, topic_id) as claim:
            if claim is None:
                raise LockTimeoutError(
                    f"Somebody else handles the files of topic {topic!r} just now.", advice="Try again later."
                )
            control.rows("SELECT {}.abandon_restores(%s)", topic_id)
            wanted = control.rows(
                f"SELECT {FILE_COLUMNS} FROM {{}}.files_to_restore(%s, %s::int4, %s)",  # noqa: S608
                topic_id,
                partition,
                from_offset,
            )
            for row in wanted:
                if stop.is_set():
                    break
                file = file_of(row)
                claim.rows("SELECT")
                _restore(dsn, control, claim, file, keep_ms)
                files += 1
                records += file.records
                offsets += file.last_offset - file.first_offset + 1
    return Restored(topic, files, records, offsets)


def _topic(control: Connection, topic: str, partition: int | None) -> int:
    found = control.row("SELECT topic_id, partitions FROM {}.topic WHERE name = %s", topic)
    if found is None:
        raise UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})
    topic_id, partitions = found
    if partition is not None and not 0 <= partition < partitions:
        raise UnknownTopicOrPartitionError(
            f"Topic {topic!r} has no partition {partition}: it has {partitions}.",
            details={"topic": topic, "partition": partition},
        )
    return int(topic_id)


def _restore(dsn: str, control: Connection, claim: Connection, file: RemoteFile, keep_ms: int) -> None:
    segment = None
    if not control.value("SELECT {}.still_local(%s)", file.file_id):
        segment = control.value("SELECT {}.begin_restore(%s)", file.topic_id)
        calls = TierCalls(control.schema)
        writing = Writing.open(dsn, application_name="logstore tier restore")
        try:
            reader = Reader(file)
            position = file.first_offset
            # At least one batch: it says which offsets the segment covers.
            for group in range(max(1, reader.groups)):
                claim.rows("SELECT")
                rows = reader.rows(group, 1) if reader.groups else [_nothing(file)]
                last = group >= reader.groups - 1
                with writing.transaction(timeout_s=TIMEOUT_S):
                    for batch, oldest in batches(rows, position, file.last_offset if last else None):
                        call = calls.restore_batch(file.topic_id, segment, file.partition, batch, oldest)
                        writing.run(call, timeout_s=TIMEOUT_S)
                        position = batch.last_offset + 1
        finally:
            writing.close()
    control.value("SELECT {}.finish_restore(%s, %s::int4, %s)", file.file_id, segment, keep_ms)


def batches(rows: list[FetchRow], position: int, last_offset: int | None) -> Iterator[tuple[FetchRow, int]]:
    """The records of row groups as batches of the log, each with its smallest time stamp.

    Together they cover every offset from ``position`` to ``last_offset`` (None: to the last record), also
    those that no record has.
    """
    pieces = [(row, begin, end) for row in rows for begin, end in _pieces(row)]
    for ordinal, (row, begin, end) in enumerate(pieces):
        base = row.base_offset or 0
        deltas = range(row.record_count) if row.offset_deltas is None else row.offset_deltas
        offsets = [base + delta for delta in deltas[begin:end]]
        at_end = ordinal == len(pieces) - 1 and last_offset is not None
        reached = last_offset if at_end and last_offset is not None else offsets[-1]
        stamps = [row.max_timestamp] if row.timestamps is None else row.timestamps[begin:end]
        newest, oldest = max(stamps), min(stamps)
        headers = _headers(row, begin, end)
        yield (
            FetchRow(
                idx=1,
                log_start=None,
                high_watermark=None,
                base_offset=position,
                last_offset=reached,
                record_count=end - begin,
                leader_epoch=row.leader_epoch,
                timestamp_type=row.timestamp_type,
                max_timestamp=newest,
                timestamps=None if oldest == newest else stamps,
                keys=None if row.keys is None else row.keys[begin:end],
                values=None if row.values is None else row.values[begin:end],
                header_records=headers[0] or None,
                header_keys=headers[1] if headers[0] else None,
                header_values=headers[2] if headers[0] else None,
                offset_deltas=None
                if reached - position + 1 == end - begin
                else [offset - position for offset in offsets],
            ),
            oldest,
        )
        position = reached + 1


def _pieces(row: FetchRow) -> Iterator[tuple[int, int]]:
    if not row.record_count:
        yield 0, 0
    begin = size = 0
    nothing: list[bytes | None] = [None] * row.record_count
    for ordinal, (key, value) in enumerate(zip(row.keys or nothing, row.values or nothing, strict=True)):
        more = 24 + len(key or b"") + len(value or b"")
        if ordinal > begin and (size + more > BATCH_BYTES or ordinal - begin >= BATCH_RECORDS):
            yield begin, ordinal
            begin, size = ordinal, 0
        size += more
    if begin < row.record_count:
        yield begin, row.record_count


def _headers(row: FetchRow, begin: int, end: int) -> tuple[list[int], list[str], list[bytes | None]]:
    if row.header_records is None or row.header_keys is None or row.header_values is None:
        return [], [], []
    chosen = [
        (ordinal - begin, key, value)
        for ordinal, key, value in zip(row.header_records, row.header_keys, row.header_values, strict=True)
        if begin < ordinal <= end
    ]
    return [each[0] for each in chosen], [each[1] for each in chosen], [each[2] for each in chosen]


def _nothing(file: RemoteFile) -> FetchRow:
    """A batch without records, for a file all of whose records were erased."""
    return FetchRow(
        1, None, None, file.first_offset, file.last_offset, 0, 0, 0, 0, None, None, None, None, None, None, []
    )
