"""What a member of a share group has acquired, and what it has to tell the server about it.

Pure: nothing here waits, sends or locks, and the time, in seconds of a monotonic clock, is an argument.  A
record goes from *open* (handed out) to *pending* (acknowledged by the program) to *sent* (in the request
under way), and leaves when the server has answered.  One that is renewed stays open as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from logstore._core.share_calls import Acknowledgements, Refused
from logstore.errors import InvalidRecordStateError
from logstore.records import TopicPartition
from logstore.share import ACCEPT, RELEASE, RENEW

__all__ = ["RETURN", "Acknowledgement", "Ledger", "Place", "RefusedRange", "Settled"]

RETURN: Final = 5
"""What a member says of a record that it never handed out: it does not count as a delivery."""


class Place(NamedTuple):
    """A partition, as the server knows it."""

    topic_id: int
    partition: int


class Acknowledgement(NamedTuple):
    type: int
    deadline: float
    """When the lock runs out, or a little earlier."""
    delay_ms: int | None = None
    reason: str | None = None


class RefusedRange(NamedTuple):
    """Records whose acknowledgement was refused; both ends included."""

    partition: TopicPartition
    first_offset: int
    last_offset: int


class Settled(NamedTuple):
    """What the server's answer comes to."""

    done: list[tuple[TopicPartition, list[int]]]
    """The offsets whose acknowledgement holds."""
    refused: list[RefusedRange]


class _Sent(NamedTuple):
    place: Place
    first_offset: int
    acknowledgements: list[Acknowledgement]
    """Of this and the following offsets."""


class Ledger:
    def __init__(self) -> None:
        self._topics: dict[int, str] = {}
        self._open: dict[Place, dict[int, float]] = {}
        self._renewed: dict[Place, dict[int, float]] = {}
        self._pending: dict[Place, dict[int, Acknowledgement]] = {}
        self._sent: list[_Sent] = []
        self._doubtful = False
        """What was sent may have been carried out already."""

    # -- records come ----------------------------------------------------------------------------------------

    def opened(self, topic: str, place: Place, offsets: Iterable[int], deadline: float) -> None:
        """Records are handed out; their lock runs out at ``deadline``."""
        self._topics[place.topic_id] = topic
        self._open.setdefault(place, {}).update(dict.fromkeys(offsets, deadline))

    def settle_early(
        self,
        topic: str,
        place: Place,
        offsets: Iterable[int],
        deadline: float,
        kind: int,
        reason: str | None = None,
    ) -> None:
        """Records were acquired but are not handed out: say ``kind`` of them with the next request."""
        self._topics[place.topic_id] = topic
        acknowledgement = Acknowledgement(kind, deadline, None, reason)
        self._pending.setdefault(place, {}).update(dict.fromkeys(offsets, acknowledgement))

    def knows(self, place: Place, offset: int) -> bool:
        """Whether the record is this member's as far as the ledger knows."""
        return (
            any(offset in part.get(place, ()) for part in (self._open, self._renewed))
            or offset in self._pending.get(place, ())
            or any(
                sent.place == place and 0 <= offset - sent.first_offset < len(sent.acknowledgements)
                for sent in self._sent
            )
        )

    # -- records are acknowledged ----------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        """How many records were handed out and not acknowledged; those that were renewed are not counted."""
        return sum(map(len, self._open.values()))

    def place(self, tp: TopicPartition) -> Place | None:
        """The partition by its name; None: nothing of it was handed out."""
        for place in (*self._open, *self._renewed, *self._pending):
            if place.partition == tp.partition and self._topics[place.topic_id] == tp.topic:
                return place
        return None

    def acknowledge(
        self,
        tp: TopicPartition,
        offset: int,
        kind: int,
        delay_ms: int | None = None,
        reason: str | None = None,
    ) -> None:
        """The program says what became of a record.

        Raises InvalidRecordStateError when it is not the member's, or was acknowledged already; nothing
        changes then.
        """
        place = self.place(tp)
        deadline = None
        if place is not None:
            deadline = self._open.get(place, {}).pop(offset, None)
            if deadline is None:
                deadline = self._renewed.get(place, {}).pop(offset, None)
        if place is None or deadline is None:
            known = place is not None and self.knows(place, offset)
            raise InvalidRecordStateError(
                f"Record {offset} of partition {tp.partition} of topic {tp.topic!r} "
                + ("has been acknowledged already." if known else "is not acquired by this consumer."),
                advice="Acknowledge each record that poll() returned once; RENEW may come before that.",
                details={"topic": tp.topic, "partition": tp.partition, "offset": offset},
            )
        if kind == RENEW:
            self._renewed.setdefault(place, {})[offset] = deadline
        self._pending.setdefault(place, {})[offset] = Acknowledgement(kind, deadline, delay_ms, reason)

    def acknowledge_open(self, kind: int = ACCEPT) -> None:
        """Say ``kind`` of everything that was handed out and not acknowledged, what was renewed included."""
        for part in (self._open, self._renewed):
            for place, offsets in part.items():
                self._pending.setdefault(place, {}).update(
                    (offset, Acknowledgement(kind, deadline, 0 if kind == RELEASE else None))
                    for offset, deadline in offsets.items()
                )
            part.clear()

    # -- and the server is told ------------------------------------------------------------------------------

    def request(self) -> Acknowledgements | None:
        """What to send now; None: nothing.  What an earlier request did not settle comes first."""
        if not self._sent:
            for place in sorted(self._pending):
                self._sent += _runs(place, self._pending[place])
            self._pending.clear()
        if not self._sent:
            return None
        firsts = [sent.acknowledgements[0] for sent in self._sent]
        return Acknowledgements(
            [sent.place.topic_id for sent in self._sent],
            [sent.place.partition for sent in self._sent],
            [sent.first_offset for sent in self._sent],
            [sent.first_offset + len(sent.acknowledgements) - 1 for sent in self._sent],
            [each.type for each in firsts],
            [each.delay_ms for each in firsts] if any(each.delay_ms is not None for each in firsts) else None,
            [each.reason for each in firsts] if any(each.reason is not None for each in firsts) else None,
        )

    def unsettled(self) -> None:
        """There was no answer: the request may have been carried out, or not.  It will be sent again."""
        self._doubtful = True

    def settled(self, refused: Sequence[Refused], asked: float, now: float, lock_s: float) -> Settled:
        """The server's answer to :meth:`request`: ``asked`` at that time, received at ``now``.  ``lock_s`` is
        how long a lock lasts.

        Refused after an earlier attempt whose answer was lost, and before the lock ran out, means done: only
        that attempt can have finished the record.
        """
        sent, self._sent = self._sent, []
        doubtful, self._doubtful = self._doubtful, False
        answer = Settled([], [])
        refused_offsets: dict[int, set[int]] = {}
        for each in refused:
            refused_offsets.setdefault(each.idx - 1, set()).update(
                range(each.first_offset, each.last_offset + 1)
            )
        for ordinal, run in enumerate(sent):
            lost = refused_offsets.get(ordinal, set())
            if lost and doubtful:
                lost = {
                    offset
                    for offset in lost
                    if now >= run.acknowledgements[offset - run.first_offset].deadline
                    or run.acknowledgements[0].type == RENEW
                }
            tp = TopicPartition(self._topics[run.place.topic_id], run.place.partition)
            offsets = range(run.first_offset, run.first_offset + len(run.acknowledgements))
            done = [offset for offset in offsets if offset not in lost] if lost else list(offsets)
            if done:
                answer.done.append((tp, done))
            answer.refused.extend(RefusedRange(tp, first, last) for first, last in _ranges(sorted(lost)))
            if run.acknowledgements[0].type == RENEW:
                renewed = self._renewed.get(run.place, {})
                for offset in done:
                    if offset in renewed:
                        renewed[offset] = asked + lock_s
            if lost:
                for part in (self._renewed, self._pending):
                    for offset in lost:
                        part.get(run.place, {}).pop(offset, None)
        return answer


def _runs(place: Place, acknowledgements: dict[int, Acknowledgement]) -> list[_Sent]:
    """Neighbouring offsets of which the same is said."""
    runs: list[_Sent] = []
    last = -2
    said: tuple[int, int | None, str | None] | None = None
    for offset in sorted(acknowledgements):
        one = acknowledgements[offset]
        says = (one.type, one.delay_ms, one.reason)
        if offset == last + 1 and says == said:
            runs[-1].acknowledgements.append(one)
        else:
            runs.append(_Sent(place, offset, [one]))
            said = says
        last = offset
    return runs


def _ranges(offsets: Sequence[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges
