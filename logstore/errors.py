"""Every error logstore raises, and what to do about it.

::

    LogstoreError
    ├── RetriableError                     trying again, unchanged, may succeed
    │   ├── ConnectionFailedError          no server answered, or it went away outside of a commit
    │   ├── RequestTimedOutError           no answer within the time allowed
    │   ├── UnknownOutcomeError            the connection died during COMMIT: it may or may not have happened
    │   ├── NotEnoughReplicasError         fewer followers than min.insync.replicas; nothing was written
    │   ├── NotLeaderError                 the server is read-only (a follower)
    │   ├── LockTimeoutError               another transaction holds a lock for too long
    │   ├── StorageFullError               the server's disk is full
    │   ├── RemoteStorageError             the place where segments are kept as files cannot be reached
    │   ├── ThrottlingQuotaExceededError   the quota has been used up for long; nothing was done
    │   └── ServerBusyError                no memory or connection to spare, a deadlock broken
    ├── UnknownTopicOrPartitionError
    ├── TopicAlreadyExistsError
    ├── InvalidTopicError                  a name Kafka would refuse
    ├── InvalidPartitionsError
    ├── InvalidReplicationFactorError      more replicas were asked for than there are servers
    ├── InvalidConfigError                 a topic config out of range
    ├── ConfigurationError                 a client option that does not exist or does not fit
    ├── InvalidArgumentError               a wrong type or value given to a method
    ├── SerializationError                 a serializer or deserializer raised
    ├── RecordTooLargeError
    ├── InvalidRecordError
    ├── InvalidTimestampError
    ├── UnsupportedCompressionTypeError
    ├── OffsetOutOfRangeError
    │   └── LogTruncationError             a failover has cut off records that were read
    ├── TopicReadOnlyError                 it mirrors another log's topic, or its mirror has taken its place
    ├── MirrorError                        a topic and its mirror do not belong together
    ├── RemoteFileError                    a segment's file is missing, or not what was written
    ├── NoOffsetForPartitionError          auto_offset_reset="none" and no position
    ├── GroupError                         what is particular to groups
    │   ├── UnknownMemberError             not a member of the group (any more)
    │   ├── FencedInstanceIdError          another member has taken this group_instance_id
    │   ├── CommitFailedError              the partition belongs to another member, or to a later claim
    │   ├── GroupNotEmptyError             the group has members
    │   ├── GroupNotFoundError
    │   ├── InvalidSubscriptionError       a pattern that is no regular expression
    │   ├── OffsetMetadataTooLargeError    more than 4096 bytes beside a committed offset
    │   ├── InvalidRecordStateError        a record of a share group is not acquired by this member (any more)
    │   └── InvalidGroupError              not a legal name, or a group of another kind
    ├── TransactionError                   what is particular to transactions
    │   ├── ProducerFencedError            another producer holds the transactional id now
    │   ├── TransactionAbortedError        the record's transaction was aborted; it is not in the log
    │   ├── TransactionTimedOutError       the transaction was open for longer than transaction_timeout_ms
    │   └── TransactionalIdNotFoundError   no producer has ever held this transactional id
    ├── IllegalStateError                  a method called at the wrong moment
    │   ├── ClientClosedError
    │   ├── OutboxConnectionError          in autocommit, or of another database
    │   └── ForkedClientError              a client used in a child process of fork()
    ├── WakeupError                      wakeup() was called while, or before, the consumer waited
    ├── BufferExhaustedError               buffer_memory stayed full for max_block_ms
    ├── DeliveryTimeoutError               a record was not acknowledged within delivery_timeout_ms
    ├── OutOfOrderSequenceError            records that the producer sent before this one are not in the log
    ├── DuplicateSequenceError             the batch is in the log, too long ago to know where
    ├── AuthenticationFailedError
    ├── CertificateError                   a certificate was not accepted: expired, or not the server's
    ├── AuthorizationFailedError
    ├── SchemaError
    │   ├── SchemaMissingError             the database has no log: `logstore db upgrade`
    │   └── SchemaVersionError             the log's schema is older or newer than this client
    ├── UnsupportedServerError             PostgreSQL older than 15
    ├── EmbeddedServerError                the embedded server could not be started
    ├── ClusterError                       the local cluster could not be started or changed
    └── ServerError                        anything else the server said

Errors raised by the SQL functions carry an SQLSTATE of class ``LS`` and a JSON object in DETAIL;
:data:`BY_SQLSTATE` maps both these and PostgreSQL's own codes to classes.  Nothing branches on message text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from logstore.error_base import LogstoreError, OffsetOutOfRangeError, RetriableError
from logstore.replication_errors import (
    ClusterError,
    InvalidReplicationFactorError,
    LogTruncationError,
    MirrorError,
    NotEnoughReplicasError,
    NotLeaderError,
    TopicReadOnlyError,
)

__all__ = [
    "BY_SQLSTATE",
    "AuthenticationFailedError",
    "AuthorizationFailedError",
    "BufferExhaustedError",
    "CertificateError",
    "ClientClosedError",
    "ClusterError",
    "CommitFailedError",
    "ConfigurationError",
    "ConnectionFailedError",
    "DeliveryTimeoutError",
    "DuplicateSequenceError",
    "EmbeddedServerError",
    "FencedInstanceIdError",
    "ForkedClientError",
    "GroupError",
    "GroupNotEmptyError",
    "GroupNotFoundError",
    "IllegalStateError",
    "InvalidArgumentError",
    "InvalidConfigError",
    "InvalidGroupError",
    "InvalidPartitionsError",
    "InvalidRecordError",
    "InvalidRecordStateError",
    "InvalidReplicationFactorError",
    "InvalidSubscriptionError",
    "InvalidTimestampError",
    "InvalidTopicError",
    "LockTimeoutError",
    "LogTruncationError",
    "LogstoreError",
    "MirrorError",
    "NoOffsetForPartitionError",
    "NotEnoughReplicasError",
    "NotLeaderError",
    "OffsetMetadataTooLargeError",
    "OffsetOutOfRangeError",
    "OutOfOrderSequenceError",
    "OutboxConnectionError",
    "ProducerFencedError",
    "RecordTooLargeError",
    "RemoteFileError",
    "RemoteStorageError",
    "RequestTimedOutError",
    "RetriableError",
    "SchemaError",
    "SchemaMissingError",
    "SchemaVersionError",
    "SerializationError",
    "ServerBusyError",
    "ServerError",
    "StaleSessionError",
    "StorageFullError",
    "ThrottlingQuotaExceededError",
    "TopicAlreadyExistsError",
    "TopicReadOnlyError",
    "TransactionAbortedError",
    "TransactionError",
    "TransactionTimedOutError",
    "TransactionalIdNotFoundError",
    "UnknownMemberError",
    "UnknownOutcomeError",
    "UnknownTopicOrPartitionError",
    "UnsupportedCompressionTypeError",
    "UnsupportedServerError",
    "WakeupError",
    "from_server",
]

# Wherever they are written down, this is where they are found.
for _each in (
    LogstoreError,
    RetriableError,
    OffsetOutOfRangeError,
    ClusterError,
    InvalidReplicationFactorError,
    LogTruncationError,
    MirrorError,
    NotEnoughReplicasError,
    NotLeaderError,
    TopicReadOnlyError,
):
    _each.__module__ = __name__


class ConnectionFailedError(RetriableError):
    """The server could not be reached, or the connection was lost outside of a commit."""

    advice = "Check that the server runs and that host and port are right."


class RequestTimedOutError(RetriableError):
    """The server did not answer within the time allowed."""


class StaleSessionError(RetriableError):
    """A session of the server has missed that a segment was made; the client goes on in another one.

    It is rare: ``docs/adr/0010`` has what was seen.  Nothing was written.
    """

    advice = "Connect again; clients do so by themselves."


class UnknownOutcomeError(RetriableError):
    """The connection was lost during COMMIT: the write may or may not have happened."""

    advice = "Read the log to see; with enable_idempotence=True a producer finds out by itself."


class LockTimeoutError(RetriableError):
    """Another transaction held a lock for too long."""


class StorageFullError(RetriableError):
    """The server has no disk space left; nothing was written."""

    advice = (
        "Free space on the server, or shorten retention; the client keeps retrying until delivery_timeout_ms."
    )


class ThrottlingQuotaExceededError(RetriableError):
    """The quota of the role or client id has been used up for more than ten seconds; nothing was done."""

    advice = "Wait for details['throttle_time_ms'], then try again; `logstore quota list` shows the quotas."


class ServerBusyError(RetriableError):
    """The server is short of a resource, or had to break a deadlock; nothing was written."""


class UnknownTopicOrPartitionError(LogstoreError):
    """There is no such topic or partition."""

    advice = (
        "`logstore topic list` shows what there is; `logstore topic create` makes a topic, "
        "`logstore topic add-partitions` more partitions."
    )


class TopicAlreadyExistsError(LogstoreError):
    """A topic with this name exists already."""

    advice = "Choose another name, or take the one there is: if_not_exists=True, `--if-not-exists`."


class InvalidTopicError(LogstoreError):
    """The topic name is not legal."""

    advice = "A name has 1 to 249 of the characters a-z A-Z 0-9 . _ - and is neither '.' nor '..'."


class InvalidPartitionsError(LogstoreError):
    """The number of partitions is not possible."""


class InvalidConfigError(LogstoreError):
    """A topic config is unknown or has a value out of range."""


class ConfigurationError(LogstoreError):
    """A client option does not exist or does not fit the others."""


class InvalidArgumentError(LogstoreError, ValueError):
    """An argument has the wrong type or value."""


class SerializationError(LogstoreError):
    """A serializer or deserializer failed."""


class RecordTooLargeError(LogstoreError):
    """The record is larger than the topic or the client allows; it was not sent."""

    advice = (
        "Send less, or raise the limit: max.message.bytes of the topic, max_request_size and buffer_memory "
        "of the producer."
    )


class InvalidRecordError(LogstoreError):
    """The record is not acceptable to the topic."""


class InvalidTimestampError(LogstoreError):
    """The record's timestamp is too far from the server's clock."""


class UnsupportedCompressionTypeError(LogstoreError):
    """The server was built without this compression."""


class NoOffsetForPartitionError(LogstoreError):
    """There is no position for the partition and auto_offset_reset is "none"."""

    advice = "seek() first, or set auto_offset_reset."


class GroupError(LogstoreError):
    """Something particular to groups went wrong."""


class UnknownMemberError(GroupError):
    """The client is not a member of the group, or not any more."""


class FencedInstanceIdError(GroupError):
    """Another member has joined with the same group_instance_id and has taken this one's place."""

    fatal = True
    advice = "Give every member of a group its own group_instance_id."


class CommitFailedError(GroupError):
    """The partition belongs to another member now, or to a later claim of it; nothing was committed."""

    advice = (
        "Its new owner begins at the last committed offset. If this member was too slow, raise "
        "max_poll_interval_ms or lower max_poll_records."
    )


class GroupNotEmptyError(GroupError):
    """The group has members; nothing was changed."""

    advice = "Stop its members first; one that was killed is gone when its session timeout has passed."


class GroupNotFoundError(GroupError):
    """There is no group with this name."""

    advice = "See what there is with `logstore group list`."


class InvalidSubscriptionError(GroupError):
    """The pattern is not a regular expression."""

    advice = "Patterns are PostgreSQL's regular expressions and have to match the whole topic name."


class OffsetMetadataTooLargeError(GroupError):
    """The metadata of a committed offset is larger than 4096 bytes."""


class InvalidRecordStateError(GroupError):
    """The record is not acquired by this member, or not any more; its state is unchanged."""


class InvalidGroupError(GroupError):
    """The name is not legal for a group, or belongs to a group of another kind."""


class TransactionError(LogstoreError):
    """Something particular to transactions went wrong."""


class ProducerFencedError(TransactionError):
    """Another producer holds the transactional id now; nothing was written."""

    fatal = True
    advice = "One producer at a time may use a transactional id: close this one."


class TransactionAbortedError(TransactionError):
    """The record's transaction was aborted: the record is not in the log."""


class TransactionTimedOutError(TransactionError):
    """The transaction was open for longer than transaction_timeout_ms; nothing of it was written."""

    advice = "Abort it. Commit more often, or raise transaction_timeout_ms."


class TransactionalIdNotFoundError(TransactionError):
    """No producer has ever held this transactional id, or it has expired."""

    advice = "See what there is with `logstore transaction list`."


class IllegalStateError(LogstoreError):
    """The method cannot be called at this moment."""


class ClientClosedError(IllegalStateError):
    """The client is closed."""

    fatal = True


class OutboxConnectionError(IllegalStateError):
    """The connection cannot take a record along in its transaction; nothing was written."""


class ForkedClientError(IllegalStateError):
    """The client was made in another process, before fork()."""

    fatal = True
    advice = "Make a client in each process, after the fork."


class WakeupError(LogstoreError):
    """Somebody called wakeup(): the consumer stopped waiting."""


class BufferExhaustedError(LogstoreError):
    """buffer_memory stayed full for max_block_ms."""

    advice = "The server is slower than this producer: raise buffer_memory or max_block_ms, or send less."


class DeliveryTimeoutError(LogstoreError):
    """The record was not acknowledged within delivery_timeout_ms; it is not in the log."""


class OutOfOrderSequenceError(LogstoreError):
    """Records that the producer sent before this one are not in the log; nothing was written."""

    advice = (
        "The server has lost records that it had acknowledged: a crash with acks=0, a failover with acks=1, "
        "or a restored backup."
    )


class DuplicateSequenceError(LogstoreError):
    """The batch is in the log already, and so long ago that its offset is not remembered."""


class AuthenticationFailedError(LogstoreError):
    """The server refused the user or the password."""

    advice = "Both may be in the DSN; a password that is not, in PGPASSWORD or ~/.pgpass."


class CertificateError(LogstoreError):
    """A certificate was not accepted: it has expired, is not the server's, or nobody vouches for it."""

    advice = "Renew it, or name the authority that signed it with sslrootcert in the DSN."


class AuthorizationFailedError(LogstoreError):
    """The user may not do this."""

    advice = "Whoever owns the log can grant it."


class SchemaError(LogstoreError):
    """The database's logstore schema does not fit this client."""


class SchemaMissingError(SchemaError):
    """The database holds no log."""


class SchemaVersionError(SchemaError):
    """The log's schema has another version than this client needs."""


class RemoteStorageError(RetriableError):
    """The place where segments are kept as files cannot be reached, or may not be written to.

    The records are still there: nothing leaves PostgreSQL before its file was read back.
    """


class RemoteFileError(LogstoreError):
    """The file of a segment is missing, cut off, or is not what was written: its checksum differs.

    ``logstore tier verify`` says of every file whether it is good.
    """


class UnsupportedServerError(LogstoreError):
    """The server is older than PostgreSQL 15."""


class EmbeddedServerError(LogstoreError):
    """The embedded server could not be started or reached."""


class ServerError(LogstoreError):
    """The server answered with an error that has no class of its own."""


BY_SQLSTATE: Final[Mapping[str, type[LogstoreError]]] = {
    # Raised by our own SQL functions.
    "LS001": UnknownTopicOrPartitionError,
    "LS002": TopicAlreadyExistsError,
    "LS003": InvalidTopicError,
    "LS004": InvalidConfigError,
    "LS005": InvalidPartitionsError,
    "LS006": OffsetOutOfRangeError,
    "LS007": RecordTooLargeError,
    "LS008": InvalidTimestampError,
    "LS009": NotEnoughReplicasError,
    "LS010": InvalidRecordError,
    "LS011": UnsupportedCompressionTypeError,
    "LS012": InvalidArgumentError,
    "LS013": NotLeaderError,
    "LS014": ProducerFencedError,
    "LS015": OutOfOrderSequenceError,
    "LS016": DuplicateSequenceError,
    "LS017": TransactionalIdNotFoundError,
    "LS018": InvalidReplicationFactorError,
    "LS020": UnknownMemberError,
    "LS021": FencedInstanceIdError,
    "LS022": CommitFailedError,
    "LS023": GroupNotEmptyError,
    "LS024": GroupNotFoundError,
    "LS025": InvalidSubscriptionError,
    "LS026": OffsetMetadataTooLargeError,
    "LS027": InvalidRecordStateError,
    "LS028": InvalidGroupError,
    "LS034": OutboxConnectionError,
    "LS035": IllegalStateError,
    "LS036": InvalidArgumentError,
    "LS040": IllegalStateError,
    "LS056": InvalidConfigError,
    "LS057": IllegalStateError,
    "LS054": InvalidArgumentError,
    "LS059": ThrottlingQuotaExceededError,
    "LS060": TopicReadOnlyError,
    "LS061": MirrorError,
    "LS050": InvalidRecordError,
    "LS051": InvalidArgumentError,
    "LS052": InvalidRecordError,
    "LS053": IllegalStateError,
    # PostgreSQL's own; a two-letter key stands for the whole class.
    "08": ConnectionFailedError,
    "57P01": ConnectionFailedError,
    "57P02": ConnectionFailedError,
    "57P03": ConnectionFailedError,
    "57P05": ConnectionFailedError,
    "57014": RequestTimedOutError,
    "22": InvalidArgumentError,
    "23514": StaleSessionError,
    "25006": NotLeaderError,
    "55P03": LockTimeoutError,
    "40": ServerBusyError,
    "53": ServerBusyError,
    "53100": StorageFullError,
    "28": AuthenticationFailedError,
    "42501": AuthorizationFailedError,
}


def from_server(
    sqlstate: str | None, message: str, detail: str | None = None, hint: str | None = None
) -> LogstoreError:
    """The typed error for what the server said.

    ``detail`` is parsed as JSON for our own codes and kept under ``details["detail"]`` otherwise.
    """
    code = sqlstate or ""
    cls = BY_SQLSTATE.get(code) or BY_SQLSTATE.get(code[:2]) or ServerError
    details: dict[str, Any] = {"sqlstate": code}
    if detail:
        try:
            parsed = json.loads(detail) if code.startswith("LS") else None
        except ValueError:
            parsed = None
        details |= parsed if isinstance(parsed, dict) else {"detail": detail}
    if isinstance(known := details.get("known"), list):
        # A name that is not one of these: the near miss helps more than the whole list.
        near = get_close_matches(str(details.get("config")).replace("_", "."), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else hint
    return cls(message, advice=hint or None, details=details)
