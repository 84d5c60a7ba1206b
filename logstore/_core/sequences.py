"""How an idempotent producer numbers what it sends to a partition.

The log takes a producer's batches in the order of their sequences, each once: a batch that is sent again
because nobody knows what became of it keeps its number.  A batch that is known not to be in the log gives its
number back.  After one of which it will never be known, the next epoch begins: from then on the log refuses
the lost batch, should it still be on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Number", "Numbering"]

LAST_EPOCH: Final = 2**15 - 1
_MASK: Final = 2**31 - 1
"""After 2147483647 comes 0."""


class Number(NamedTuple):
    """What a batch carries."""

    producer_id: int
    producer_epoch: int
    base_sequence: int

    def after(self, count: int) -> Number:
        """The number of the record that is ``count`` further on."""
        return self._replace(base_sequence=(self.base_sequence + count) & _MASK)

    def is_beyond(self, expected: int) -> bool:
        """Sequences are missing between ``expected``, the log's next one, and this batch's."""
        return 0 < (self.base_sequence - expected) & _MASK <= _MASK >> 1


class Numbering:
    """The numbers of one partition; ``new_producer_id`` gives another id when the epochs are used up."""

    __slots__ = ("_new_producer_id", "following")

    def __init__(self, new_producer_id: Callable[[], int], producer_id: int, epoch: int) -> None:
        self._new_producer_id = new_producer_id
        self.following = Number(producer_id, epoch, 0)
        """Of the next batch."""

    def take(self, count: int) -> Number:
        """The number of a batch of ``count`` records."""
        taken = self.following
        self.following = taken.after(count)
        return taken

    def give_back(self, number: Number) -> None:
        """The last batch that took a number is not in the log, nor will it be."""
        self.following = number

    def begin_epoch(self) -> None:
        """Nobody knows whether the last batch that took a number will be in the log."""
        producer_id, epoch, _ = self.following
        if epoch < LAST_EPOCH:
            self.following = Number(producer_id, epoch + 1, 0)
        else:
            self.following = Number(self._new_producer_id(), 0, 0)
