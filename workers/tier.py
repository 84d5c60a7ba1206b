"""Copy sealed segments to files, let PostgreSQL's part of them go, delete files that nobody needs any more.

What is done when, for each topic: what an earlier run has left half done is cleared away; files whose records
have expired are deleted; keys that are to be erased are taken out of files; sealed segments are copied, each
file read back before it counts; last, ``local.retention.ms`` and ``local.retention.bytes`` take out of
PostgreSQL what is in files.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from logstore._core.calls import Calls
from logstore._core.tier_calls import RemoteFile
from logstore._sync.driver import Connection as Reading
from logstore.errors import IllegalStateError, LogstoreError, RemoteFileError
from logstore.tier import store
from logstore.tier.files import FileWriter, Reader, Written, check
from logstore.workers.connections import Connection, Limits, opened

__all__ = ["FILE_COLUMNS", "Tiered", "claimed", "file_of", "run_once"]

FETCH_BYTES: Final = 8 << 20
"""What is read from the server at once."""
READ_TIMEOUT_S: Final = 60.0
CLAIM_IDLE_MS: Final = 300_000
"""How long a store may take for one part of a file before somebody else may take the topic over."""
FILE_COLUMNS: Final = (
    "file_id, topic_id, partition, first_offset, last_offset, records, bytes, log_bytes, min_timestamp, "
    "max_timestamp, url, sha256, part_ends, part_sha256, group_last_offsets, group_max_timestamps"
)


@dataclass(frozen=True, slots=True)
class Tiered:
    """What one run came to."""

    topics: tuple[str, ...] = ()
    """The topics in which something was done."""
    files: int = 0
    """How many files were written and read back."""
    records: int = 0
    """How many records these have."""
    bytes: int = 0
    """And how large they are."""
    rewritten: int = 0
    """How many files were replaced by one without records that were to be erased."""
    released: int = 0
    """How many offsets are in files only from now on."""
    segments: int = 0
    """How many segments were dropped because nothing of them is wanted in PostgreSQL any more."""
    deleted: int = 0
    """How many files were deleted."""

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.records} records copied to {self.files} files ({self.bytes:,} bytes), "
            f"{self.rewritten} rewritten, {self.deleted} deleted; "
            f"{self.released} offsets left PostgreSQL, {self.segments} segments dropped"
        )


@dataclass(slots=True)
class _Tally:
    topics: list[str] = field(default_factory=list)
    files: int = 0
    records: int = 0
    bytes: int = 0
    rewritten: int = 0
    released: int = 0
    segments: int = 0
    deleted: int = 0

    def came_to(self) -> tuple[int, ...]:
        return (self.files, self.rewritten, self.released, self.segments, self.deleted)


class _Stopped(BaseException):
    """Somebody wants us to end.  No Exception: whoever writes would take it for one of the store's."""


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    topic: str | None = None,
    deleted: bool = False,
    stop: threading.Event | None = None,
) -> Tiered:
    """Do whatever is to be done about files: for ``topic``, for topics that were deleted, or for all.

    It may be killed anywhere: nothing leaves PostgreSQL before its file was written, read back and found to
    be what was written, and what is left half done is cleared away by the next run.  Two at once do no harm:
    one looks after a topic at a time.  Raises RemoteStorageError when a store cannot be reached,
    RemoteFileError when it does not give back what was written, ConfigurationError when the extra ``tier`` is
    not installed (each after it has tried the other topics), and what else the server's errors become.
    """
    stop = stop or threading.Event()
    tally = _Tally()
    failed: LogstoreError | None = None
    # It waits as long as a file takes to be written.
    with opened(dsn, schema, "tier", Limits(idle_timeout_ms=CLAIM_IDLE_MS)) as control:
        topics = control.rows("SELECT topic_id, name, copies, url FROM {}.tiered_topics()")
        for topic_id, name, copies, url in topics:
            if stop.is_set() or (deleted and name is not None) or (topic is not None and name != topic):
                continue
            before = tally.came_to()
            try:
                with claimed(dsn, schema, topic_id) as claim:
                    if claim is not None:
                        _Topic(dsn, control, claim, topic_id, name, tally, stop).run(url if copies else None)
            except _Stopped:
                pass
            except LogstoreError as error:
                failed = failed or error
            if tally.came_to() != before:
                tally.topics.append(name or f"deleted topic {topic_id}")
    if failed is not None:
        raise failed
    return Tiered(
        tuple(tally.topics), tally.files, tally.records, tally.bytes, tally.rewritten, tally.released,
        tally.segments, tally.deleted,
    )  # fmt: skip


def file_of(row: tuple[Any, ...]) -> RemoteFile:
    """A row of :data:`FILE_COLUMNS`."""
    return RemoteFile(*row)


@contextlib.contextmanager
def claimed(dsn: str, schema: str, topic_id: int) -> Any:
    """A connection that nobody else has for this topic until it is closed; None: somebody has one."""
    # A lock of a transaction: it works through a pooler, and goes with the connection. Nothing is read in
    # this transaction, so that it keeps no old row versions alive.
    with (
        opened(dsn, schema, "tier claim", Limits(idle_timeout_ms=CLAIM_IDLE_MS)) as claim,
        claim.transaction(),
    ):
        yield claim if claim.value("SELECT {}.claim_files(%s)", topic_id) else None


class _Topic:
    """The files of one topic."""

    def __init__(
        self,
        dsn: str,
        control: Connection,
        claim: Connection,
        topic_id: int,
        name: str | None,
        tally: _Tally,
        stop: threading.Event,
    ) -> None:
        self._dsn = dsn
        self._control = control
        self._claim = claim
        self._topic_id = topic_id
        self._name = name
        self._tally = tally
        self._stop = stop

    def run(self, url: str | None) -> None:
        """``url``: where new files go; empty: nobody has said; None: none are to be written."""
        control, topic_id = self._control, self._topic_id
        control.rows("SELECT {}.abandon_restores(%s)", topic_id)
        control.rows("SELECT {}.retire_files(%s)", topic_id)
        self._delete()
        if self._name is None:
            return
        self._erase()
        if url is not None:
            self._copy_all(url)
        self._tally.released += control.value("SELECT {}.release_local(%s)", topic_id) or 0
        dropped = 1
        while dropped and not self._stop.is_set():
            dropped = control.value("SELECT segments FROM {}.drop_expired(%s)", topic_id) or 0
            self._tally.segments += dropped

    def _pause(self) -> None:
        """Between two parts of a file: say that we live, and end if somebody wants us to."""
        if self._stop.is_set():
            raise _Stopped
        self._claim.rows("SELECT")

    def _delete(self) -> None:
        for file_id, url in self._control.rows(
            "SELECT file_id, url FROM {}.files_to_delete(%s)", self._topic_id
        ):
            self._pause()
            store.delete(url)
            self._control.rows("SELECT {}.forget_file(%s)", file_id)
            self._tally.deleted += 1

    def _copy_all(self, url: str) -> None:
        reading = None
        try:
            while not self._stop.is_set():
                found = self._control.row(
                    'SELECT "partition", first_offset, last_offset FROM {}.next_copy(%s)', self._topic_id
                )
                if found is None:
                    return
                url = url or self._default_location()
                reading = reading or Reading.open(self._dsn, application_name="logstore tier")
                with contextlib.suppress(IllegalStateError):  # the topic has changed meanwhile: next time
                    self._copy(reading, url, *found)
                    continue
                return
        finally:
            if reading is not None:
                reading.close()

    def _default_location(self) -> str:
        self._control.rows("SELECT {}.set_tier_location(%s, true)", store.default_location())
        found: str = self._control.value("SELECT url FROM {}.tier_location")
        return found

    def _copy(self, reading: Reading, url: str, partition: int, first: int, last: int) -> None:
        def write(writer: FileWriter) -> None:
            for row in self._batches(reading, partition, first, last):
                writer.add(row)

        ((expected, log_bytes),) = self._control.rows(
            "SELECT records, bytes FROM {}.records_between(%s, %s, %s, %s)",
            self._topic_id, partition, first, last,
        )  # fmt: skip
        try:
            written = self._write(url, partition, first, last, write, log_bytes, expected=expected)
        except RemoteFileError:
            if self._starts_after(partition, first):
                raise IllegalStateError("Records were deleted while they were copied.") from None
            raise
        self._tally.files += 1
        self._tally.records += written.records
        self._tally.bytes += written.size

    def _starts_after(self, partition: int, offset: int) -> bool:
        found = self._control.value(
            'SELECT log_start > %s FROM {}.topic_partition WHERE topic_id = %s AND "partition" = %s',
            offset, self._topic_id, partition,
        )  # fmt: skip
        return found is not False

    def _batches(self, reading: Reading, partition: int, first: int, last: int) -> Any:
        calls = Calls(self._control.schema)
        position = first
        while position <= last:
            self._pause()
            fetch = calls.fetch([self._topic_id], [partition], [position], FETCH_BYTES, FETCH_BYTES)
            rows = reading.run(fetch, timeout_s=READ_TIMEOUT_S)
            found = [row for row in rows if row.base_offset is not None]
            if not found:
                return  # whether that is all, the count will tell
            for row in found:
                if row.base_offset is not None and row.base_offset > last:
                    return
                yield row
                position = row.last_offset + 1

    def _erase(self) -> None:
        """Take out of the files what is to be erased; then, the old files gone, say so."""
        erasures = self._control.rows(
            "SELECT erasure_id, key, ends FROM {}.erasures_in_files(%s)", self._topic_id
        )
        if not erasures:
            return
        counts = dict.fromkeys((erasure_id for erasure_id, _, _ in erasures), 0)
        for row in self._control.rows(
            f"SELECT {FILE_COLUMNS} FROM {{}}.remote_file WHERE topic_id = %s "  # noqa: S608 (our own names)
            "ORDER BY partition, last_offset",
            self._topic_id,
        ):
            file = file_of(row)
            keys = {
                bytes(key): (erasure_id, ends[file.partition])
                for erasure_id, key, ends in erasures
                if file.partition < len(ends) and file.first_offset < ends[file.partition]
            }
            if keys:
                self._erase_from(file, keys, counts)
        self._delete()
        for erasure_id, count in counts.items():
            self._control.rows("SELECT {}.erasure_files_searched(%s, %s)", erasure_id, count)

    def _erase_from(
        self, file: RemoteFile, keys: dict[bytes, tuple[int, int]], counts: dict[int, int]
    ) -> None:
        from logstore.tier.erasing import erased, holds

        reader = Reader(file)
        for group in range(reader.groups):
            self._pause()
            if holds(reader.table(group, ["offset", "key"]), keys):
                break
        else:
            return
        found: dict[int, int] = {}

        def write(writer: FileWriter) -> None:
            for group in range(reader.groups):
                self._pause()
                table, newest, taken = erased(reader.table(group), keys)
                for erasure_id, count in taken.items():
                    found[erasure_id] = found.get(erasure_id, 0) + count
                if table.num_rows:
                    writer.add_table(table, newest, table["offset"][-1].as_py())

        base = file.url.rsplit("/topic=", 1)[0]
        self._write(
            base, file.partition, file.first_offset, file.last_offset, write, file.log_bytes, replaces=file
        )
        self._tally.rewritten += 1
        also_local = self._control.value(
            "SELECT also_local FROM {}.remote_segments WHERE file_id = %s", file.file_id
        )
        if not also_local:  # else they are counted where PostgreSQL has them
            for erasure_id, count in found.items():
                counts[erasure_id] += count

    def _write(
        self,
        base: str,
        partition: int,
        first: int,
        last: int,
        write: Any,
        log_bytes: int,
        *,
        expected: int | None = None,
        replaces: RemoteFile | None = None,
    ) -> Written:
        file_id, url = self._control.rows(
            "SELECT file_id, url FROM {}.begin_copy(%s, %s, %s, %s, %s)",
            self._topic_id, partition, first, last, base,
        )[0]  # fmt: skip
        try:
            described = {
                "topic": self._name or "", "topic_id": str(self._topic_id), "partition": str(partition),
                "first_offset": str(first), "last_offset": str(last),
            }  # fmt: skip
            with store.writing(url) as sink, FileWriter(sink, first, last, described) as writer:
                write(writer)
                written = writer.finish()
            if expected is not None and written.records != expected:
                raise RemoteFileError(
                    f"Only {written.records} of {expected} records from offset {first} to {last} of "
                    f"partition {partition} of topic {self._name!r} could be copied.",
                    advice="They stay in PostgreSQL; `logstore verify` says whether all is well there.",
                    details={"partition": partition, "first_offset": first, "last_offset": last},
                )
            file = RemoteFile(
                file_id, self._topic_id, partition, first, last, written.records, written.size,
                log_bytes, written.min_timestamp, written.max_timestamp, url, written.sha256,
                written.part_ends, written.part_sha256, written.group_last_offsets,
                written.group_max_timestamps,
            )  # fmt: skip
            check(file, self._pause)
            self._control.rows(
                "SELECT {}.finish_copy(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                file_id, None if replaces is None else replaces.file_id, written.records, written.size,
                log_bytes, written.min_timestamp, written.max_timestamp, written.sha256,
                written.part_ends, written.part_sha256, written.group_last_offsets,
                written.group_max_timestamps,
            )  # fmt: skip
        except BaseException:
            # As if it had not been begun; if this does not succeed either, the next run does it.
            with contextlib.suppress(LogstoreError):
                store.delete(url)
                self._control.rows("SELECT {}.forget_file(%s)", file_id)
            raise
        return written
