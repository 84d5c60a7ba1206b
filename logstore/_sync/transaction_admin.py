# Generated from logstore/_async/transaction_admin.py by tools/unasync.py; edit that file.
"""The methods of an admin client that concern transactions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from logstore._core.call import Call
from logstore._core.transaction_calls import TransactionCalls
from logstore.errors import TransactionalIdNotFoundError
from logstore.transactions import TransactionDescription, TransactionListing

__all__ = ["TransactionAdmin"]

T = TypeVar("T")


class TransactionAdmin:
    """Lists and describes transactional ids, and fences their holders."""

    _transaction_calls: TransactionCalls

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def list_transactions(self, *, states: Iterable[str] | None = None) -> list[TransactionListing]:
        """All transactional ids, by name; only those in ``states`` (Ongoing, Empty), if these are given."""
        wanted = None if states is None else {state.lower() for state in states}
        return [
            TransactionListing(row.transactional_id, row.producer_id, row.state)
            for row in self._run(self._transaction_calls.list_transactions())
            if wanted is None or row.state.lower() in wanted
        ]

    def describe_transactions(self, transactional_ids: Iterable[str]) -> list[TransactionDescription]:
        """Who holds each transactional id and what it is doing, in the order asked for.

        Raises TransactionalIdNotFoundError.
        """
        names = [transactional_ids] if isinstance(transactional_ids, str) else list(transactional_ids)
        rows = self._run(self._transaction_calls.list_transactions(names))
        found = {row.transactional_id: row for row in rows}
        for name in names:
            if name not in found:
                raise TransactionalIdNotFoundError(
                    f"There is no transactional id {name!r}.", details={"transactional_id": name}
                )
        return [found[name] for name in names]

    def fence_producers(self, transactional_ids: Iterable[str]) -> dict[str, int]:
        """Fence the holders of these transactional ids; the new epochs.

        What they have not committed yet they cannot commit any more: they get ProducerFencedError.  A commit
        that is under way ends first.

        Raises TransactionalIdNotFoundError, after those before it in the list have been fenced.
        """
        names = [transactional_ids] if isinstance(transactional_ids, str) else list(transactional_ids)
        return {name: self._run(self._transaction_calls.fence_producer(name)) for name in names}
