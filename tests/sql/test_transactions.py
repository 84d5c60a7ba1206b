"""What a transaction leaves behind tells whether it was committed, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore._core.arrays import ByteaArray
from logstore._core.call import Call
from logstore._core.calls import AppendBatch
from logstore._core.group_calls import Commit
from logstore._core.transaction_calls import OffsetStamps, Part, ProducerIdentity, TransactionCalls, together
from logstore._sync.driver import Connection
from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    ProducerFencedError,
    TransactionalIdNotFoundError,
)
from tests.support.appender import Appender, values
from tests.support.membership import Member, connection
from tests.support.programs import eventually
from tests.support.sqllog import Session, waits_for_lock

CALLS = TransactionCalls()


@pytest.fixture
def server_side(database: str) -> Iterator[Connection]:
    with connection(database) as made:
        yield made


@pytest.fixture
def another(database: str) -> Iterator[Connection]:
    with connection(database) as made:
        yield made


@pytest.fixture
def observer(database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True) as made:
        yield made


@pytest.fixture
def log(database: str) -> Iterator[Appender]:
    with Appender(database) as made:
        made.create("t", 2)
        made.append("t", values(10), 0)
        made.append("t", values(10), 1)
        yield made


class Abandoned(Exception):
    pass


def send(member: Member, offset: int, *, commit: bool = True) -> OffsetStamps:
    """The offsets of both partitions, in a transaction; what it leaves."""
    commits = [
        Commit(claim.topic_id, tp.partition, claim.epoch, offset, None, "")
        for tp, claim in member.claims.items()
    ]
    try:
        with member.connection.transaction():
            sent = member.connection.run(CALLS.send_offsets("g", member.name, None, commits))
            if not commit:
                raise Abandoned
    except Abandoned:
        pass
    return sent


def test_offsets_tell_whether_they_were_committed(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a")
    a.beat()
    for offset in (3, 4):  # nothing there before, and something there before
        lost = send(a, offset, commit=False)
        assert server_side.run(CALLS.await_offsets(lost)) is False
        sent = send(a, offset)
        assert server_side.run(CALLS.await_offsets(sent)) is True
        assert server_side.run(CALLS.await_offsets(lost)) is None  # covered


def test_offsets_that_others_have_covered_tell_nothing(server_side: Connection, log: Appender) -> None:
    a = Member(server_side, "a")
    a.beat()
    sent, lost = send(a, 3), send(a, 4, commit=False)
    a.leave()
    b = Member(server_side, "b")
    b.beat()
    assert server_side.run(CALLS.await_offsets(sent)) is True
    assert server_side.run(CALLS.await_offsets(lost)) is False
    # One partition's offset is enough of a trace.
    first, *_ = b.claims.items()
    b.claims = dict([first])
    send(b, 5)
    assert server_side.run(CALLS.await_offsets(sent)) is True
    b.beat()
    send(b, 5)
    assert server_side.run(CALLS.await_offsets(sent)) is None


@pytest.mark.parametrize("delete", ["delete_topic('t')", "delete_group('g')"])
def test_what_was_deleted_is_not_taken_for_never_committed(
    server_side: Connection, log: Appender, delete: str
) -> None:
    a = Member(server_side, "a")
    a.beat()
    sent = send(a, 3)
    a.leave()
    server_side.execute(f"SELECT logstore.{delete}")
    server_side.execute("SELECT logstore.expire_offsets(1)")
    assert server_side.run(CALLS.await_offsets(sent)) is None


def asked_while_open(
    another: Connection, call: Any, observer: Session, during: Callable[[], None]
) -> list[Any]:
    """What ``another`` is answered, after it had to wait until ``during`` has returned."""
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(another.run(call)))
    asking.start()
    eventually(lambda: waits_for_lock(observer, another._raw), "it waits")
    during()
    asking.join()
    return answers


@pytest.mark.parametrize("commit", [True, False])
def test_the_answer_waits_for_the_end_of_the_transaction(
    server_side: Connection, another: Connection, log: Appender, observer: Session, commit: bool
) -> None:
    a = Member(server_side, "a")
    a.beat()
    commits = [Commit(c.topic_id, tp.partition, c.epoch, 3, None, "") for tp, c in a.claims.items()]
    server_side.execute("BEGIN")
    server_side._in_transaction = True
    sent = server_side.run(CALLS.send_offsets("g", "a", None, commits))
    end = "COMMIT" if commit else "ROLLBACK"
    assert asked_while_open(
        another, CALLS.await_offsets(sent), observer, lambda: server_side.execute(end)
    ) == [commit]


# -- producers -----------------------------------------------------------------------------------------------


def row(log: Appender, identity: ProducerIdentity, sequence: int) -> AppendBatch:
    topic_id = log.topic_id("t")
    data = ByteaArray([b"x", b"y"])
    return AppendBatch(
        topic_id, 0, 2, 1_700_000_000_000, None, None, data,
        producer_id=identity.producer_id, producer_epoch=identity.epoch, base_sequence=sequence,
    )  # fmt: skip


def test_a_batch_is_found_by_its_number(server_side: Connection, log: Appender) -> None:
    me = server_side.run(CALLS.hold_transactional_id("one", 1000, "c"))
    other = server_side.run(CALLS.hold_transactional_id("two", 1000, "c"))
    batch = row(log, me, 0)
    _, (result,) = server_side.run(
        together([Part(CALLS.enter_transaction("one", me)), Part(CALLS.append([batch], -1), 1)])
    )
    last = result.base_offset + 1
    find = CALLS.holds_batch
    assert server_side.run(find(batch.topic_id, 0, last, me, 0))
    for call in (
        find(batch.topic_id, 0, last - 1, me, 0),
        find(batch.topic_id, 1, last, me, 0),
        find(batch.topic_id, 0, last, me, 2),
        find(batch.topic_id, 0, last, other, 0),
        find(batch.topic_id, 0, last, me._replace(epoch=1), 0),
    ):
        assert not server_side.run(call)


def test_nobody_takes_the_id_of_a_transaction_that_is_being_written(
    server_side: Connection, another: Connection, log: Appender, observer: Session
) -> None:
    me = server_side.run(CALLS.hold_transactional_id("one", 100_000, "c"))
    for call in (CALLS.await_transaction("one", me), CALLS.hold_transactional_id("one", 1000, "c")):
        server_side.execute("BEGIN")
        server_side._in_transaction = True
        server_side.run(CALLS.enter_transaction("one", me))
        asked_while_open(another, call, observer, lambda: server_side.execute("COMMIT"))
        server_side._in_transaction = False
    for fenced in (CALLS.enter_transaction("one", me), CALLS.await_transaction("one", me)):
        with pytest.raises(ProducerFencedError):
            server_side.run(fenced)
    unheard_of: list[Call[Any]] = [CALLS.enter_transaction("two", me), CALLS.fence_producer("two")]
    for unknown in unheard_of:
        with pytest.raises(TransactionalIdNotFoundError):
            server_side.run(unknown)
    for timeout_ms in (0, 900_001):
        with pytest.raises(InvalidArgumentError):
            server_side.run(CALLS.hold_transactional_id("one", timeout_ms, "c"))


def test_a_transaction_is_recognised_by_its_mark(server_side: Connection) -> None:
    with server_side.transaction():
        server_side.run(CALLS.mark_transaction("mine", 1000))
        server_side.run(CALLS.check_mark("mine"))
    with server_side.transaction(), pytest.raises(IllegalStateError):
        server_side.run(CALLS.check_mark("mine"))
