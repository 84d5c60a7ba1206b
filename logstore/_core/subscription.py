"""What a consumer reads and how far it has come: positions, pauses, resets, buffered batches, fairness.

Pure: nothing here waits, sends or locks.  The shell asks what to send (:meth:`Subscription.next_fetch`,
:meth:`Subscription.pending_resets`), brings what came back (:meth:`Subscription.fetched`,
:meth:`Subscription.offsets_listed`) and hands out records (:meth:`Subscription.take`).  Every answer is
checked against what has happened meanwhile: an answer to a question that a ``seek`` has overtaken is
dropped.

Who decides which partitions are read is not this module's business: :meth:`Subscription.assign` takes the
list, from the user, from the metadata of the subscribed topics, or from whatever coordinates a group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from logstore._core.calls import EARLIEST, FetchRow
from logstore._core.fetched import DecodedBatch, Deserializers, FetchedBatch, HandedOut
from logstore._core.histories import Histories
from logstore._core.partition_state import READ_AHEAD, PartitionState, gone, missing
from logstore._core.reset import ResetPolicy
from logstore._core.resets import OffsetsRequest, Resets
from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    LogstoreError,
    OffsetOutOfRangeError,
)
from logstore.records import ConsumerRecord, OffsetAndMetadata, TopicPartition

__all__ = ["FetchRequest", "OffsetsRequest", "Subscription"]


class FetchRequest(NamedTuple):
    """Partitions to fetch from, in the order in which they are to be served."""

    states: Sequence[PartitionState]
    topic_ids: Sequence[int]
    partitions: Sequence[int]
    offsets: Sequence[int]


class Subscription(Histories, Resets):
    """The state of one consumer.

    ``max_buffered`` is the number of bytes of keys and values above which nothing more is fetched ahead.
    """

    def __init__(
        self,
        policy: ResetPolicy,
        deserializers: Deserializers | None = None,
        *,
        max_buffered: int = 52_428_800,
    ) -> None:
        self._policy = policy
        self._deserializers = deserializers or Deserializers()
        self._max_buffered = max_buffered
        self._buffered = 0
        # In the order in which the next fetch serves them: whoever got records goes to the end.
        self._states: dict[TopicPartition, PartitionState] = {}
        # Those with buffered batches, in the order in which take() serves them.
        self._queue: deque[PartitionState] = deque()
        self._handed_out: HandedOut | None = None
        self.needs_metadata = False
        """Something is assigned whose topic is not known, or not any more: :meth:`learn` helps."""
        # Errors that were raised: what they stopped is tried again when the program comes back.
        self._told: list[PartitionState] = []
        self.has_news = False
        """There are records, or errors, that were not there when this was last set to False."""
        self.has_room = True
        """Something that kept partitions from being fetched is gone since this was last set to False."""

    # -- the assignment ------------------------------------------------------------------------------------

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._states)

    @property
    def buffered(self) -> int:
        """Bytes of keys and values that have been fetched and not handed out."""
        return self._buffered

    def topic_ids(self) -> list[int]:
        """The topics that are read, without the paused partitions; ascending."""
        return sorted({s.topic_id for s in self._states.values() if s.topic_id is not None and not s.paused})

    def topic_id(self, tp: TopicPartition) -> int | None:
        """The id of the topic of ``tp``, which has to be assigned; None: not known yet."""
        return self._state(tp).topic_id

    def topics(self) -> set[str]:
        """The topics of the assigned partitions."""
        return {tp.topic for tp in self._states}

    def assign(
        self, partitions: Iterable[TopicPartition], start: int | None = None, *, awaiting: bool = False
    ) -> None:
        """Read exactly ``partitions``.

        Those that were assigned before keep position, pause and buffered records.  New ones begin where
        ``start`` says (a ``list_offsets`` spec), by default where the reset policy says; ``awaiting``: where
        :meth:`anchor` or :meth:`seek` is going to say.
        """
        self._take_back()
        before = self._states
        self._states = {
            tp: before.pop(tp) if tp in before else PartitionState(tp, start, awaiting=awaiting)
            for tp in partitions
        }
        for state in before.values():
            self._buffered -= state.move(None)
        self.needs_metadata = any(state.topic_id is None for state in self._states.values())

    def awaiting(self) -> list[TopicPartition]:
        """The partitions that :meth:`anchor` has to be called for."""
        return [tp for tp, state in self._states.items() if state.awaiting]

    def anchor(self, committed: Mapping[TopicPartition, tuple[int | None, int | None]]) -> None:
        """Begin at these offsets, or (None) where the reset policy says, unless a seek has said otherwise;
        each with the leader epoch of what comes before it, if that is known.
        """
        for tp, (offset, epoch) in committed.items():
            state = self._states.get(tp)
            if state is not None and state.awaiting:
                state.awaiting = False
                state.fetch_offset = offset
                state.begin_after(None if offset is None else epoch)

    def learn(self, topics: Mapping[str, tuple[int, int]]) -> None:
        """What the metadata says: for each topic that exists its id and its number of partitions."""
        self.needs_metadata = False
        for state in self._states.values():
            topic_id, partitions = topics.get(state.tp.topic, (None, 0))
            if topic_id is None or state.tp.partition >= partitions:
                self._fail(state, missing(state.tp, partitions))
            elif state.topic_id is None:
                state.topic_id = topic_id
            elif state.topic_id != topic_id:
                # Nothing of the new topic has been seen: it begins at its start, unless there is no policy.
                self._buffered -= state.move(None, None if self._policy.spec(0) is None else EARLIEST)
                state.topic_id = topic_id
                self._fail(state, gone(state.tp))

    def _state(self, tp: TopicPartition) -> PartitionState:
        try:
            return self._states[tp]
        except KeyError:
            raise IllegalStateError(
                f"Partition {tp.partition} of topic {tp.topic!r} is not assigned to this consumer.",
                details={"topic": tp.topic, "partition": tp.partition},
            ) from None

    def _chosen(self, tps: Iterable[TopicPartition]) -> list[PartitionState]:
        """The states of ``tps``; of all partitions when there are none.  All are looked up before one is
        touched.
        """
        return [self._state(TopicPartition(*tp)) for tp in tps] or list(self._states.values())

    # -- positions -----------------------------------------------------------------------------------------

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """The next record of ``tp`` is the one at ``offset``, or the first after it."""
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise InvalidArgumentError(f"An offset is an integer from 0, not {offset!r}.")
        state = self._state(tp)
        self._take_back()
        self._buffered -= state.move(offset)

    def go_back(self, tp: TopicPartition, offset: int) -> None:
        """What was taken last of ``tp``, from ``offset`` on, is to come again."""
        state = self._state(tp)
        place, doubted = state.taken_from, state.doubted
        self.seek(tp, offset)
        if place is not None and place[0] <= offset:
            state.fetch_offset = place[0]
            state.begin_after(place[1])
            state.doubted = doubted and place[1] is not None

    def seek_to(self, tps: Iterable[TopicPartition], spec: int) -> None:
        """The next record of each is what ``spec`` (of ``list_offsets``) says when it is asked for; none:
        all.
        """
        states = self._chosen(tps)
        self._take_back()
        for state in states:
            self._buffered -= state.move(None, spec)

    def position(self, tp: TopicPartition) -> int | None:
        """The offset of the next record that the user gets; None: not known yet."""
        state = self._state(tp)
        handed_out = self._handed_out
        if handed_out is not None and handed_out.tp == tp:
            return handed_out.next_offset
        return state.position

    def positions(self) -> dict[TopicPartition, int]:
        """The positions that are known."""
        known = ((tp, self.position(tp)) for tp in self._states)
        return {tp: offset for tp, offset in known if offset is not None}

    def committable(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The positions that are known, each with the leader epoch of the record before it."""
        return {
            tp: OffsetAndMetadata(offset, leader_epoch=self._epoch(tp))
            for tp, offset in self.positions().items()
        }

    def _epoch(self, tp: TopicPartition) -> int | None:
        handed_out = self._handed_out
        if handed_out is not None and handed_out.tp == tp and handed_out.left:
            return handed_out.epoch
        return self._states[tp].position_epoch

    @property
    def progress(self) -> object:
        """Differs when an iteration has come further.  Any thread may ask."""
        handed_out = self._handed_out
        return None if handed_out is None else (id(handed_out), handed_out.left)

    def raise_error(self, tp: TopicPartition) -> None:
        """Raises what is wrong with ``tp``, if anything, once."""
        state = self._state(tp)
        if state.error is not None:
            raise self._take_error(state)

    def high_watermark(self, tp: TopicPartition) -> int | None:
        """The end of the partition's log as of the last fetch; None: nothing fetched yet."""
        return self._state(tp).high_watermark

    def pause(self, tps: Iterable[TopicPartition]) -> None:
        """Hand out nothing of these until :meth:`resume`; their position stays."""
        states = self._chosen(tps)
        self._take_back()
        for state in states:
            state.paused = True

    def resume(self, tps: Iterable[TopicPartition]) -> None:
        for state in self._chosen(tps):
            state.paused = False

    def paused(self) -> frozenset[TopicPartition]:
        return frozenset(tp for tp, state in self._states.items() if state.paused)

    # -- fetching ------------------------------------------------------------------------------------------

    def next_fetch(self) -> FetchRequest | None:
        """What to fetch now; None: enough is buffered, or nothing is readable."""
        if self._buffered >= self._max_buffered:
            return None
        states = [state for state in self._states.values() if not state.remote and _wants(state)]
        if not states:
            return None
        return FetchRequest(
            states,
            _ids(states),
            [state.tp.partition for state in states],
            [state.fetch_offset or 0 for state in states],
        )

    def fetched(self, request: FetchRequest, rows: Sequence[FetchRow], *, follower: bool = False) -> bool:
        """The answer to :meth:`next_fetch`; whether it brought records.

        ``follower``: a position beyond the end of the log is one that this server has not replayed yet, not
        one that is out of range.
        """
        wanted: dict[int, PartitionState] = {}
        read: set[int] = set()
        begun: set[int] = set()
        for row in rows:
            idx = row.idx
            if row.base_offset is None:
                state = self._current(request, idx - 1)
                if state is not None and not state.doubted and self._watermarks(state, row, follower):
                    wanted[idx] = state
            elif idx in wanted:
                state = wanted[idx]
                if idx not in read and state.goes_on_under(row.leader_epoch):
                    del wanted[idx]
                    continue
                read.add(idx)  # what one answer holds is of one log
                if self._batch(state, row, idx not in begun):
                    begun.add(idx)
        return bool(begun)

    @property
    def reads_files(self) -> bool:
        """Some partition's next records are in files."""
        return any(state.remote and not state.paused and not state.stopped for state in self._states.values())

    def next_file_read(self) -> FetchRequest | None:
        """The partition whose next records are to be read from a file; None: none, or enough is buffered."""
        if self._buffered < self._max_buffered:
            for state in self._states.values():
                if state.remote and _wants(state):
                    return FetchRequest(
                        [state], _ids([state]), [state.tp.partition], [state.fetch_offset or 0]
                    )
        return None

    def file_read(self, request: FetchRequest, rows: Sequence[FetchRow]) -> None:
        """The answer to :meth:`next_file_read`; no rows: the server knows where the records are by now."""
        state = self._current(request, 0)
        if state is None:
            return
        begun = False
        for row in rows:
            begun = self._batch(state, row, not begun) or begun
        if rows and not rows[-1].record_count:
            state.begin_after(None)  # nothing was left in the file: its epoch is not known
        state.remote = bool(rows)

    def file_failed(self, request: FetchRequest, error: LogstoreError) -> None:
        """A file could not be read: told when what comes before is handed out."""
        state = self._current(request, 0)
        if state is not None:
            self._fail(state, error)

    def behind(self, request: FetchRequest) -> bool:
        """Whether there is more to read after what ``request`` has brought."""
        return any(
            state.fetch_offset is not None
            and state.high_watermark is not None
            and state.fetch_offset < state.high_watermark
            for state in request.states
        )

    def pending(self, request: FetchRequest) -> bool:
        """Whether the log goes on after what may be read of it."""
        return any((state.log_end or 0) > (state.high_watermark or 0) for state in request.states)

    def _current(self, request: FetchRequest, ordinal: int) -> PartitionState | None:
        """The state that was asked for, unless it has been moved or unassigned since."""
        state = request.states[ordinal]
        same = self._states.get(state.tp) is state and state.fetch_offset == request.offsets[ordinal]
        return state if same else None

    def _watermarks(self, state: PartitionState, row: FetchRow, follower: bool) -> bool:
        """Notes where the log begins and ends; whether the batches that follow are wanted."""
        offset = state.fetch_offset
        assert offset is not None
        if row.log_start is None or row.high_watermark is None:
            self.needs_metadata = True
            if not follower:  # which may not have heard of it yet: the leader is asked
                self._fail(state, gone(state.tp))
            return False
        state.log_start = row.log_start
        state.high_watermark = row.high_watermark
        state.log_end = end = row.high_watermark if row.log_end is None else row.log_end
        if row.log_start <= offset <= row.high_watermark:
            state.remote = row.local_start is not None and offset < row.local_start
            return not state.remote
        if row.high_watermark < offset <= end or (follower and offset > end):
            return False  # it is not safe, or not there, yet
        if offset > end and state.fetch_epoch is not None:
            state.doubted = True
            return False
        if self._policy.spec(0) is None:
            self._fail(
                state,
                OffsetOutOfRangeError(
                    f"Offset {offset} of partition {state.tp.partition} of topic {state.tp.topic!r} is "
                    f"not in the log, which goes from {row.log_start} to {end}.",
                    advice='seek() into this range, or set auto_offset_reset to "earliest" or "latest".',
                    details={
                        "topic": state.tp.topic,
                        "partition": state.tp.partition,
                        "offset": offset,
                        "log_start": row.log_start,
                        "high_watermark": row.high_watermark,
                    },
                ),
            )
        else:
            # What is buffered was in the log when it was read: it is handed out, then the new position
            # counts.
            state.fetch_offset = None
            state.reset = None
            state.begin_after(None)
        return False

    def _batch(self, state: PartitionState, row: FetchRow, first: bool) -> bool:
        """Buffers one batch, the ``first`` of this fetch or not; whether it holds a record at or after the
        position.
        """
        offset = state.fetch_offset
        assert offset is not None
        end = row.last_offset + 1
        if end <= offset:
            return False
        batch = FetchedBatch(state.tp, row, offset, state.fetch_epoch)
        state.fetch_offset = end
        if row.leader_epoch != state.fetch_epoch:
            state.fetch_epoch, state.epoch_since = row.leader_epoch, max(row.base_offset or 0, offset)
        if not batch.remaining:
            return False  # compaction has left nothing there
        if first:
            state.fetches.append(end)
            self._states[state.tp] = self._states.pop(state.tp)  # the next fetch serves the others first
        else:
            state.fetches[-1] = end
        state.batches.append(batch)
        self._buffered += batch.size
        self._enqueue(state)
        return True

    def _fail(self, state: PartitionState, error: LogstoreError) -> None:
        state.error = error
        self._enqueue(state)

    def _enqueue(self, state: PartitionState) -> None:
        self.has_news = True
        if not state.ready:
            state.ready = True
            self._queue.append(state)

    def try_again(self) -> bool:
        """The program has come back after an error: whether there is something to be tried again."""
        told, self._told = [state for state in self._told if state.told], []
        for state in told:
            state.told = False
            self.needs_metadata = self.needs_metadata or state.topic_id is None
        return bool(told)

    # -- handing out ---------------------------------------------------------------------------------------

    def take(
        self, count: int, only: Iterable[TopicPartition] = ()
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """The next records, ``count`` at most, by partition; their positions move past them.

        Partitions take turns: whichever was served goes to the end of the queue.  What went wrong with a
        partition is raised when there is nothing to hand out before it.  ``only``: from these partitions, if
        there are any.
        """
        self._take_back()
        chosen = frozenset(TopicPartition(*tp) for tp in only)
        taken: dict[TopicPartition, list[ConsumerRecord]] = {}
        with self._all_or_nothing() as begun:
            for state in self._turns():
                if chosen and state.tp not in chosen:
                    self._enqueue(state)
                    continue
                if taken and not state.batches:
                    self._enqueue(state)
                    continue  # its error waits until nothing comes before it
                begun.append((state, state.position))
                try:
                    records = self._take_from(state, count)
                except LogstoreError:
                    if not taken:
                        raise
                    continue
                if records:
                    taken[state.tp] = records
                    count -= len(records)
                    if count <= 0:
                        break
        return taken

    def hand_out(self, count: int) -> Iterator[ConsumerRecord] | None:
        """Some records of one partition, ``count`` at most, to iterate over; None: there are none.

        The position follows the iteration.  Anything that touches positions ends it: what it has not come to
        is then handed out next, or forgotten with a :meth:`seek`.
        """
        self._take_back()
        with self._all_or_nothing() as begun:
            for state in self._turns():
                begun.append((state, state.position))
                epoch = state.position_epoch
                records = self._take_from(state, count)
                position = state.position
                if records and position is not None:
                    self._handed_out = HandedOut(state.tp, records, position, epoch)
                    return self._handed_out.iterator
        return None

    @contextmanager
    def _all_or_nothing(self) -> Iterator[list[tuple[PartitionState, int | None]]]:
        """What Ctrl-C strikes takes nothing: nobody has got those records, and a commit must not cover them.

        Gives a list for the partitions that are begun with, and their positions before that.
        """
        begun: list[tuple[PartitionState, int | None]] = []
        try:
            yield begun
        except LogstoreError:
            raise
        except BaseException:
            for state, position in begun:
                if position is not None and state.position != position:
                    self.go_back(state.tp, position)
            # Wherever it has struck, nothing is counted or queued by halves.
            self._buffered = sum(batch.size for state in self._states.values() for batch in state.batches)
            self._queue.clear()
            for state in self._states.values():
                state.ready = False
                if self._has_something(state):
                    self._enqueue(state)
            self.has_room = True
            raise

    def _has_something(self, state: PartitionState) -> bool:
        assigned = self._states.get(state.tp) is state
        return assigned and (bool(state.batches) or state.error is not None)

    def _turns(self) -> Iterator[PartitionState]:
        """The partitions with something to hand out, each once, taken from the queue."""
        for _ in range(len(self._queue)):
            state = self._queue.popleft()
            state.ready = False
            waits = state.paused or (state.doubted and state.error is None)
            if waits and self._has_something(state):
                self._enqueue(state)
            elif self._has_something(state):
                yield state

    def _take_from(self, state: PartitionState, count: int) -> list[ConsumerRecord]:
        records: list[ConsumerRecord] = []
        batches = state.batches
        if batches:
            state.taken_from = (batches[0].next_offset, batches[0].epoch_before)
        try:
            if not batches and state.error is not None:
                raise self._take_error(state)
            while batches and len(records) < count:
                batch = batches[0]
                try:
                    taken = batch.take(count - len(records), self._deserializers)
                except LogstoreError:
                    if records:
                        break  # raised by the next call, when nothing comes before it
                    raise
                records = records + taken if records else taken
                if not batch.remaining:
                    batches.popleft()
                    self._used_up(state, batch)
        finally:
            if self._has_something(state):
                self._enqueue(state)
        return records

    def _take_error(self, state: PartitionState) -> LogstoreError:
        error, state.error = state.error, None
        assert error is not None
        state.told = True
        self._told.append(state)
        return error

    def _used_up(self, state: PartitionState, batch: FetchedBatch | DecodedBatch) -> None:
        full = len(state.fetches) >= READ_AHEAD or self._buffered >= self._max_buffered
        self._buffered -= batch.size
        while state.fetches and state.fetches[0] <= batch.next_offset:
            state.fetches.popleft()
        if full and len(state.fetches) < READ_AHEAD and self._buffered < self._max_buffered:
            self.has_room = True

    def _take_back(self) -> None:
        handed_out, self._handed_out = self._handed_out, None
        rest = handed_out.take_back() if handed_out is not None else None
        state = self._states.get(rest.tp) if rest is not None else None
        if rest is not None and state is not None:
            state.batches.appendleft(rest)
            self._enqueue(state)


def _wants(state: PartitionState) -> bool:
    """It can be read on, and there is room for more of it."""
    return (
        state.fetch_offset is not None
        and state.topic_id is not None
        and not state.paused
        and not state.stopped
        and not state.doubted
        and len(state.fetches) < READ_AHEAD
    )


def _ids(states: Iterable[PartitionState]) -> list[int]:
    return [state.topic_id for state in states if state.topic_id is not None]
