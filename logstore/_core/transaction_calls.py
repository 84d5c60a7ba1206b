"""The SQL functions of transactions as calls, and several calls in one statement."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from logstore._core.arrays import Int4Array, Int8Array, TextArray
from logstore._core.call import Call, Row
from logstore._core.group_calls import Commit, GroupCalls
from logstore.transactions import TransactionDescription

__all__ = ["OffsetStamps", "Part", "ProducerIdentity", "TransactionCalls", "together"]


_PARAMETER: Final = re.compile(r"\$(\d+)")


class ProducerIdentity(NamedTuple):
    """What the log knows a producer by."""

    producer_id: int
    epoch: int


class OffsetStamps(NamedTuple):
    """When offsets were committed before a transaction, and when in it: the traces it leaves."""

    group: str
    member_id: str | None
    topic_ids: tuple[int, ...]
    partitions: tuple[int, ...]
    stamps: tuple[int, ...]
    """Microseconds; first all of those before, then all of those in it."""


class Part(NamedTuple):
    """A call that is one of several in a statement."""

    call: Call[Any]
    columns: int = 1
    """How many columns its answer has."""


class TransactionCalls(GroupCalls):
    """The SQL functions of one log, with those of groups and of transactions."""

    def __init__(self, schema: str = "logstore") -> None:
        super().__init__(schema)
        self._init_producer = self._value("init_producer", "text", "int4", "text")
        self._enter = self._value("enter_transaction", "text", "int8", "int2")
        self._await = self._value("await_transaction", "text", "int8", "int2")
        self._holds = self._value("holds_batch", "int4", "int4", "int8", "int8", "int2", "int4")
        self._send_offsets = self._value(
            "send_offsets",
            "text", "text", "text", "int4[]", "int4[]", "int8[]", "int8[]", "int4[]", "text[]",
        )  # fmt: skip
        self._await_offsets = self._value("await_offsets", "text", "text", "int4[]", "int4[]", "int8[]")
        self._mark = self._value("mark_transaction", "text", "int4")
        self._check_mark = self._value("check_mark", "text")
        self._fence = self._value("fence_producer", "text")
        self._list = self._rows(
            "transactional_id, producer_id, producer_epoch, state, timeout_ms, client_id, created_at, "
            "updated_at, pid, host, since, waits_for",
            "list_transactions",
            "text[]",
        )

    # -- producers -----------------------------------------------------------------------------------------

    def hold_transactional_id(
        self, transactional_id: str, timeout_ms: int, client_id: str
    ) -> Call[ProducerIdentity]:
        """Become the holder of ``transactional_id``; the one before is fenced."""
        args = (transactional_id, timeout_ms, client_id)
        return Call(
            self._init_producer,
            args,
            lambda rows: ProducerIdentity(*rows[0][0]),
            "init_producer",
            writes=True,
        )

    def enter_transaction(self, transactional_id: str, identity: ProducerIdentity) -> Call[None]:
        """The first statement of a transaction: the producer may write, and nobody takes its place until the
        end.
        """
        return Call(self._enter, (transactional_id, *identity), _none, "enter_transaction", writes=True)

    def await_transaction(self, transactional_id: str, identity: ProducerIdentity) -> Call[None]:
        """Wait until a transaction of this producer that may still be under way is over."""
        return Call(self._await, (transactional_id, *identity), _none, "await_transaction", writes=True)

    def holds_batch(
        self, topic_id: int, partition: int, last_offset: int, identity: ProducerIdentity, base_sequence: int
    ) -> Call[bool]:
        """Whether the batch that ends at ``last_offset`` is the one that this producer numbered so."""
        args = (topic_id, partition, last_offset, *identity, base_sequence)
        return Call(self._holds, args, _value, "holds_batch")

    # -- offsets -------------------------------------------------------------------------------------------

    def send_offsets(
        self, group: str, member_id: str | None, instance_id: str | None, commits: Sequence[Commit]
    ) -> Call[OffsetStamps]:
        """:meth:`commit_offsets`, and what tells afterwards whether it was committed."""
        commit = self.commit_offsets(group, member_id, instance_id, commits)
        topic_ids, partitions = tuple(commit.args[3].items), tuple(commit.args[4].items)

        def stamps(rows: Sequence[Row]) -> OffsetStamps:
            return OffsetStamps(group, member_id, topic_ids, partitions, tuple(rows[0][0]))

        return Call(self._send_offsets, commit.args, stamps, "send_offsets", writes=True)

    def await_offsets(self, sent: OffsetStamps) -> Call[bool | None]:
        """Wait until the transaction that sent these offsets is over; whether it was committed.  None: others
        have committed these offsets since, and it cannot be told.
        """
        args = (
            sent.group,
            sent.member_id,
            Int4Array(list(sent.topic_ids)),
            Int4Array(list(sent.partitions)),
            Int8Array(list(sent.stamps)),
        )
        return Call(self._await_offsets, args, _value, "await_offsets", writes=True)

    # -- transactions in which the program works too -------------------------------------------------------

    def mark_transaction(self, mark: str, idle_timeout_ms: int) -> Call[None]:
        """Mark the transaction that the session is in."""
        return Call(self._mark, (mark, idle_timeout_ms), _none, "mark_transaction")

    def check_mark(self, mark: str) -> Call[None]:
        """Raise if the session is not in the transaction that was marked so any more."""
        return Call(self._check_mark, (mark,), _none, "check_mark")

    # -- administration ------------------------------------------------------------------------------------

    def list_transactions(
        self, transactional_ids: Sequence[str] | None = None
    ) -> Call[list[TransactionDescription]]:
        """Some transactional ids, or all there are; those that do not exist are absent."""
        names = None if transactional_ids is None else TextArray(list(transactional_ids))
        return Call(
            self._list,
            (names,),
            lambda rows: [TransactionDescription(*row) for row in rows],
            "list_transactions",
        )

    def fence_producer(self, transactional_id: str) -> Call[int]:
        """Fence the holder; the new epoch."""
        return Call(self._fence, (transactional_id,), _value, "fence_producer", writes=True)


def together(parts: Sequence[Part]) -> Call[list[Any]]:
    """One statement that makes several calls, in their order; the answer is the list of theirs.

    Each has to be a SELECT of values without FROM.
    """
    sql = _joined(tuple(part.call.sql for part in parts), tuple(len(part.call.args) for part in parts))

    def decode(rows: Sequence[Row]) -> list[Any]:
        row, at = rows[0], 0
        answers = []
        for part in parts:
            answers.append(part.call.decode([row[at : at + part.columns]]))
            at += part.columns
        return answers

    args = tuple(arg for part in parts for arg in part.call.args)
    name = ", ".join(dict.fromkeys(part.call.name for part in parts))
    return Call(
        sql,
        args,
        decode,
        name,
        writes=any(part.call.writes for part in parts),
        prepared=all(part.call.prepared for part in parts),
    )


@lru_cache(maxsize=1024)
def _joined(texts: tuple[str, ...], counts: tuple[int, ...]) -> str:
    columns = []
    before = 0
    for text, count in zip(texts, counts, strict=True):
        function = text.removeprefix("SELECT ")
        columns.append(_PARAMETER.sub(partial(_moved, before), function))
        before += count
    return "SELECT " + ", ".join(columns)


def _moved(by: int, parameter: re.Match[str]) -> str:
    return f"${int(parameter[1]) + by}"


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None
