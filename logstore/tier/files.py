"""One file: written with checksums of its parts, read part by part, each checked before it is used.

A part is a row group, or what comes after the last one (the footer of Parquet).  Reading a row group is one
request to the store, and memory is bounded by it.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self

from logstore._core.calls import FetchRow
from logstore._core.tier_calls import RemoteFile
from logstore.errors import RemoteFileError
from logstore.tier import store
from logstore.tier.extra import needed
from logstore.tier.parquet import OPTIONS, Rows, fetch_rows, schema

__all__ = ["FileWriter", "Reader", "Readers", "Written", "batches", "check"]

GROUP_BYTES: Final = 8 << 20
GROUP_RECORDS: Final = 65_536
"""A row group is full when it has one of these."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of a file once it is written."""

    records: int
    size: int
    min_timestamp: int | None
    max_timestamp: int | None
    sha256: bytes
    part_ends: list[int]
    part_sha256: list[bytes]
    group_last_offsets: list[int]
    group_max_timestamps: list[int]


class FileWriter:
    """Writes the records of one range of offsets to ``sink``; left without :meth:`finish`, nothing more."""

    def __init__(
        self, sink: BinaryIO, first_offset: int, last_offset: int, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._first_offset = first_offset
        self._last_offset = last_offset
        self._sink = _Digesting(sink)
        pa = needed("pyarrow")
        self._writer = needed("pyarrow.parquet").ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), schema(), **OPTIONS
        )
        self._writer.add_key_value_metadata({f"logstore.{k}": v for k, v in (metadata or {}).items()})
        self._rows = Rows()
        self._records = 0
        self._min_timestamp: int | None = None
        self._group_last_offsets: list[int] = []
        self._group_max_timestamps: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._writer.is_open:
            # It would write the footer when it is garbage, to a file that is closed by then.
            self._sink.give_up()
            self._writer.close()

    def add(self, row: FetchRow) -> None:
        """The records of one batch; those outside of the range are left out."""
        self._rows.add(row, self._first_offset, self._last_offset)
        if len(self._rows) >= GROUP_RECORDS or self._rows.bytes >= GROUP_BYTES:
            self._flush()

    def add_table(self, table: Any, max_timestamp: int, last_offset: int) -> None:
        """A row group that was read from another file."""
        self._write(table, last_offset, max_timestamp, _min_timestamp(table))

    def finish(self) -> Written:
        """Write what is left, and the footer."""
        if len(self._rows):
            self._flush()
        self._writer.close()
        sink = self._sink
        sink.end_part()
        if self._group_last_offsets:
            self._group_last_offsets[-1] = self._last_offset
        return Written(
            records=self._records,
            size=sink.size,
            min_timestamp=self._min_timestamp,
            max_timestamp=max(self._group_max_timestamps, default=None),
            sha256=sink.sha256.digest(),
            part_ends=sink.ends,
            part_sha256=sink.digests,
            group_last_offsets=self._group_last_offsets,
            group_max_timestamps=self._group_max_timestamps,
        )

    def _flush(self) -> None:
        rows, self._rows = self._rows, Rows()
        self._write(rows.table(), rows.last_offset, rows.max_timestamp, rows.min_timestamp())

    def _write(self, table: Any, last_offset: int, max_timestamp: int, min_timestamp: int) -> None:
        self._writer.write_table(table, len(table))
        self._sink.end_part()
        self._group_last_offsets.append(last_offset)
        self._group_max_timestamps.append(max_timestamp)
        self._records += len(table)
        if self._min_timestamp is None or min_timestamp < self._min_timestamp:
            self._min_timestamp = min_timestamp


class Reader:
    """Reads one file.  May block: for background threads."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        if len(file.part_ends) != len(file.part_sha256) or len(file.part_ends) != self.groups + 1:
            raise _broken(file, "the catalog's row of it is damaged")
        # The footer says where the columns are; it is small, and kept.
        footer = self.part(self.groups)
        try:
            self._metadata = needed("pyarrow.parquet").read_metadata(needed("pyarrow").BufferReader(footer))
        except Exception as error:
            raise _broken(file, f"its footer cannot be read: {error}") from error
        if self._metadata.num_row_groups != self.groups or self._metadata.num_rows != file.records:
            raise _broken(file, "it has other records than the catalog says")

    @property
    def groups(self) -> int:
        return len(self.file.group_last_offsets)

    def group_of(self, offset: int) -> int:
        """The row group that has this offset, or the next offset that there is; ``groups``: none."""
        return bisect_left(self.file.group_last_offsets, offset)

    def part(self, number: int) -> bytes:
        """The bytes of a part, checked."""
        file = self.file
        start = file.part_ends[number - 1] if number else 0
        data = store.read(file.url, start, file.part_ends[number])
        if hashlib.sha256(data).digest() != file.part_sha256[number]:
            raise _broken(file, f"the checksum of part {number + 1} of {self.groups + 1} differs")
        return data

    def table(self, group: int, columns: list[str] | None = None) -> Any:
        """A row group as an Arrow table."""
        return self.decoded(group, self.part(group), columns)

    def decoded(self, group: int, data: bytes, columns: list[str] | None = None) -> Any:
        """The Arrow table that the bytes of a row group are."""
        start = self.file.part_ends[group - 1] if group else 0
        source = _Part(self.file.part_ends[-1], start, data)
        try:
            opened = needed("pyarrow.parquet").ParquetFile(
                needed("pyarrow").PythonFile(source, mode="r"), metadata=self._metadata
            )
            return opened.read_row_group(group, columns=columns, use_threads=False)
        except Exception as error:
            raise _broken(self.file, f"row group {group} cannot be decoded: {error}") from error

    def rows(self, group: int, idx: int) -> list[FetchRow]:
        """A row group as batches.  The last one reaches to the file's end, whatever records are missing."""
        return fetch_rows(self.table(group), idx, self.file.group_last_offsets[group])

    def find(self, timestamp: int, from_offset: int) -> tuple[int, int, int] | None:
        """Offset, time stamp and leader epoch of the first record with ``timestamp`` or a later one."""
        pa, pc = needed("pyarrow"), needed("pyarrow.compute")
        for group in range(self.group_of(from_offset), self.groups):
            if self.file.group_max_timestamps[group] < timestamp:
                continue
            table = self.table(group, ["offset", "timestamp", "leader_epoch"])
            wanted = pc.and_(
                pc.greater_equal(table["timestamp"].cast(pa.int64()), timestamp),
                pc.greater_equal(table["offset"], from_offset),
            )
            ordinal = pc.index(wanted, True).as_py()
            if ordinal >= 0:
                stamp = table["timestamp"].cast(pa.int64())[ordinal].as_py()
                return table["offset"][ordinal].as_py(), stamp, table["leader_epoch"][ordinal].as_py()
        return None


class Readers:
    """The readers of files that were used last."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._open: OrderedDict[int, Reader] = OrderedDict()

    def get(self, file: RemoteFile) -> Reader:
        found = self._open.get(file.file_id)
        if found is None:
            found = self._open[file.file_id] = Reader(file)
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        self._open.move_to_end(file.file_id)
        return found


def check(file: RemoteFile, progress: Callable[[], object] = lambda: None) -> None:
    """Read all of a file and compare it with what the catalog says; raises RemoteFileError if it differs.

    ``progress`` is called after each part.
    """
    whole = hashlib.sha256()
    reader = Reader(file)
    newest: int | None = None
    reached = file.first_offset - 1
    pc = needed("pyarrow.compute")
    for group in range(reader.groups):
        data = reader.part(group)
        whole.update(data)
        table = reader.decoded(group, data)
        offsets, stamps = table["offset"], table["timestamp"].cast(needed("pyarrow").int64())
        # Null: there is only one.
        ascend = pc.all(pc.greater(offsets[1:], offsets[:-1])).as_py()
        if offsets[0].as_py() <= reached or ascend is False:
            raise _broken(file, "its offsets do not ascend")
        reached = offsets[-1].as_py()
        late = pc.max(stamps).as_py()
        newest = late if newest is None else max(newest, late)
        progress()
    whole.update(reader.part(reader.groups))
    if whole.digest() != file.sha256:
        raise _broken(file, "its checksum differs")
    if reached > file.last_offset or newest != file.max_timestamp:
        raise _broken(file, "it has other records than the catalog says")
    progress()


def batches(file: RemoteFile) -> Iterator[FetchRow]:
    """All records of a file, a row group at a time."""
    reader = Reader(file)
    for group in range(reader.groups):
        yield from reader.rows(group, 1)


def _broken(file: RemoteFile, why: str) -> RemoteFileError:
    shown = store.display(file.url)
    return RemoteFileError(
        f"{shown} is not what was written: {why}.",
        advice="Put a good copy of the file in its place; `logstore tier verify` says which files are good.",
        details={
            "url": shown,
            "partition": file.partition,
            "first_offset": file.first_offset,
            "last_offset": file.last_offset,
        },
    )


def _min_timestamp(table: Any) -> int:
    pa, pc = needed("pyarrow"), needed("pyarrow.compute")
    found: int = pc.min(table["timestamp"].cast(pa.int64())).as_py()
    return found


class _Digesting(io.RawIOBase):
    """Counts and digests what goes through to ``sink``."""

    def __init__(self, sink: BinaryIO) -> None:
        self._to = sink
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._part = hashlib.sha256()
        self.ends: list[int] = []
        self.digests: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._to.write(view)
        self.sha256.update(view)
        self._part.update(view)
        self.size += view.nbytes
        return view.nbytes

    def give_up(self) -> None:
        self._to = io.BytesIO()

    def tell(self) -> int:
        return self.size

    def end_part(self) -> None:
        self.ends.append(self.size)
        self.digests.append(self._part.digest())
        self._part = hashlib.sha256()


class _Part(io.RawIOBase):
    """A file of which only one part is here."""

    def __init__(self, size: int, start: int, data: bytes) -> None:
        self._size = size
        self._start = start
        self._data = memoryview(data)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        begin = self._at - self._start
        end = min(self._size if count is None or count < 0 else self._at + count, self._size) - self._start
        if begin < 0 or end > len(self._data):
            raise OSError(f"bytes {self._at} to {end + self._start} are in another part of the file")
        self._at = max(self._at, end + self._start)
        return bytes(self._data[begin:end])
