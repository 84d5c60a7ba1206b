"""What expires, when, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from logstore import Producer
from logstore.errors import ProducerFencedError, TransactionalIdNotFoundError, UnknownTopicOrPartitionError
from logstore.workers import expiry
from logstore.workers.expiry import Expired

pytestmark = pytest.mark.every_server
Session = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SELECT logstore.create_topic('t', 2)")
        yield connection


def let_pass(session: Session, days: float) -> None:
    """Time passes for the log."""
    session.execute(
        "CREATE OR REPLACE FUNCTION logstore.clock_ms() RETURNS int8 LANGUAGE sql VOLATILE RETURN "
        "floor(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::int8 "
        f"+ {round(days * 86_400_000)}".encode()
    )


def ids(session: Session) -> list[str]:
    return [row[0] for row in session.execute("SELECT transactional_id FROM logstore.producer ORDER BY 1")]


def holder(dsn: str, transactional_id: str) -> Producer:
    producer = Producer(dsn, transactional_id=transactional_id)
    producer.init_transactions()
    return producer


def transact(producer: Producer) -> None:
    producer.begin_transaction()
    producer.send("t", b"v", partition=0)
    producer.commit_transaction()


def test_transactional_ids_expire_after_a_week_without_a_transaction(session: Session, database: str) -> None:
    with (
        holder(database, "busy") as busy,
        holder(database, "idle") as idle,
    ):
        transact(busy)
        transact(idle)
        let_pass(session, 4)
        transact(busy)
        let_pass(session, 8)
        assert expiry.run_once(database) == Expired(transactional_ids=1, producers=0)
        assert ids(session) == ["busy"]
        transact(busy)
        # Whoever held the id is fenced, whether or not there is a new holder.
        with pytest.raises(TransactionalIdNotFoundError):
            transact(idle)
    with holder(database, "idle") as newer:
        transact(newer)


def test_who_held_an_expired_id_stays_fenced_by_its_new_holder(session: Session, database: str) -> None:
    with holder(database, "id") as old:
        transact(old)
        let_pass(session, 8)
        assert expiry.run_once(database).transactional_ids == 1
        with holder(database, "id") as new:
            transact(new)
            with pytest.raises(ProducerFencedError):
                transact(old)


def test_an_id_does_not_expire_in_the_middle_of_a_transaction(session: Session, database: str) -> None:
    session.execute("SELECT logstore.init_producer('id', 60000)")
    let_pass(session, 8)
    with psycopg.connect(database, prepare_threshold=None) as other:
        other.execute("SELECT FROM logstore.producer FOR SHARE")
        assert expiry.run_once(database).transactional_ids == 0
    assert expiry.run_once(database).transactional_ids == 1


def test_ids_are_kept_for_two_hours_at_least(session: Session) -> None:
    with pytest.raises(psycopg.Error) as failure:
        session.execute("SELECT logstore.expire_transactional_ids(7199999)")
    assert failure.value.sqlstate == "LS012"


def test_members_offsets_and_groups(session: Session, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "GROUPS", 2)
    for number in range(5):
        session.execute(
            "SELECT logstore.commit_offsets(%s, null, null, array[1], array[0], null, array[0], null, null)",
            [f"g{number}"],
        )
    session.execute("SELECT logstore.join_group('g0', 'm', null, 'c', '{t}', null, null, 60000, 60000)")
    assert expiry.run_once(database) == Expired()
    session.execute(
        "UPDATE logstore.group_member SET session_timeout_ms = 0, lease_floor = now() - interval '1 day'"
    )
    assert expiry.run_once(database) == Expired(members=1)
    let_pass(session, 6)
    assert expiry.run_once(database) == Expired()
    let_pass(session, 8)
    assert expiry.run_once(database) == Expired(groups=5, offsets=5)


def test_offsets_of_deleted_topics(session: Session, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "ROWS", 1)
    session.execute(
        "SELECT logstore.commit_offsets('g', null, null, array[1, 1], array[0, 1], null, "
        "array[0, 0], null, null)"
    )
    session.execute("SELECT logstore.delete_topic('t')")
    assert expiry.run_once(database) == Expired(offsets=2)


def test_what_was_delivered_too_often_dies_though_nobody_asks(session: Session, database: str) -> None:
    session.execute("SELECT logstore.create_topic('dead', 1)")
    session.execute("SELECT logstore.produce('t', null, 'v'::text, null, 0)")
    session.execute("SELECT logstore.drain()")
    session.execute("SELECT FROM logstore.acquire('s', 'm', '{t}', 10)")
    session.execute("SELECT logstore.reset_share_offsets('s', array[1], array[0], array[0])")
    session.execute(
        "UPDATE logstore.share_group SET delivery_limit = 1, dead_letter_topic = 'dead', copy_record = true"
    )
    session.execute("SELECT FROM logstore.acquire('s', 'm', '{t}', 10)")
    assert session.execute(
        "SELECT logstore.expire_share_locks(group_id) FROM logstore.log_group"
    ).fetchone() == (0,)
    assert expiry.run_once(database).share_ranges == 0
    session.execute("UPDATE logstore.share_flight SET due_at = now() - interval '1 s'")
    assert expiry.run_once(database) == Expired(share_ranges=1)
    assert session.execute("SELECT value FROM logstore.records WHERE topic = 'dead'").fetchall() == [(b"v",)]
    assert session.execute(
        "SELECT in_flight, available, lag FROM logstore.share_groups WHERE partition = 0"
    ).fetchall() == [(0, 0, 0)]


def test_a_group_without_its_dead_letter_topic_keeps_no_other_waiting(
    session: Session, database: str
) -> None:
    session.execute("SELECT logstore.create_topic('dead', 1)")
    session.execute("SELECT logstore.produce('t', null, 'v'::text, null, 0)")
    session.execute("SELECT logstore.drain()")
    for group in ("a", "b"):
        configs = '{"share.delivery.count.limit": 1, "share.auto.offset.reset": "earliest"}'
        session.execute("SELECT logstore.alter_share_group(%s, %s)", [group, configs])
        session.execute("SELECT FROM logstore.acquire(%s, 'm', '{t}', 10)", [group])
    session.execute(
        "SELECT logstore.alter_share_group('a', '{\"errors.deadletterqueue.topic.name\": \"dead\"}')"
    )
    session.execute("SELECT logstore.delete_topic('dead')")
    session.execute("UPDATE logstore.share_flight SET due_at = now() - interval '1 s'")
    with pytest.raises(UnknownTopicOrPartitionError, match='dead-letter topic "dead" of group "a"'):
        expiry.run_once(database)
    assert session.execute(
        'SELECT "group", available FROM logstore.share_groups WHERE partition = 0 ORDER BY 1'
    ).fetchall() == [("a", 1), ("b", 0)]
