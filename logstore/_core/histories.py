"""Whether what a consumer has read is still in the log: a failover may have cut it off.

Whoever leads writes under an epoch of its own, so a place in the log is an offset and the epoch of what comes
before it.  The log is asked when another server leads it, when a consumer goes on at a committed offset, and
when what comes next is of another epoch than what came before (Kafka's KIP-320).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from logstore._core.calls import EpochEnd
from logstore._core.partition_state import PartitionState
from logstore._core.reset import ResetPolicy
from logstore.errors import LogstoreError, LogTruncationError
from logstore.records import TopicPartition

__all__ = ["EpochsRequest", "Histories", "Truncation"]


class EpochsRequest(NamedTuple):
    """Places to ask the log for."""

    states: Sequence[PartitionState]
    topic_ids: Sequence[int]
    partitions: Sequence[int]
    epochs: Sequence[int]
    offsets: Sequence[int]


class Truncation(NamedTuple):
    """A partition of which records were cut off that the program has had."""

    tp: TopicPartition
    position: int
    divergence: int
    """Up to here the log is what it was."""


class Histories:
    """The part of a subscription that compares what was read with the log."""

    _policy: ResetPolicy
    _states: dict[TopicPartition, PartitionState]
    _buffered: int
    has_room: bool

    def _take_back(self) -> None:
        raise NotImplementedError

    def _enqueue(self, state: PartitionState) -> None:
        raise NotImplementedError

    def _fail(self, state: PartitionState, error: LogstoreError) -> None:
        raise NotImplementedError

    def doubt_all(self) -> None:
        """Another server leads the log, or the same one after a restart."""
        self._take_back()
        for state in self._states.values():
            state.doubted = state.fetch_offset is not None and state.fetch_epoch is not None
            state.continues = False

    def read_elsewhere(self) -> None:
        """Another server is asked from now on, which may not have what the last one has confirmed."""
        for state in self._states.values():
            state.continues = False

    def next_check(self, only: Iterable[PartitionState] | None = None) -> EpochsRequest | None:
        """The places that the log is to be asked for, of ``only`` these or of all; None: there are none."""
        states: list[PartitionState] = []
        topic_ids: list[int] = []
        epochs: list[int] = []
        offsets: list[int] = []
        for state in self._states.values() if only is None else only:
            offset, epoch, topic_id = state.fetch_offset, state.fetch_epoch, state.topic_id
            if not state.doubted or state.stopped or offset is None or epoch is None or topic_id is None:
                continue
            states.append(state)
            topic_ids.append(topic_id)
            epochs.append(epoch)
            offsets.append(offset)
        if not states:
            return None
        return EpochsRequest(states, topic_ids, [state.tp.partition for state in states], epochs, offsets)

    def checked(self, request: EpochsRequest, rows: Sequence[EpochEnd]) -> list[Truncation]:
        """The answer to :meth:`next_check`, of a leader: what was cut off and is not an error, because the
        reset policy says to go on.
        """
        parted = {row.idx: row for row in rows}
        found: list[Truncation] = []
        for idx, state in enumerate(request.states, 1):
            if not self._as_asked(request, idx - 1):
                continue
            row = parted.get(idx)
            if row is None:
                self._settle(state)
                continue
            self._take_back()
            truncation = self._cut(state, row)
            if truncation is not None:
                found.append(truncation)
        return found

    def confirmed(self, request: EpochsRequest, rows: Sequence[EpochEnd]) -> bool:
        """The answer of a follower: whether its log is the one that was read.  If it is not, that says
        nothing: it may follow a leader of the past.
        """
        if rows:
            return False
        for ordinal, state in enumerate(request.states):
            if self._as_asked(request, ordinal):
                self._settle(state)
        return True

    def _as_asked(self, request: EpochsRequest, ordinal: int) -> bool:
        state = request.states[ordinal]
        place = (state.fetch_offset, state.fetch_epoch)
        asked = (request.offsets[ordinal], request.epochs[ordinal])
        return self._states.get(state.tp) is state and state.doubted and place == asked

    def _settle(self, state: PartitionState) -> None:
        state.doubted = False
        state.continues = True
        self.has_room = True
        if state.batches:
            self._enqueue(state)

    def _cut(self, state: PartitionState, row: EpochEnd) -> Truncation | None:
        """The log parts from what was read: what is done about it."""
        divergence = row.end_offset or 0
        if row.leader_epoch is None or row.leader_epoch < (state.fetch_epoch or 0):
            # Nothing of the epoch that was read is left: it began here, at the latest.
            divergence = min(divergence, state.epoch_since)
        position, epoch = state.position, state.position_epoch
        assert position is not None
        if position <= divergence:
            # Only what was fetched ahead is gone.
            self._buffered -= state.move(position)
            state.begin_after(epoch)
            self.has_room = True
            return None
        if self._policy.spec(0) is None:
            read_under = state.fetch_epoch
            self._buffered -= state.move(position)
            state.begin_after(read_under if epoch is None else epoch)
            self._fail(state, _truncated(state.tp, position, divergence, read_under, row))
            return None
        self._buffered -= state.move(divergence)
        state.begin_after(row.leader_epoch)
        state.doubted, state.continues = False, True
        self.has_room = True
        return Truncation(state.tp, position, divergence)


def _truncated(
    tp: TopicPartition, position: int, divergence: int, read_under: int | None, row: EpochEnd
) -> LogTruncationError:
    return LogTruncationError(
        f"Partition {tp.partition} of topic {tp.topic!r} was cut off at offset {divergence}, and the "
        f"position is {position}: records that were read are not in the log any more.",
        details={
            "topic": tp.topic,
            "partition": tp.partition,
            "position": position,
            "divergence_offset": divergence,
            "read_leader_epoch": read_under,
            "leader_epoch": row.leader_epoch,
        },
    )
