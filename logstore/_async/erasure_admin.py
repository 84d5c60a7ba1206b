"""The methods of an admin client that erase keys."""

from __future__ import annotations

from typing import TypeVar

from logstore._core.call import Call
from logstore._core.key_calls import KeyCalls, key_bytes
from logstore._core.topic_name import check_topic_name
from logstore.erasures import Erasure

__all__ = ["ErasureAdmin"]

T = TypeVar("T")


class ErasureAdmin:
    """Takes the records of a key out of the log."""

    _key_calls: KeyCalls

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def erase_key(self, topic: str, key: bytes | str) -> int:
        """Have every record of ``key`` that is in the topic now erased; the id of the erasure.

        Writes down that it is to be done and returns; a worker does it (see :meth:`list_erasures` for how far
        it is).  Offsets stay valid; records of the key that come later stay.  What it cannot reach: the
        server's write-ahead log and backups, and copies in other topics, such as dead letters.  ``key``: as
        it is stored; a str is UTF-8.

        Raises UnknownTopicOrPartitionError.
        """
        return await self._run(self._key_calls.erase_key(check_topic_name(topic), key_bytes(key)))

    async def list_erasures(self, topic: str | None = None) -> list[Erasure]:
        """What was to be erased, oldest first; from one topic or from all, also from those that are gone."""
        return [Erasure(*row) for row in await self._run(self._key_calls.erasures(topic))]
