# Generated from logstore/_async/key_lookup.py by tools/unasync.py; edit that file.
"""The method of a consumer that looks a key up."""

from __future__ import annotations

from logstore._core.fetched import Deserializers, FetchedBatch
from logstore._core.key_calls import KeyCalls, key_bytes
from logstore._core.topic_name import check_topic_name
from logstore._sync.fetcher import Fetcher
from logstore.consumer_config import ConsumerConfig
from logstore.records import ConsumerRecord, TopicPartition

__all__ = ["KeyLookup"]


class KeyLookup:
    """Reads a compacted topic as a table."""

    _config: ConsumerConfig
    _fetcher: Fetcher

    def _ready(self) -> None:
        raise NotImplementedError

    def latest(self, topic: str, key: bytes | str, partition: int | None = None) -> ConsumerRecord | None:
        """The last record of ``key`` in a compacted topic; None: the log has none.

        ``key``: as it is stored, before any deserializer; a str is UTF-8.  ``partition``: look there only;
        by default in all of them, for the one that was appended last.  A record whose value is None is a
        tombstone: the key was deleted.

        It is found by an index, whatever the topic's size, and among records that were committed before the
        call.  It needs no assignment and moves no position.  Raises UnknownTopicOrPartitionError,
        IllegalStateError (``cleanup.policy`` of the topic has no ``compact``) and SerializationError.
        """
        calls = KeyCalls(self._config.schema)
        call = calls.latest(check_topic_name(topic), key_bytes(key), partition)
        self._ready()
        row = self._fetcher.ask(call)
        if row is None:
            return None
        assert row.base_offset is not None
        batch = FetchedBatch(TopicPartition(topic, row.idx), row, row.base_offset)
        deserializers = Deserializers(self._config.key_deserializer, self._config.value_deserializer)
        return batch.take(1, deserializers)[0]
