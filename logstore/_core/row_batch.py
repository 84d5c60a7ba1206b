"""The batch that ``send`` fills, record by record, while another thread may be taking it away.

``send`` takes no lock for a record that goes into an open batch, because that is a quarter of what a record
costs.  It does, in this order (and ``Producer.send`` spells it out)::

    place = next(batch.places)         # nobody else gets this place
    batch.keys[place] = key
    batch.values[place] = value
    if batch.closed: …                 # is the record in? Under the lock: batch.has(place)

and :meth:`RowBatch.seal`, under the lock, in this order: ``closed = True``; take what is there.  Each step is
one C call, or one store, which threads do not share.  So a record that was written too late to be taken has a
caller who sees ``closed`` and adds it again, elsewhere; and what Ctrl-C interrupts leaves at worst a place
without a record, a hole, of which nobody hears.  Holes are left out when the batch is sealed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import compress, repeat
from operator import itemgetter, length_hint
from typing import TYPE_CHECKING, Any, Final

from logstore._core.batch import RECORD_OVERHEAD, Batch, Columns, Headers
from logstore._core.stamps import Stamps
from logstore.records import CREATE_TIME, LOG_APPEND_TIME, RecordMetadata

if TYPE_CHECKING:
    from logstore._core.queues import PartitionQueue

__all__ = ["RowBatch"]

_PLACES: Final = range(2**31)
_HOLE: Final = object()
"""What is where no record is."""


class RowBatch(Batch):
    """A batch that ``send`` fills; each record has a future, which knows its place here."""

    __slots__ = (
        "changes",
        "closed",
        "given",
        "headers",
        "holes",
        "key_sizes",
        "keys",
        "known_lengths",
        "places",
        "sealed",
        "timestamps",
        "until",
        "value_sizes",
        "values",
    )

    def __init__(self, queue: PartitionQueue, lock: Any) -> None:
        super().__init__(queue, lock)
        self.places: Iterator[int] = iter(_PLACES)
        """Gives every record its place."""
        self.keys: list[Any] = []
        self.values: list[Any] = []
        """By place; longer than there are records, so that there is room for the next ones."""
        self.closed = False
        """Whoever adds a record now has to see for himself whether it is in."""
        self.until = 0.0
        """How long (s since the epoch) the last change of time stamps is good."""
        self.changes: list[tuple[int, int]] = []
        """Where the time stamp changes: place and new time stamp."""
        self.headers: dict[int, Headers] = {}
        """By place."""
        self.holes: list[int] = []
        """Places without a record, in ascending order; known when it is sealed."""
        self.given = 0
        """How many places were given away; known when it is sealed."""
        self.sealed: Columns | None = None
        self.known_lengths: tuple[list[int] | None, list[int] | None] = (None, None)
        self.timestamps: Sequence[int] = ()
        self.key_sizes: Sequence[int] = ()
        self.value_sizes: Sequence[int] = ()

    def __len__(self) -> int:
        if self.closed:
            return self.given - len(self.holes)
        return len(_PLACES) - length_hint(self.places)

    # ---- records in

    def add(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int | None,
        time_s: float,
    ) -> int:
        """The place of a new record, for which there is room.  The lock must be held.

        Without ``timestamp_ms`` its time is ``time_s``, seconds since the epoch.
        """
        place = next(self.places)
        if place >= len(self.keys) or place >= len(self.values):
            self.make_slots(place + 1)
        if timestamp_ms is not None:
            # For this record only: the next one may be on its way.
            if self.changes and self.changes[-1][0] == place:
                self.changes.pop()
            if not self.changes or self.changes[-1][1] != timestamp_ms:
                self.changes.append((place, timestamp_ms))
            self.tick(place + 1, time_s)
        elif time_s >= self.until:
            self.tick(place, time_s)
        if headers is not None:
            self.headers[place] = headers
        self.keys[place] = key
        self.values[place] = value
        return place

    def make_slots(self, count: int) -> None:
        """Make ready for ``count`` records, and as many more as there is room for.

        It may be less than none: others take room that was made for a record, before that is added.
        """
        count += max(0, self.room) // RECORD_OVERHEAD
        for column in (self.keys, self.values):
            column.extend(repeat(_HOLE, count - len(column)))

    def tick(self, place: int, time_s: float) -> None:
        """From ``place`` on it is this millisecond."""
        ms = int(time_s * 1000)
        self.changes.append((place, ms))
        self.until = (ms + 1) / 1000

    def has(self, place: int) -> bool:
        """The record that was put at ``place`` is in, closed as the batch is.  The lock must be held."""
        return place < self.given and place not in self.holes

    # ---- records out

    def seal(self) -> None:
        if self.closed:
            return
        self.closed = True
        # In this order: who has a place beyond this number finds the batch closed, or found no slot there.
        given = min(len(_PLACES) - length_hint(self.places), len(self.keys), len(self.values))
        self.given = given
        # What comes too late finds no place to be written to.
        keys, values = self.keys, self.values
        self.keys, self.values = [], []
        del keys[given:], values[given:]
        changes = sorted(self.changes, key=itemgetter(0))
        # A key is written before its value: with a value at every place nobody is writing any more, and where
        # there is one in a copy of the values its key is in a later copy of the keys.
        value_lengths = _lengths(values)
        if value_lengths is None:
            values = values[:]
            keys = keys[:]
            self.holes = [place for place, value in enumerate(values) if value is _HOLE]
            if self.holes:
                present = [value is not _HOLE for value in values]
                keys, values = list(compress(keys, present)), list(compress(values, present))
                changes = [(self._index(place), stamp) for place, stamp in changes]
                value_lengths = _lengths(values)
        self.known_lengths = key_lengths, value_lengths = _lengths(keys), value_lengths
        self.key_sizes = _sizes(keys) if key_lengths is None else key_lengths
        self.value_sizes = _sizes(values) if value_lengths is None else value_lengths
        if changes:
            changes[0] = (0, changes[0][1])
        self.timestamps = Stamps(changes, len(values))
        headers: list[Headers | None] | None = None
        if self.headers:
            headers = [self.headers.get(place) for place in range(given)]
            for hole in reversed(self.holes):
                del headers[hole]
        self.sealed = Columns(keys, values, self.timestamps, headers)

    def columns(self) -> Columns:
        assert self.sealed is not None
        return self.sealed

    def lengths(self, columns: Columns) -> tuple[list[int] | None, list[int] | None]:
        return self.known_lengths

    def release(self) -> None:
        self.seal()
        self.keys, self.values = [], []
        self.sealed = None
        self.changes = []
        self.headers = {}
        self.prepared = None

    def metadata(self, place: int) -> RecordMetadata:
        """Where the record at ``place`` is, once the batch is done without an error."""
        queue, index = self.queue, self._index(place)
        by_server = self.append_time >= 0
        return RecordMetadata(
            queue.topic.name,
            queue.partition,
            -1 if self.base_offset < 0 else self.base_offset + index,
            self.append_time if by_server else self.timestamps[index],
            LOG_APPEND_TIME if by_server else CREATE_TIME,
            self.key_sizes[index],
            self.value_sizes[index],
            self.throttle_ms,
        )

    def _index(self, place: int) -> int:
        """The how-manieth record of the batch it is."""
        return place - bisect_left(self.holes, place) if self.holes else place


def _lengths(column: Sequence[bytes | None]) -> list[int] | None:
    try:
        return list(map(len, column))  # type: ignore[arg-type]
    except TypeError:  # a None or a hole among them
        return None


def _sizes(column: Sequence[bytes | None]) -> list[int]:
    return [-1 if item is None else len(item) for item in column]
