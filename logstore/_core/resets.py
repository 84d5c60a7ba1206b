"""The positions of a subscription that have to be looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from logstore._core.calls import LATEST, ListedOffset
from logstore._core.partition_state import PartitionState
from logstore._core.reset import ResetPolicy
from logstore.errors import LogstoreError, NoOffsetForPartitionError
from logstore.records import TopicPartition

__all__ = ["OffsetsRequest", "Resets"]


class OffsetsRequest(NamedTuple):
    """Partitions without a position, and what to ask ``list_offsets`` for."""

    states: Sequence[PartitionState]
    topic_ids: Sequence[int]
    partitions: Sequence[int]
    specs: Sequence[int]


class Resets:
    """The part of a subscription that finds positions by the reset policy."""

    _policy: ResetPolicy
    _states: dict[TopicPartition, PartitionState]
    needs_metadata: bool

    def _fail(self, state: PartitionState, error: LogstoreError) -> None:
        raise NotImplementedError

    def pending_resets(self, now_ms: int) -> OffsetsRequest | None:
        """The partitions whose position has to be looked up; None: there are none.

        ``now_ms``: milliseconds since the epoch.  A partition without a reset policy gets its error here.
        """
        states: list[PartitionState] = []
        specs: list[int] = []
        for state in self._states.values():
            if state.fetch_offset is not None or state.stopped or state.topic_id is None:
                continue
            if state.awaiting:
                continue
            spec = self._policy.spec(now_ms) if state.reset is None else state.reset
            if spec is None:
                self._fail(
                    state,
                    NoOffsetForPartitionError(
                        f"There is no position for partition {state.tp.partition} of topic "
                        f'{state.tp.topic!r}, and auto_offset_reset is "none".',
                        details={"topic": state.tp.topic, "partition": state.tp.partition},
                    ),
                )
                continue
            state.reset = spec
            states.append(state)
            specs.append(spec)
        if not states:
            return None
        topic_ids = [state.topic_id for state in states if state.topic_id is not None]
        return OffsetsRequest(states, topic_ids, [state.tp.partition for state in states], specs)

    def offsets_listed(self, request: OffsetsRequest, rows: Sequence[ListedOffset]) -> None:
        """The answer to :meth:`pending_resets`."""
        for row in rows:
            state, spec = request.states[row.idx - 1], request.specs[row.idx - 1]
            if state.fetch_offset is not None or state.reset != spec:
                continue  # a seek has overtaken the question
            if row.offset is None:
                state.reset = LATEST  # no record is that young: begin with the next one
            else:
                state.fetch_offset = row.offset
                state.reset = None

    @property
    def positioned(self) -> bool:
        """Every partition has a position, or an error that says why not."""
        return not self.needs_metadata and all(
            (state.fetch_offset is not None and not state.doubted) or state.stopped
            for state in self._states.values()
        )
