# Generated from logstore/_async/admin.py by tools/unasync.py; edit that file.
"""The admin client."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from logstore._core.call import Call
from logstore._core.group_calls import GroupCalls
from logstore._core.key_calls import KeyCalls
from logstore._core.quota_calls import QuotaCalls
from logstore._core.replica_calls import ReplicaCalls
from logstore._core.share_calls import ShareCalls
from logstore._core.topic_name import check_topic_name
from logstore._core.transaction_calls import TransactionCalls
from logstore._sync.concurrency import Mutex, start_at_once
from logstore._sync.driver import Connection
from logstore._sync.erasure_admin import ErasureAdmin
from logstore._sync.group_admin import GroupAdmin
from logstore._sync.quota_admin import QuotaAdmin
from logstore._sync.replica_admin import ReplicaAdmin, checked_factor
from logstore._sync.session import Session
from logstore._sync.share_admin import ShareAdmin
from logstore._sync.tiered import resolved
from logstore._sync.transaction_admin import TransactionAdmin
from logstore.admin_config import AdminConfig, AdminOptions
from logstore.errors import (
    ClientClosedError,
    ConnectionFailedError,
    ForkedClientError,
    InvalidArgumentError,
    UnknownTopicOrPartitionError,
)
from logstore.options import read_options
from logstore.records import OffsetAndTimestamp, TopicPartition
from logstore.topics import ConfigEntry, NewTopic, TopicDescription

if TYPE_CHECKING:
    from typing import Unpack

__all__ = ["Admin"]

T = TypeVar("T")

IDLE_S = 5.0
"""A connection that was not used for this long is tried before something is written over it."""


class Admin(ErasureAdmin, GroupAdmin, QuotaAdmin, ReplicaAdmin, ShareAdmin, TransactionAdmin):
    """Creates, describes, alters and deletes topics and groups, and sets quotas.

    ``dsn``: a libpq URI or key/value string; by default ``LOGSTORE_DSN``, else the embedded
    server.  ``options``: see :class:`~logstore.admin_config.AdminConfig`; the constructor raises
    ConfigurationError for those that do not fit.

    Each method is one transaction: it happens as a whole or not at all.  Connecting raises
    ConnectionFailedError, SchemaMissingError, SchemaVersionError or UnsupportedServerError; a connection
    that is lost is made anew by the next call.  A change that is cut off raises UnknownOutcomeError: look
    whether it happened.  Several threads (or tasks) may share one admin client; they take turns.
    """

    def __init__(self, dsn: str | None = None, **options: Unpack[AdminOptions]) -> None:
        config = read_options(AdminConfig, options, elsewhere=("dsn",))
        self._pid = os.getpid()
        self._timeout_s = config.request_timeout_ms / 1000
        self._session = Session(
            dsn, config.schema, timeout_s=self._timeout_s, application_name=config.client_id
        )
        self._calls = self._session.calls
        self._group_calls = GroupCalls(config.schema)
        self._key_calls = KeyCalls(config.schema)
        self._quota_calls = QuotaCalls(config.schema)
        self._replica_calls = ReplicaCalls(config.schema)
        self._share_calls = ShareCalls(config.schema)
        self._transaction_calls = TransactionCalls(config.schema)
        self._mutex = Mutex()
        self._connection: Connection | None = None
        self._used = 0.0
        self._closed = False
        start_at_once(self)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect.  ``with`` does it, and so does the first use; harmless when it is done already."""
        self._usable()
        with self._mutex:
            self._connected()

    def close(self) -> None:
        """Close the connection; harmless when it is closed already, and in a forked child."""
        if os.getpid() == self._pid and not self._closed:
            self._closed = True
            with self._mutex:
                self._disconnect()
                self._session.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dsn(self) -> str | None:
        """Where the client is connected: what another client, or psql, needs to get there, password included.

        None: it has not been connected yet, and no DSN was given.
        """
        return self._session.dsn

    # -- topics ----------------------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        configs: Mapping[str, object] | None = None,
        *,
        if_not_exists: bool = False,
        replication_factor: int = -1,
    ) -> int:
        """Create a topic; its id.

        ``configs``: Kafka's topic configs, such as ``{"retention.ms": 3_600_000}``; see
        :meth:`describe_configs`. ``if_not_exists``: a topic that is there already is left as it is.
        ``replication_factor``: how many servers are to have its records, the leader included; -1: as many as
        the group has (see :class:`~logstore.topics.NewTopic`).

        Raises InvalidTopicError, InvalidPartitionsError, InvalidConfigError,
        UnsupportedCompressionTypeError, TopicAlreadyExistsError, InvalidReplicationFactorError.
        """
        call = self._calls.create_topic(
            check_topic_name(name),
            _count(partitions),
            _texts(configs or {}),
            if_not_exists=if_not_exists,
            replication_factor=checked_factor(replication_factor),
        )
        return self._run(call)

    def create_topics(
        self, topics: Iterable[NewTopic | str], *, if_not_exists: bool = False
    ) -> dict[str, int]:
        """Create several topics, all or none; their ids by name.

        A topic is a :class:`~logstore.topics.NewTopic`, or a name for one with one partition.
        """
        calls = {}
        for topic in topics:
            new = NewTopic(topic) if isinstance(topic, str) else topic
            calls[new.name] = self._calls.create_topic(
                check_topic_name(new.name),
                _count(new.num_partitions),
                _texts(new.topic_configs or {}),
                if_not_exists=if_not_exists,
                replication_factor=checked_factor(new.replication_factor),
            )
        # In order of names, so that two who create the same topics do not lock each other out.
        return self._run_together(dict(sorted(calls.items())))

    def list_topics(self) -> list[str]:
        """The names of all topics, sorted."""
        return sorted(topic.topic for topic in self._run(self._calls.metadata()))

    def describe_topics(self, topics: Iterable[str] | None = None) -> list[TopicDescription]:
        """Id, partitions and effective configs of each topic, in the order asked for; by default of all.

        Raises UnknownTopicOrPartitionError when one of them does not exist.
        """
        if topics is None:
            everything = self._run(self._calls.metadata())
            return sorted(everything, key=lambda topic: topic.topic)
        names = [check_topic_name(name) for name in ([topics] if isinstance(topics, str) else topics)]
        found = {topic.topic: topic for topic in self._run(self._calls.metadata(names))}
        for name in names:
            if name not in found:
                raise _unknown(name)
        return [found[name] for name in names]

    def describe_topic(self, topic: str) -> TopicDescription:
        """Id, partitions and effective configs of one topic."""
        return (self.describe_topics([topic]))[0]

    def describe_configs(self, topic: str) -> dict[str, ConfigEntry]:
        """Every config of a topic: its value, default, type, range and meaning."""
        entries = self._run(self._calls.describe_configs(check_topic_name(topic)))
        return {entry.name: entry for entry in entries}

    def alter_configs(self, topic: str, configs: Mapping[str, object]) -> None:
        """Set some configs of a topic; None returns one to its default.  The others stay as they are.

        Raises InvalidConfigError, UnsupportedCompressionTypeError, UnknownTopicOrPartitionError.
        """
        unset = [name for name, value in configs.items() if value is None]
        changed = _texts({name: value for name, value in configs.items() if value is not None})
        self._run(self._calls.alter_topic(check_topic_name(topic), changed, unset))

    def create_partitions(self, topic: str, total: int) -> None:
        """Raise the number of a topic's partitions to ``total``.

        Keys are spread over the new number of partitions: records of one key may go to another one from now
        on. Raises InvalidPartitionsError when the topic has as many already: there is no way back.
        """
        self._run(self._calls.add_partitions(check_topic_name(topic), _count(total)))

    def delete_topic(self, topic: str) -> None:
        """Delete a topic and all its records: at once for everybody; its space is freed a little later."""
        self._run(self._calls.delete_topic(check_topic_name(topic)))

    def delete_topics(self, topics: Iterable[str]) -> None:
        """Delete several topics, all or none."""
        names = sorted({check_topic_name(name) for name in ([topics] if isinstance(topics, str) else topics)})
        self._run_together({name: self._calls.delete_topic(name) for name in names})

    # -- records ---------------------------------------------------------------------------------------------

    def delete_records(self, before: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Delete the records before an offset of each partition (-1: all there are); its new log start.

        All or none.  They are gone at once for every reader; their space is freed a segment at a
        time.  Raises OffsetOutOfRangeError for an offset beyond the end of the log.
        """
        calls = {
            tp: self._calls.delete_records(check_topic_name(tp[0]), _count(tp[1]), _offset(offset))
            for tp, offset in sorted(before.items())
        }
        return self._run_together(calls)

    def list_offsets(
        self, specs: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """An offset of each partition.

        A spec is -2 (the start of the log), -1 (its end), -3 (the record with the highest timestamp), -4 (the
        start of what PostgreSQL has), -5 (the end of what is in files) or a timestamp in milliseconds (the
        first record at or after it); they are ``EARLIEST``, ``LATEST``, ``MAX_TIMESTAMP``, ``EARLIEST_LOCAL``
        and ``LATEST_TIERED`` in :mod:`logstore.topics`.  None: there is no such record.  The timestamp is -1
        where no record was looked for.
        """
        tps = [TopicPartition(*tp) for tp in specs]
        names = sorted({check_topic_name(tp.topic) for tp in tps})
        if not tps:
            return {}
        ids = {topic.topic: topic.topic_id for topic in self._run(self._calls.metadata(names))}
        for name in names:
            if name not in ids:
                raise _unknown(name)
        rows = self._run(
            self._calls.list_offsets(
                [ids[tp.topic] for tp in tps],
                [_count(tp.partition) for tp in tps],
                [_offset(spec) for spec in specs.values()],
            )
        )
        rows = [
            resolved(
                self._run, self._calls.schema, ids[tps[row.idx - 1].topic], tps[row.idx - 1].partition, row
            )
            for row in rows
        ]
        found: dict[TopicPartition, OffsetAndTimestamp | None] = dict.fromkeys(tps)
        for row in rows:
            if row.offset is not None:
                timestamp = -1 if row.timestamp is None else row.timestamp
                found[tps[row.idx - 1]] = OffsetAndTimestamp(row.offset, timestamp, row.leader_epoch or 0)
        return found

    # -- the connection --------------------------------------------------------------------------------------

    def _run(self, call: Call[T]) -> T:
        self._usable()
        with self._mutex:
            try:
                connection = self._connected(fresh=call.writes)
                answer = connection.run(call, timeout_s=self._timeout_s)
            except ConnectionFailedError:
                if call.writes or self._closed:
                    raise
                # Reading may be done again, over a new connection.
                self._disconnect()
                connection = self._connected()
                answer = connection.run(call, timeout_s=self._timeout_s)
            self._used = time.monotonic()
            return answer

    def _run_together(self, calls: Mapping[Any, Call[T]]) -> dict[Any, T]:
        """The answers of several calls in one transaction."""
        self._usable()
        answers: dict[Any, T] = {}
        with self._mutex:
            connection = self._connected(fresh=True)
            with connection.transaction(timeout_s=self._timeout_s):
                for name, call in calls.items():
                    answers[name] = connection.run(call, timeout_s=self._timeout_s)
            self._used = time.monotonic()
        return answers

    def _connected(self, *, fresh: bool = False) -> Connection:
        """The connection; ``fresh``: one that answers, after a pause in which it may have been lost."""
        self._usable()
        connection = self._connection
        if connection is not None and fresh and time.monotonic() - self._used > IDLE_S:
            try:
                connection.run(self._calls.schema_version(), timeout_s=self._timeout_s)
            except ConnectionFailedError:
                self._disconnect()
        if self._connection is None or self._connection.closed:
            self._disconnect()
            self._connection, _ = self._session.open()
            self._used = time.monotonic()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClientError("The admin client was made in another process, before a fork.")
        if self._closed:
            raise ClientClosedError("The admin client is closed.")


def _unknown(topic: str) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(f"There is no topic {topic!r}.", details={"topic": topic})


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise InvalidArgumentError(f"A number of partitions, or of one, is an integer, not {value!r}.")
    return value


def _offset(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(f"An offset or timestamp is an integer, not {value!r}.")
    return value


def _texts(configs: Mapping[str, object]) -> dict[str, str]:
    """Config values as Kafka writes them."""
    if not isinstance(configs, Mapping):
        raise InvalidArgumentError(f"Configs are a dict of names and values, not {configs!r}.")
    texts: dict[str, str] = {}
    for name, value in configs.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise InvalidArgumentError(
                f"A config is a name and a string, number or boolean, not {name!r}: {value!r}."
            )
        texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts
