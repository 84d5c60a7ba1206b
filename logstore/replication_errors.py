"""Errors of logs with copies: followers, failover, mirrors, local clusters.  Import them from
:mod:`logstore.errors`.
"""

from __future__ import annotations

from logstore.error_base import LogstoreError, OffsetOutOfRangeError, RetriableError

__all__ = [
    "ClusterError",
    "InvalidReplicationFactorError",
    "LogTruncationError",
    "MirrorError",
    "NotEnoughReplicasError",
    "NotLeaderError",
    "TopicReadOnlyError",
]


class NotEnoughReplicasError(RetriableError):
    """Fewer followers than min.insync.replicas asks for; nothing was written."""

    advice = "Set synchronous_standby_names on the server, or lower min.insync.replicas or acks."


class NotLeaderError(RetriableError):
    """The server is read-only: it is a follower, or has become one."""

    advice = "Connect to the leader: add target_session_attrs=read-write to the DSN."


class InvalidReplicationFactorError(LogstoreError):
    """More replicas were asked for than there are servers; nothing was changed."""

    advice = "Add followers, or ask for fewer (-1: as many as there are); `logstore replicas` shows them."


class LogTruncationError(OffsetOutOfRangeError):
    """A failover has cut off records that the consumer has read, and auto_offset_reset is "none".

    ``details`` has ``topic``, ``partition``, ``position``, ``divergence_offset`` (below it the log is what it
    was), ``read_leader_epoch`` (under which was read what is gone) and ``leader_epoch`` (that of the log
    before the divergence).  Only what ``acks`` 0 or 1 wrote can be cut off, or a log without synchronous
    followers.
    """

    advice = (
        "Undo what came of the records from details['divergence_offset'] on, and seek() there; or set "
        "auto_offset_reset, which goes on there by itself."
    )


class TopicReadOnlyError(LogstoreError):
    """The topic mirrors another log's, or its mirror has taken its place; nothing was written."""

    advice = "Write to the log that leads: details['peer'] says where; `logstore mirror status` shows both."


class MirrorError(LogstoreError):
    """A topic and its mirror do not belong together, or have parted; nothing was copied or changed."""


class ClusterError(LogstoreError):
    """The local cluster could not be started, reached or changed."""
