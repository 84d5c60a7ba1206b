"""Transactional ids from outside: who holds them, what they are doing, and taking them away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from logstore._core.call import Call
from logstore._core.transaction_calls import ProducerIdentity, TransactionCalls
from logstore.errors import ProducerFencedError, TransactionalIdNotFoundError
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.sqllog import waits_for_lock

pytestmark = pytest.mark.one_server

CALLS = TransactionCalls()


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


@pytest.fixture
def producer(colour: Colour, database: str, appender: Appender) -> Callable[..., Any]:
    appender.create("a", 1)

    def make(transactional_id: str, **options: Any) -> Any:
        made = colour.producer(dsn=database, transactional_id=transactional_id, **options)
        made.init_transactions()
        return made

    return make


def test_who_holds_what(producer: Callable[..., Any], colour: Colour, database: str) -> None:
    admin = colour.admin(database)
    assert admin.list_transactions() == []
    producer("one", client_id="first", transaction_timeout_ms=1234)
    producer("two")
    producer("two")
    listed = admin.list_transactions()
    assert [(each.transactional_id, each.state) for each in listed] == [("one", "Empty"), ("two", "Empty")]
    two, one = admin.describe_transactions(["two", "one"])
    assert (one.producer_epoch, two.producer_epoch) == (0, 1)
    assert (one.client_id, one.transaction_timeout_ms) == ("first", 1234)
    assert [one.producer_id, two.producer_id] == [each.producer_id for each in listed]
    assert two.created_at <= two.initialised_at
    with pytest.raises(TransactionalIdNotFoundError, match="nobody"):
        admin.describe_transactions(["one", "nobody"])
    with pytest.raises(TransactionalIdNotFoundError, match="nobody"):
        admin.fence_producers(["nobody"])


def test_a_fenced_producer_commits_nothing_more(
    producer: Callable[..., Any], colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    made = producer("one")
    made.begin_transaction()
    made.send("a", b"x")
    assert colour.admin(database).fence_producers(["one"]) == {"one": 1}
    with pytest.raises(ProducerFencedError):
        made.commit_transaction()
    assert raw.execute("SELECT count(*) FROM logstore.batches").fetchone() == (0,)
    with producer("one").transaction():
        pass


def test_fencing_waits_for_a_transaction_that_is_being_written(
    colour: Colour, database: str, raw: psycopg.Connection[Any]
) -> None:
    admin = colour.admin(database)
    writer = colour.connection(database)
    with psycopg.connect(database, autocommit=True) as fencer:
        identity = writer.run(CALLS.hold_transactional_id("one", 100_000, "c"))
        fencing = threading.Thread(target=fencer.execute, args=["SELECT logstore.fence_producer('one')"])
        with writer.transaction():
            writer.run(CALLS.enter_transaction("one", identity))
            (one,) = admin.describe_transactions(["one"])
            assert (one.state, one.host) == ("Ongoing", "local")
            assert one.pid is not None
            assert one.since is not None
            assert [each.state for each in admin.list_transactions(states=["ongoing"])] == ["Ongoing"]
            fencing.start()
            eventually(lambda: waits_for_lock(raw, fencer), "it waits")
        fencing.join()
        assert admin.describe_transactions(["one"])[0].producer_epoch == 1
        assert [each.state for each in admin.list_transactions()] == ["Empty"]


def test_the_session_may_not_idle_longer_than_the_transaction_may_last(colour: Colour, database: str) -> None:
    writer = colour.connection(database)
    identity = writer.run(CALLS.hold_transactional_id("one", 4321, "c"))
    with writer.transaction():
        writer.run(CALLS.enter_transaction("one", identity))
        assert setting(writer, "idle_in_transaction_session_timeout") == "4321ms"
        assert setting(writer, "synchronous_commit") == "on"
    with pytest.raises(ProducerFencedError):
        writer.run(CALLS.enter_transaction("one", ProducerIdentity(identity.producer_id, 9)))


def setting(writer: Any, name: str) -> str:
    call = Call("SELECT current_setting($1::text)", (name,), lambda rows: str(rows[0][0]), "setting")
    return str(writer.run(call))
