"""What a program may say to have offsets committed."""

from __future__ import annotations

from collections.abc import Mapping

from logstore._core.topic_name import check_partition
from logstore.errors import InvalidArgumentError, OffsetMetadataTooLargeError
from logstore.records import ConsumerRecord, OffsetAndMetadata, TopicPartition

__all__ = ["METADATA_LIMIT", "Committable", "offsets_to_commit"]

Committable = ConsumerRecord | Mapping[TopicPartition, int | OffsetAndMetadata]
"""A record that is done with, or for each partition the offset of the next record to be read."""

METADATA_LIMIT = 4096
"""Bytes."""


def offsets_to_commit(offsets: Committable) -> dict[TopicPartition, OffsetAndMetadata]:
    """What to commit, checked.

    Raises InvalidArgumentError and OffsetMetadataTooLargeError.
    """
    if isinstance(offsets, ConsumerRecord):
        return {
            offsets.topic_partition: OffsetAndMetadata(offsets.offset + 1, leader_epoch=offsets.leader_epoch)
        }
    if not isinstance(offsets, Mapping):
        raise InvalidArgumentError(
            f"What can be committed is a record, or a mapping of partitions to offsets, not {offsets!r}."
        )
    return {check_partition(tp): _offset(offset) for tp, offset in offsets.items()}


def _offset(given: object) -> OffsetAndMetadata:
    if isinstance(given, int):
        given = OffsetAndMetadata(given)
    if not isinstance(given, tuple) or not 1 <= len(given) <= 3:
        raise InvalidArgumentError(f"An offset is an integer or OffsetAndMetadata, not {given!r}.")
    if given[1:2] == (None,):  # as many programs for Kafka say that there is no metadata
        given = (given[0], "", *given[2:])
    wanted = OffsetAndMetadata(*given)
    if isinstance(wanted.offset, bool) or not isinstance(wanted.offset, int) or wanted.offset < 0:
        raise InvalidArgumentError(f"An offset is an integer from 0, not {wanted.offset!r}.")
    if not isinstance(wanted.metadata, str):
        raise InvalidArgumentError(f"The metadata of an offset is a string, not {wanted.metadata!r}.")
    epoch = wanted.leader_epoch
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int)):
        raise InvalidArgumentError(f"The leader epoch of an offset is an integer or None, not {epoch!r}.")
    try:
        size = len(wanted.metadata.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"The metadata of an offset is not Unicode: {error}.") from None
    if size > METADATA_LIMIT:
        raise OffsetMetadataTooLargeError(
            f"The metadata of a committed offset has at most {METADATA_LIMIT} bytes, not {size}.",
            details={"limit": METADATA_LIMIT, "size": size},
        )
    return wanted
