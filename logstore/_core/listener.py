"""What a program is told when partitions come and go."""

from __future__ import annotations

from collections.abc import Sequence

from logstore.records import TopicPartition

__all__ = ["ConsumerRebalanceListener"]


class ConsumerRebalanceListener:
    """Override what interests you.

    Called inside ``poll`` (and iteration, ``unsubscribe`` and ``close``), never beside it.  In asyncio the
    methods may be coroutines.
    """

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> object:
        """These have come, beside those that stay.  ``seek`` here to begin elsewhere than at the committed
        offsets.
        """

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> object:
        """These are about to be given up: finish, and commit; nobody else has them before this returns."""

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> object:
        """These are gone already, and somebody else may have them: a commit would fail.  By default this
        calls :meth:`on_partitions_revoked`, as in Kafka.
        """
        return self.on_partitions_revoked(lost)
