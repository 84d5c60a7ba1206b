# Generated from logstore/_async/processing.py by tools/unasync.py; edit that file.
"""The methods of a consumer that read, write and commit in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from random import random
from typing import Any

from logstore._core.backoff import Backoff
from logstore._core.subscription import Subscription
from logstore._sync.apart import settle
from logstore._sync.committing import Committing
from logstore._sync.concurrency import Lock, sleep
from logstore._sync.consumer_transaction import ConsumerTransaction, Link
from logstore._sync.driver import Connection
from logstore._sync.fetcher import Fetcher
from logstore._sync.group import Group
from logstore._sync.lent import Lent
from logstore._sync.outgoing import Outgoing
from logstore._sync.session import Session
from logstore.consumer_config import ConsumerConfig
from logstore.errors import (
    ClientClosedError,
    CommitFailedError,
    IllegalStateError,
    LogstoreError,
    NotLeaderError,
    TransactionAbortedError,
    WakeupError,
)
from logstore.records import ConsumerRecord, TopicPartition

__all__ = ["Processing"]

_log = logging.getLogger("logstore.group")


class Processing(Committing):
    """What a consumer with a ``group_id`` can do exactly once."""

    _config: ConsumerConfig
    _session: Session
    _subscription: Subscription
    _fetcher: Fetcher
    _lock: Lock
    _doubt: ConsumerTransaction | None = None
    _handler_raised = False
    _link_connection: Connection | None = None
    _outgoing: Outgoing

    def _poll(
        self, timeout_ms: float, max_records: int | None, only: Iterable[TopicPartition]
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        raise NotImplementedError

    def _check(self) -> None:
        raise NotImplementedError

    def transaction(self, *, timeout_ms: float = 1000, max_records: int | None = None) -> ConsumerTransaction:
        """A transaction for a ``with`` block: what is read, written, produced and committed in it happens as
        a whole, once, or not at all.

        ``tx.records`` are the next records, at most ``max_records`` (default ``max_poll_records``), waited
        for at most ``timeout_ms`` milliseconds; ``tx.connection`` is a database connection (psycopg's, or
        asyncpg's for an Consumer) in whose transaction they are processed; ``tx.send`` produces.  The
        end of the block commits all that, with the offsets.  When it raises, everything is rolled back and
        the records come again.

        From the first one on the consumer commits by itself no more.  The session may idle in the transaction
        for ``max_poll_interval_ms``.

        Leaving the block raises CommitFailedError (the partitions belong to another member by now),
        TransactionAbortedError (a statement has failed; the connection was lost) and what keeps records from
        being appended: then nothing was committed.  When the connection is lost during the commit, the
        consumer finds out what came of it; UnknownOutcomeError only says that the server could not be asked
        yet: the next transaction asks again first.
        """
        return ConsumerTransaction(self, timeout_ms, max_records)

    def run(self, handler: Callable[[ConsumerTransaction], Any], *, max_records: int | None = None) -> None:
        """With ``delivery="exactly_once"``: call ``handler(tx)`` for the next records, again and again, each
        time in a :meth:`transaction`.

        Returns after :meth:`wakeup` or ``close``, and when no record has come for ``consumer_timeout_ms``.
        What the handler raises is raised here, and its records come again with the next call; a lost
        connection, or partitions that have gone to another member, only roll back and go on.
        """
        group = self._in_group()
        if not group.exactly_once:
            raise IllegalStateError(
                "run() is for exactly-once delivery.",
                advice='Make the consumer with delivery="exactly_once".',
            )
        backoff = Backoff(
            self._config.reconnect_backoff_ms / 1000, self._config.reconnect_backoff_max_ms / 1000, random
        )
        failures = 0
        idle_since = time.monotonic()
        while True:
            self._handler_raised = False
            try:
                if self._run_once(handler, max_records):
                    idle_since = time.monotonic()
                failures = 0
            except WakeupError:
                return
            except ClientClosedError:
                if self._fetcher.closing:
                    return
                raise
            except (CommitFailedError, TransactionAbortedError) as error:
                if self._handler_raised:
                    raise
                _log.warning("A transaction was rolled back; its records come again: %s", error)
            except LogstoreError as error:
                if self._handler_raised or not error.retriable:
                    raise
                failures += 1
                _log.warning("A transaction was rolled back, trying again: %s", error)
                sleep(backoff.delay(failures))
            timeout_ms = self._config.consumer_timeout_ms
            if timeout_ms is not None and time.monotonic() - idle_since >= timeout_ms / 1000:
                return

    def _run_once(self, handler: Callable[[ConsumerTransaction], Any], max_records: int | None) -> bool:
        timeout_ms = self._config.consumer_timeout_ms
        wait_ms = 1000 if timeout_ms is None else min(1000, timeout_ms)
        transaction = ConsumerTransaction(self, wait_ms, max_records)
        if not transaction._begin(even_without_records=False):
            return False
        try:
            settle(handler(transaction))
        except BaseException as error:
            transaction._roll_back(TransactionAbortedError())
            link = transaction._link
            if link is not None and link.lost and isinstance(error, Exception):
                raise TransactionAbortedError(f"The connection was lost: {error}") from error
            self._handler_raised = True
            raise
        transaction._commit()
        return True

    # -- for the transactions ------------------------------------------------------------------------------

    def _in_transactions(self) -> Group:
        """The group, with transactions instead of automatic commits."""
        group = self._in_group()
        if group.at_most_once:
            raise IllegalStateError(
                'delivery="at_most_once" commits before records are handed out.',
                advice='Make the consumer with delivery="exactly_once".',
            )
        if group.turn is not None:
            raise IllegalStateError(
                "A transaction is open already, and transactions do not nest.",
                advice="Use savepoints on tx.connection.",
            )
        group.transactional = True
        if getattr(self, "_outgoing", None) is None:
            self._outgoing = Outgoing(
                self._fetcher, self._session.calls, self._lock, self._config.metadata_max_age_ms / 1000
            )
        return group

    def _settle_doubt(self) -> None:
        doubt, self._doubt = self._doubt, None
        if doubt is not None:
            try:
                doubt.settle()
            except BaseException:
                self._doubt = doubt
                raise

    def _link(self) -> Link:
        """The connection that transactions happen on, opened again if it was lost."""
        connection = self._link_connection
        if connection is None or connection.closed:
            if connection is not None:
                connection.close()
                self._link_connection = None
            connection, info = self._session.open()
            why = connection.access.refusal(in_recovery=info.is_in_recovery)
            if why:
                where = connection.dsn_for_display
                connection.close()
                raise NotLeaderError(f"{where} {why}: nothing can be committed there.")
            self._link_connection = connection
        return Lent(connection, timeout_s=self._config.request_timeout_ms / 1000)

    def _close_link(self) -> None:
        connection, self._link_connection = self._link_connection, None
        if connection is not None:
            connection.close()
