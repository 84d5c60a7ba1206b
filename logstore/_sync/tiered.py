# Generated from logstore/_async/tiered.py by tools/unasync.py; edit that file.
"""Reading what is in files, in the background of a consumer, and looking for time stamps there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from logstore._core.call import Call
from logstore._core.calls import FetchRow, ListedOffset
from logstore._core.subscription import FetchRequest, Subscription
from logstore._core.tier_calls import RemoteFile, TierCalls
from logstore._sync.concurrency import Condition, Lock, Task, offload, spawn
from logstore.errors import ClientClosedError, LogstoreError, RemoteFileError
from logstore.tier.files import Reader, Readers

if TYPE_CHECKING:
    from logstore._sync.fetcher import Fetcher

__all__ = ["FileReads", "resolved"]

_log = logging.getLogger("logstore.consumer")

FILES: Final = 8
"""How many files of a partition are looked up at once."""
IDLE_S: Final = 5.0
"""How often a task that has nothing to do looks whether its consumer still exists."""
CLOSE_S: Final = 2.0
"""How long closing waits for a store that does not answer."""


class FileReads:
    """Reads row groups for one fetcher, one at a time, in a task of its own: the fetcher goes on meanwhile.

    What it has read it puts into the subscription, which says when that is enough.
    """

    def __init__(self, fetcher: Fetcher, subscription: Subscription, lock: Lock, schema: str) -> None:
        self._fetcher = fetcher
        self._subscription = subscription
        self._lock = lock
        self._calls = TierCalls(schema)
        self._work = Condition(lock)
        self._task: Task | None = None
        self._readers = Readers()
        self._files: dict[tuple[int, int], list[RemoteFile]] = {}
        self._nowhere: tuple[int, int, int] | None = None

    def wake(self) -> None:
        """There may be something to read.  The lock must be held."""
        if self._task is None:
            self._task = spawn(self._run, name="logstore-files")
        self._work.notify_all()

    def stop(self) -> None:
        """End the task; the fetcher is closing."""
        with self._lock:
            task = self._task
            self._work.notify_all()
        if task is not None and not task.is_current and not task.join(CLOSE_S):
            task.cancel()
            task.join(CLOSE_S)

    def _run(self) -> None:
        while not self._fetcher.closing:
            with self._lock:
                throttled_s = self._fetcher.throttle.left(monotonic())
                request = None if throttled_s > 0 else self._subscription.next_file_read()
                if request is None:
                    self._work.wait(min(throttled_s or IDLE_S, IDLE_S))
                    continue
            try:
                rows = self._read(request)
            except ClientClosedError:
                return
            except LogstoreError as error:
                _log.warning("A file could not be read: %s", error)
                with self._lock:
                    self._subscription.file_failed(request, error)
                    self._fetcher.file_was_read()
                continue
            # What comes from files counts as well.
            self._fetcher.charge(sum(map(_size, rows)))
            with self._lock:
                self._subscription.file_read(request, rows)
                self._fetcher.file_was_read()

    def _read(self, request: FetchRequest) -> list[FetchRow]:
        """The next records of the partition; none: they are in no file (any more)."""
        where = (request.topic_ids[0], request.partitions[0])
        offset = request.offsets[0]
        file = _holding(self._files.get(where, []), offset)
        try:
            if file is not None:
                return self._rows(file, offset)
        except RemoteFileError:
            # It may have been replaced, or deleted, since it was looked up.
            self._files.pop(where, None)
        before, file = file, self._look_up(where, offset)
        if file is None:
            nowhere = (*where, offset)
            if nowhere == self._nowhere:
                raise RemoteFileError(
                    f"Neither PostgreSQL nor any file holds offset {offset} of partition {where[1]} of "
                    f"topic id {where[0]}.",
                    advice="`logstore verify` says what the catalog lacks.",
                )
            self._nowhere = nowhere
            return []
        self._nowhere = None
        if before is not None and before.file_id == file.file_id:
            self._readers = Readers()
        return self._rows(file, offset)

    def _rows(self, file: RemoteFile, offset: int) -> list[FetchRow]:
        return offload(lambda: _rows(self._readers, file, offset))

    def _look_up(self, where: tuple[int, int], offset: int) -> RemoteFile | None:
        question = self._fetcher.post(self._calls.remote_files(*where, offset, FILES))
        with self._lock:
            while not question.done and not self._fetcher.closing:
                self._fetcher.changed.wait(IDLE_S)
        if question.error is not None:
            raise question.error
        if question.answer is None:
            raise ClientClosedError("The consumer is closed.")
        self._files[where] = question.answer
        return _holding(question.answer, offset)


def _size(row: FetchRow) -> int:
    """About as many bytes as the server would count."""
    columns = (row.keys or (), row.values or (), row.header_values or ())
    return sum(len(item) for column in columns for item in column if item is not None)


def resolved(
    run: Callable[[Call[Any]], Any], schema: str, topic_id: int, partition: int, row: ListedOffset
) -> ListedOffset:
    """``row``, an answer of ``list_offsets``; where the record is in a file, what the file says.

    ``run`` asks the server.  Raises RemoteFileError, RemoteStorageError.
    """
    if not row.remote or row.timestamp is None or row.offset is None:
        return row
    calls = TierCalls(schema)
    timestamp, position = row.timestamp, row.offset
    while True:
        found = run(calls.find_time(topic_id, partition, timestamp, position))
        if found.file is None:
            return ListedOffset(row.idx, found.offset, found.timestamp, found.leader_epoch)
        record = offload(partial(_find, found.file, timestamp, max(position, found.log_start)))
        if record is not None:
            return ListedOffset(row.idx, *record)
        position = found.file.last_offset + 1


def _find(file: RemoteFile, timestamp: int, from_offset: int) -> tuple[int, int, int] | None:
    return Reader(file).find(timestamp, from_offset)


def _holding(files: list[RemoteFile], offset: int) -> RemoteFile | None:
    return next((file for file in files if file.first_offset <= offset <= file.last_offset), None)


def _rows(readers: Readers, file: RemoteFile, offset: int) -> list[FetchRow]:
    reader = readers.get(file)
    group = reader.group_of(offset)
    if group < reader.groups:
        return reader.rows(group, 1)
    # Erasure has left nothing from here to the end of the file.
    return [
        FetchRow(
            1, None, None, offset, file.last_offset, 0, 0, 0, 0, None, None, None, None, None, None, None
        )
    ]
